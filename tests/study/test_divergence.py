from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lmms_eval_stability.divergence import AVERAGE, Divergence, average, diverge, mcnemar_exact, wilson
from lmms_eval_stability.noise import with_floor
from lmms_eval_stability.pairing import PairedSamples, pair_samples
from lmms_eval_stability.samples import SampleTable
from lmms_eval_stability.verdicts import adapter_for, judge

GQA = adapter_for("gqa")


def table(answers: list[str], scores: list[float], order: list[int] | None = None) -> SampleTable:
    """Judged samples of documents 0, 1, ... in the given order of lines."""
    n = len(answers)
    frame = pd.DataFrame(
        {
            "doc_id": np.arange(n, dtype=np.int64),
            "line": np.arange(1, n + 1, dtype=np.int64),
            "score": np.array(scores, dtype=float),
            **{name: pd.Series(["x"] * n, dtype=object) for name in ("target", "input")},
            "response": pd.Series(answers, dtype=object),
            **{name: pd.Series([None] * n, dtype=object) for name in ("logged_prediction", "fingerprint", "error")},
        }
    )
    if order is not None:
        frame = frame.iloc[order].reset_index(drop=True)
    return judge(SampleTable("gqa", Path("log.jsonl"), "exact_match", frame), GQA)


def paired(before: list[tuple[str, float]], after: list[tuple[str, float]]) -> PairedSamples:
    return pair_samples(*(table([a for a, _ in run], [s for _, s in run]) for run in (before, after)))


def compare(before: list[tuple[str, float]], after: list[tuple[str, float]]) -> Divergence:
    return diverge(paired(before, after), "base", "run")


BEFORE = [("red", 1.0), ("blue", 1.0), ("two", 0.0), ("yes", 1.0), ("no", 0.0)]
AFTER = [("Red.", 1.0), ("green", 0.0), ("2", 1.0), ("yes", 1.0), ("maybe", 0.0)]


def test_numbers_by_hand() -> None:
    row = compare(BEFORE, AFTER)
    assert row.n == 5
    assert row.score_baseline == row.score_run == 0.6
    assert row.drop == 0.0
    assert row.dr.value == 0.6  # blue/green, two/2, no/maybe; "Red." is "red"
    assert row.ndr.value == 0.2
    assert row.pdr.value == 0.2
    assert row.conditional_ndr.value == pytest.approx(1 / 3)
    assert row.soft_ndr == row.soft_pdr == 0.2
    assert row.mcnemar_p == 1.0
    assert not row.soft
    # Wilson by hand: p = 3/5, z = 1.959964
    assert (row.dr.low, row.dr.high) == pytest.approx((0.230724, 0.882379), abs=1e-6)


def test_soft_scores_by_hand() -> None:
    row = compare([("a", 1.0), ("b", 0.9), ("c", 0.3)], [("d", 0.6), ("e", 1.0), ("c", 0.3)])
    assert row.soft
    assert row.ndr.value == pytest.approx(1 / 3)  # 1.0 -> 0.6 falls below 0.9
    assert row.pdr.value == 0.0  # 0.9 -> 1.0 was correct before
    assert row.soft_ndr == pytest.approx(0.4 / 3)
    assert row.soft_pdr == pytest.approx(0.1 / 3)
    assert row.drop == pytest.approx(0.3 / 3)


def test_nothing_to_count_is_nan_and_never_zero() -> None:
    empty = PairedSamples("gqa", "exact_match", paired(BEFORE, AFTER).frame.iloc[:0])
    row = diverge(empty, "base", "run")
    values = [row.dr.value, row.ndr.low, row.pdr.high, row.soft_ndr, row.drop, row.score_run, row.mcnemar_p]
    assert all(math.isnan(value) for value in values)
    assert row.record()["dr"] is None
    nothing_right = compare([("a", 0.0)], [("b", 0.0)])
    assert math.isnan(nothing_right.conditional_ndr.value)
    assert nothing_right.ndr.value == 0.0


def test_native_scores_count_only_when_every_row_is_paired() -> None:
    pairs = paired(BEFORE, AFTER)
    assert diverge(pairs, "a", "b", native=(0.61, 0.59)).drop == pytest.approx(0.02)
    partial = PairedSamples(**{**vars(pairs), "complete": False})
    row = diverge(partial, "a", "b", native=(0.61, 0.59))
    assert (row.score_source, row.score_baseline) == ("pairs", 0.6)


def test_scores_beyond_one_keep_their_scale() -> None:
    assert compare([("a", 80.0)], [("b", 60.0)]).score_unit == "native"
    assert compare([("a", 1.0)], [("b", 0.0)]).score_unit == "fraction"


def test_native_scores_in_percent_leave_the_samples_fractions() -> None:
    pairs = paired(BEFORE, AFTER)
    row = diverge(pairs, "a", "b", native=(60.0, 55.0))
    assert (row.score_unit, row.soft_unit, row.drop, row.soft_ndr) == ("native", "fraction", 5.0, 0.2)
    one_in_percent = diverge(pairs, "a", "b", native=(60.0, 0.55))
    assert (one_in_percent.score_source, one_in_percent.score_unit, one_in_percent.drop) == ("pairs", "fraction", 0.0)


def test_native_scales_have_no_average() -> None:
    mean = average([compare([("a", 80.0)], [("b", 60.0)]), compare([("a", 4.0)], [("b", 5.0)])])
    assert (mean.score_unit, mean.dr.value) == ("native", 1.0)
    assert all(math.isnan(value) for value in (mean.score_baseline, mean.score_run, mean.drop, mean.soft_ndr))


def test_a_flip_without_another_prediction_is_counted() -> None:
    assert compare([("yes", 1.0), ("no", 1.0)], [("Yes", 0.0), ("no", 1.0)]).same_prediction_flips == 1


def test_rerun_gives_floor_and_excess() -> None:
    again = [("red", 1.0), ("blue", 1.0), ("two", 0.0), ("yes", 1.0), ("nope", 0.0)]
    row = with_floor(compare(BEFORE, AFTER), paired(BEFORE, AFTER), [paired(BEFORE, again)])
    assert (row.reruns, row.rerun_n, row.rerun_dr) == (1, 5, wilson(1, 5))
    assert row.excess_dr == pytest.approx(0.4)
    assert row.excess_dr_low < 0.4 < row.excess_dr_high


def test_several_reruns_share_one_floor() -> None:
    again = [("red", 1.0), ("blue", 1.0), ("two", 0.0), ("yes", 1.0), ("nope", 0.0)]
    floors = [paired(BEFORE, again), paired(BEFORE, BEFORE)]
    row = with_floor(compare(BEFORE, AFTER), paired(BEFORE, AFTER), floors)
    assert (row.reruns, row.rerun_n, row.rerun_dr.value) == (2, 5, pytest.approx(0.1))
    assert row.excess_dr == pytest.approx(0.5)
    average_row = average([row, compare(BEFORE, AFTER)])
    assert average_row.reruns == 0
    assert math.isnan(average_row.excess_dr_low)


def test_average_is_unweighted_and_has_no_intervals() -> None:
    small, large = compare(BEFORE, AFTER), compare(BEFORE * 4, BEFORE * 4)
    mean = average([small, large])
    assert (mean.task, mean.n, mean.tasks) == (AVERAGE, 25, 2)
    assert mean.dr.value == pytest.approx(0.3)
    assert mean.ndr.value == pytest.approx(0.1)
    assert math.isnan(mean.dr.low)
    assert math.isnan(mean.mcnemar_p)
    assert mean.record()["dr_low"] is None


def test_average_of_different_scales_has_rates_but_no_scores() -> None:
    mean = average([compare(BEFORE, AFTER), compare([("a", 80.0)], [("b", 60.0)])])
    assert mean.score_unit == "mixed"
    assert math.isnan(mean.drop)
    assert mean.dr.value == pytest.approx(0.8)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (1, 10), (5, 10), (50, 50), (63, 500), (23478, 214354)])
def test_wilson_equals_statsmodels(k: int, n: int) -> None:
    rate = wilson(k, n)
    low, high = proportion_confint(k, n, alpha=0.05, method="wilson")
    assert rate.value == k / n
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-12)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (10, 2), (2, 10), (26, 19), (500, 430), (5775, 5681)])
def test_mcnemar_equals_statsmodels_and_the_binomial_test(b: int, c: int) -> None:
    p = mcnemar_exact(b, c)
    assert p == pytest.approx(mcnemar([[0, b], [c, 0]], exact=True).pvalue, rel=1e-9)
    if b + c:
        assert p == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-9)


def test_wilson_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for n, p in ((100, 0.05), (500, 0.12), (50, 0.5)):
        draws = rng.binomial(n, p, size=4000)
        covered = np.mean([wilson(int(k), n).low <= p <= wilson(int(k), n).high for k in draws])
        assert 0.93 <= covered <= 0.98, (n, p, covered)


ANSWER = st.sampled_from(["red", "Red.", "blue", "two", "no dogs"])
SCORE = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])
PAIRS = st.lists(st.tuples(ANSWER, SCORE, ANSWER, SCORE), min_size=1, max_size=40)


def split(rows: list[tuple[str, float, str, float]]) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    return [(a, s) for a, s, _, _ in rows], [(a, s) for _, _, a, s in rows]


@settings(deadline=None, max_examples=60)
@given(PAIRS)
def test_soft_drop_is_soft_ndr_minus_soft_pdr(rows: list[tuple[str, float, str, float]]) -> None:
    row = compare(*split(rows))
    assert row.soft_ndr - row.soft_pdr == pytest.approx(row.drop, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ANSWER, ANSWER), min_size=1, max_size=40), st.sets(ANSWER))
def test_on_right_or_wrong_scores_all_identities_hold(answers: list[tuple[str, str]], right: set[str]) -> None:
    good = {GQA.normalise(answer) for answer in right}

    def scored(answer: str) -> tuple[str, float]:
        return answer, float(GQA.normalise(answer) in good)

    row = compare([scored(a) for a, _ in answers], [scored(b) for _, b in answers])
    assert row.drop == pytest.approx(row.ndr.value - row.pdr.value, abs=1e-12)
    assert row.dr.value >= row.ndr.value + row.pdr.value - 1e-12
    assert row.same_prediction_flips == 0
    assert (row.soft_ndr, row.soft_pdr) == pytest.approx((row.ndr.value, row.pdr.value))


@settings(deadline=None, max_examples=60)
@given(PAIRS)
def test_swapping_the_runs_swaps_ndr_and_pdr(rows: list[tuple[str, float, str, float]]) -> None:
    before, after = split(rows)
    row, swapped = compare(before, after), compare(after, before)
    assert swapped.dr == row.dr
    assert (swapped.ndr, swapped.pdr) == (row.pdr, row.ndr)
    assert swapped.drop == -row.drop
    assert swapped.mcnemar_p == row.mcnemar_p


@settings(deadline=None, max_examples=60)
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(rows: list[tuple[str, float, str, float]], random: object) -> None:
    (answers_a, scores_a), (answers_b, scores_b) = (zip(*run, strict=True) for run in split(rows))
    orders = [random.sample(range(len(rows)), len(rows)) for _ in range(2)]
    shuffled = pair_samples(
        table(list(answers_a), list(scores_a), orders[0]), table(list(answers_b), list(scores_b), orders[1])
    )
    pd.testing.assert_frame_equal(shuffled.frame, paired(*split(rows)).frame)
