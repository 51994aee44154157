from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lmms_eval_stability.bootstrap import NO_CLUSTER_RATE, ClusterRate, cluster_difference, cluster_rate
from lmms_eval_stability.divergence import wilson

RNG = np.random.default_rng(7)
#: 300 questions on 60 images; half of the images flip often
IMAGES = RNG.integers(0, 60, 300)
EVENTS = RNG.random(300) < np.where(IMAGES % 2, 0.4, 0.02)
SCORES = RNG.choice([0, 0.3, 0.6, 0.9, 1], 300)


def ends(rate: ClusterRate) -> tuple[float, float]:
    return rate.low, rate.high


def slow(values: np.ndarray, clusters: np.ndarray, among: np.ndarray, seed: int, replicates: int = 4000) -> list[float]:
    """The cluster bootstrap as it is written down: draw clusters, put their samples together, take the mean."""
    rng = np.random.default_rng(seed)
    names = np.unique(clusters)
    rows = {name: np.flatnonzero((clusters == name) & among) for name in names}
    means = []
    for _ in range(replicates):
        drawn = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        means.append(values[drawn].mean() if len(drawn) else math.nan)
    return np.nanquantile(means, [0.025, 0.975]).tolist()


@pytest.mark.parametrize("values", [EVENTS.astype(float), SCORES, np.linspace(-1, 2, 300)])
@pytest.mark.parametrize("among", [np.ones(300, bool), SCORES > 0.5])
def test_equal_to_the_plain_bootstrap(values: np.ndarray, among: np.ndarray) -> None:
    rate = cluster_rate(values, IMAGES, among=among, seed=3)
    assert rate.value == pytest.approx(values[among].mean())
    width = rate.high - rate.low
    assert ends(rate) == pytest.approx(slow(values, IMAGES, among, seed=4), abs=0.06 * width)


@pytest.mark.parametrize("values", [EVENTS.astype(float), np.linspace(0, 1, 300) ** 3])
def test_without_clusters_equal_to_scipy(values: np.ndarray) -> None:
    rate = cluster_rate(values, np.arange(300), seed=1)
    other = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ends(rate) == pytest.approx((other.low, other.high), abs=0.05 * (other.high - other.low))
    assert rate.design_effect == pytest.approx(1.0)


def test_design_effect_equals_the_cluster_robust_variance_of_statsmodels() -> None:
    constant = np.ones(300)
    robust = sm.OLS(SCORES, constant).fit(
        cov_type="cluster", cov_kwds={"groups": IMAGES, "use_correction": True, "df_correction": False}
    )
    plain = sm.OLS(SCORES, constant).fit()
    rate = cluster_rate(SCORES, IMAGES)
    assert rate.design_effect == pytest.approx(float(robust.bse[0] ** 2 / plain.bse[0] ** 2), rel=1e-9)
    assert rate.clusters == len(np.unique(IMAGES))


def test_clusters_widen_the_interval_by_the_root_of_the_design_effect() -> None:
    clustered, single = cluster_rate(EVENTS, IMAGES), cluster_rate(EVENTS, np.arange(300))
    assert clustered.design_effect > 1.5
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(clustered.design_effect), rel=0.1)


def test_a_sample_repeated_tells_nothing_new() -> None:
    once = cluster_rate(EVENTS, np.arange(300), seed=5)
    thrice = cluster_rate(np.repeat(EVENTS, 3), np.repeat(np.arange(300), 3), seed=5)
    assert ends(thrice) == pytest.approx(ends(once))
    assert thrice.design_effect == pytest.approx(3, rel=0.01)


def test_covers_where_wilson_does_not() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(100), 5)
    hits = plain = 0
    for seed in range(200):
        events = rng.random(500) < np.repeat(rng.choice([0.0, 0.4], 100), 5)
        rate = cluster_rate(events, clusters, replicates=400, seed=seed)
        hits += rate.low <= 0.2 <= rate.high
        interval = wilson(int(events.sum()), 500)
        plain += interval.low <= 0.2 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99
    assert plain / 200 < 0.88


VALUES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), st.integers(0, 5), st.booleans()), min_size=1, max_size=30
)


@settings(deadline=None, max_examples=40)
@given(VALUES, st.randoms(use_true_random=False))
def test_neither_order_nor_names_matter(rows: list[tuple[float, int, bool]], random: object) -> None:
    values, clusters, among = (np.array(column) for column in zip(*rows, strict=True))
    order = random.sample(range(len(rows)), len(rows))
    named = np.array([f"image {9 - c}" for c in clusters], dtype=object)
    kept = cluster_rate(values, clusters, among=among, replicates=100)
    moved = cluster_rate(values[order], named[order], among=among[order], replicates=100)
    left, right = ([r.value, r.low, r.high, r.design_effect, r.clusters] for r in (kept, moved))
    assert left == pytest.approx(right, nan_ok=True)
    if not math.isnan(kept.low):
        assert values.min() - 1e-9 <= kept.low <= kept.high <= values.max() + 1e-9 or kept.value in (0, 1)


@settings(deadline=None, max_examples=40)
@given(VALUES, st.data())
def test_swapping_the_runs_turns_the_difference_round(rows: list[tuple[float, int, bool]], data: st.DataObject) -> None:
    first, clusters, _ = (np.array(column) for column in zip(*rows, strict=True))
    second = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(rows), max_size=len(rows))))
    one = cluster_difference(first, second, clusters, replicates=2000)
    other = cluster_difference(second, first, clusters, replicates=2000)
    assert one.value == pytest.approx(first.mean() - second.mean(), abs=1e-8)
    assert one.value == pytest.approx(-other.value, abs=1e-9)
    slack = 0.25 * (one.high - one.low) + 1e-9
    assert ends(one) == pytest.approx((-other.high, -other.low), abs=slack, nan_ok=True)


def test_methods_that_err_together_differ_by_a_narrow_interval() -> None:
    other = EVENTS.copy()
    other[:6] = ~other[:6]
    together = cluster_difference(EVENTS, other, IMAGES)
    apart = cluster_difference(EVENTS, RNG.permutation(other), IMAGES)
    assert together.high - together.low < 0.3 * (apart.high - apart.low)


def test_nothing_to_count_is_nan() -> None:
    assert cluster_rate([], []) is NO_CLUSTER_RATE
    assert cluster_rate([1, 0], ["a", "b"], among=[False, False]) is NO_CLUSTER_RATE


def test_one_cluster_has_a_value_and_no_interval() -> None:
    for rate in (
        cluster_rate([1, 0, 0, 1], ["a"] * 4),
        cluster_rate([0, 0], ["a", "a"]),
        cluster_rate([1, 0, 1], ["a", "a", "b"], among=[True, True, False]),
    ):
        assert rate.clusters == 1
        assert not math.isnan(rate.value)
        assert math.isnan(rate.low)
        assert math.isnan(rate.high)


def test_no_event_is_bounded_by_the_number_of_clusters() -> None:
    clusters = np.repeat(np.arange(20), 5)
    bound = wilson(0, 20).high
    none, all_ = cluster_rate(np.zeros(100), clusters), cluster_rate(np.ones(100), clusters)
    assert (none.value, *ends(none)) == (0.0, 0.0, bound)
    assert (all_.value, *ends(all_)) == (1.0, 1 - bound, 1.0)
    same = cluster_difference(EVENTS, EVENTS, IMAGES)
    assert (same.value, same.high) == (0.0, -same.low)
    assert same.high == wilson(0, len(np.unique(IMAGES))).high
    half = cluster_rate([0, 1] * 10, np.repeat(np.arange(10), 2))
    assert (half.value, math.isnan(half.low)) == (0.5, True)
    even = cluster_difference([1, 0] * 10, [0, 1] * 10, np.repeat(np.arange(10), 2))
    assert (even.value, math.isnan(even.high)) == (0.0, True)


def test_seeded() -> None:
    first, again, other = (cluster_rate(SCORES, IMAGES, replicates=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    narrow = cluster_rate(SCORES, IMAGES, level=0.5)
    wide = cluster_rate(SCORES, IMAGES, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([1, 0], ["a"], "2 values, 1 cluster labels"),
        ([1, 0, 1], ["a", None, float("nan")], "2 of 3 samples have no cluster label"),
        ([1, math.nan], ["a", "b"], "1 of the values"),
    ],
)
def test_what_cannot_be_counted_is_refused(values: list[float], clusters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_rate(values, clusters)


def test_samples_that_do_not_count_need_no_value() -> None:
    assert cluster_rate([1, math.nan, 0], ["a", "b", "c"], among=[True, False, True]).value == 0.5
    with pytest.raises(ValueError, match="not the same samples"):
        cluster_difference([1, 0], [1], ["a", "b"])


def test_memory_does_not_grow_with_replicates_times_samples() -> None:
    # 100,000 samples x 5,000 replicates of doubles would be 4 GB
    values, clusters = np.tile(EVENTS, 334)[:100_000], np.arange(100_000) // 5
    tracemalloc.start()
    cluster_rate(values, clusters, replicates=5000)
    cluster_rate(RNG.random(100_000), clusters, replicates=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
