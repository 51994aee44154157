from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, false_discovery_control
from statsmodels.stats.multitest import multipletests

from lmms_eval_stability.divergence import mcnemar_exact
from lmms_eval_stability.multiplicity import adjust, benjamini_hochberg, holm, minimum_detectable_effect

P = [0.01, 0.04, 0.03, 0.005, 1.0]


def test_by_hand() -> None:
    # sorted .005 .01 .03 .04 1; Holm x5 x4 x3 x2 x1, never falling: .025 .04 .09 .09 1
    assert holm(P) == pytest.approx([0.04, 0.09, 0.09, 0.025, 1.0])
    # BH x5/1 x5/2 x5/3 x5/4 x1, from the end never rising: .025 .025 .05 .05 1
    assert benjamini_hochberg(P) == pytest.approx([0.025, 0.05, 0.05, 0.025, 1.0])


PS = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.05, 1.0])), min_size=1, max_size=30)


@pytest.mark.parametrize("p", [P, [0.2, 0.2, 0.01, 0.0], np.random.default_rng(0).random(200) ** 3])
def test_equal_to_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(PS, st.sampled_from([0.01, 0.05, 0.2]))
def test_equal_to_the_step_down_rule_and_to_scipy(p: list[float], alpha: float) -> None:
    rejected = set()
    for step, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] * (len(p) - step) > alpha:
            break
        rejected.add(int(place))
    assert set(np.flatnonzero(holm(p) <= alpha).tolist()) == rejected
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(PS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_holm_is_the_stricter(p: list[float], random: object) -> None:
    order = random.sample(range(len(p)), len(p))
    shuffled = np.array(p)[order]
    for rule in (holm, benjamini_hochberg):
        assert rule(shuffled) == pytest.approx(rule(p)[order])
    assert (np.asarray(p) <= benjamini_hochberg(p) + 1e-15).all()
    assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all()
    assert holm(p).max() <= 1


def test_tests_that_were_not_made_do_not_count() -> None:
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert benjamini_hochberg([math.nan, 0.02]) == pytest.approx([math.nan, 0.02], nan_ok=True)
    assert len(holm([])) == len(benjamini_hochberg([])) == 0


@pytest.mark.parametrize("p", [[-0.1], [1.1], [[0.1]]])
def test_what_is_no_p_value_is_refused(p: list[float]) -> None:
    with pytest.raises(ValueError):
        holm(p)


def test_a_table_of_tasks_and_methods_is_one_family_or_several() -> None:
    table = pd.DataFrame({"run": ["a", "a", "a", "b", "b"], "mcnemar_p": [0.01, 0.04, None, 0.03, 0.005]})
    whole = adjust(table)
    assert whole["mcnemar_p_holm"].tolist() == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)
    apart = adjust(table, families=["run"])
    assert apart["mcnemar_p_holm"].tolist() == pytest.approx([0.02, 0.04, math.nan, 0.03, 0.01], nan_ok=True)
    assert apart["mcnemar_p_fdr"].tolist() == pytest.approx([0.02, 0.04, math.nan, 0.03, 0.01], nan_ok=True)
    assert list(table) == ["run", "mcnemar_p"]


def test_effect_inverts_the_published_sample_size() -> None:
    # powerandsamplesize.com, two-sided McNemar after Connor 1987: .45 against .05, alpha .05, power .8 take 23 pairs
    assert minimum_detectable_effect(23, 0.5) <= 0.4 < minimum_detectable_effect(22, 0.5)


def exact_power(n: int, discordant: float, effect: float) -> float:
    """Chance that the exact test rejects at 0.05, over all numbers of flips and of negative ones among them."""
    power = 0.0
    for m in range(*(int(binom.ppf(q, n, discordant)) for q in (1e-6, 1 - 1e-6))):
        fewer = np.arange(m // 2 + 1)
        rejecting = fewer[2 * binom.cdf(fewer, m, 0.5) <= 0.05]
        if len(rejecting):
            most, share = int(rejecting.max()), (discordant + effect) / (2 * discordant)
            assert mcnemar_exact(most, m - most) <= 0.05
            found = binom.cdf(most, m, share) + binom.sf(m - most - 1, m, share)
            power += binom.pmf(m, n, discordant) * found
    return power


@pytest.mark.parametrize(("n", "discordant"), [(5000, 0.1), (2000, 0.06), (900, 0.2), (1000, 0.1)])
def test_the_exact_test_finds_the_effect_nearly_as_often_as_it_says(n: int, discordant: float) -> None:
    effect = minimum_detectable_effect(n, discordant)
    assert 0.74 < exact_power(n, discordant, effect) < 0.8
    assert exact_power(n, discordant, 1.1 * effect) > 0.8


@settings(deadline=None, max_examples=60)
@given(st.integers(50, 10**6), st.floats(0.001, 1))
def test_more_pairs_find_smaller_effects(n: int, discordant: float) -> None:
    effect, finer = (minimum_detectable_effect(size, discordant) for size in (n, 4 * n))
    if not math.isnan(effect):
        assert 0 < finer < effect <= discordant


def test_what_cannot_be_found_is_nan() -> None:
    assert math.isnan(minimum_detectable_effect(0, 0.1))
    assert math.isnan(minimum_detectable_effect(100, 0.0))
    assert math.isnan(minimum_detectable_effect(100, math.nan))
    assert math.isnan(minimum_detectable_effect(100, 0.01))  # one flip proves nothing, whichever way it goes
    assert math.isnan(minimum_detectable_effect(1, 0.5))
    with pytest.raises(ValueError):
        minimum_detectable_effect(100, 1.5)
    with pytest.raises(ValueError):
        minimum_detectable_effect(100, 0.1, power=1)
