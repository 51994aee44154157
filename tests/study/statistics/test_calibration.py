from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from lmms_eval_stability.calibration import TopTokens, auroc, calibrate, flip_rate_by_margin
from lmms_eval_stability.divergence import NO_RATE, wilson

LOGGED = [
    [[7, "yes", -0.1], [9, "no", -2.5], [3, "Yes", -5.0], [4, "No", -6.0], [5, "the", -7.5]],
    None,
    [[9, "no", -0.693147], [7, "yes", -0.693147]],
    [[1, "a", -0.000001]],
]


def test_top_tokens_of_logs() -> None:
    top = TopTokens.from_log(LOGGED)
    assert top.ids.tolist() == [[7, 9, 3, 4, 5], [-1] * 5, [9, 7, -1, -1, -1], [1, -1, -1, -1, -1]]
    assert top.margin == pytest.approx([2.4, math.nan, 0.0, math.nan], nan_ok=True)
    assert top.confidence == pytest.approx([math.exp(-0.1), math.nan, 0.5, 1.0], abs=2e-6, nan_ok=True)
    assert TopTokens.from_log([[[1, "a", -2.0], [2, "b", -1.0]]]).ids[0, :2].tolist() == [2, 1]
    assert len(TopTokens.from_log([]).margin) == 0


@pytest.mark.parametrize("bad", [[[1, "a"]], [1], "text", [["x", "a", -1.0]], 5])
def test_what_is_no_list_of_tokens_is_named(bad: object) -> None:
    with pytest.raises(ValueError, match="sample 1: "):
        TopTokens.from_log([LOGGED[0], bad])


CONFIDENCE = [0.95, 0.9, 0.8, 0.6, 0.55, 0.3]
CORRECT = [True, True, False, True, False, False]


def test_calibration_by_hand() -> None:
    found = calibrate(CONFIDENCE, CORRECT, bins=2)
    assert (found.n, found.accuracy, found.confidence) == (6, 0.5, pytest.approx(4.1 / 6))
    # by confidence: .3 .55 .6 (one right, mean .48333) and .8 .9 .95 (two right, mean .88333)
    assert found.bins["n"].tolist() == [3, 3]
    assert found.bins["low"].tolist() == [0.3, 0.8]
    assert found.bins["high"].tolist() == [0.6, 0.95]
    assert found.ece == pytest.approx(0.5 * (1.45 / 3 - 1 / 3) + 0.5 * (2.65 / 3 - 2 / 3))
    assert found.brier == pytest.approx((0.05**2 + 0.1**2 + 0.8**2 + 0.4**2 + 0.55**2 + 0.3**2) / 6)
    assert found.auroc.value == pytest.approx(8 / 9)  # only .6 against .8 is the wrong way round
    wide = calibrate(CONFIDENCE, CORRECT, bins=2, scheme="width")
    assert wide.bins["n"].tolist() == [1, 5]
    assert wide.ece == pytest.approx(1 / 6 * 0.3 + 5 / 6 * (3.8 / 5 - 3 / 5))


def test_equal_width_bins_are_closed_above() -> None:
    table = calibrate([0.0, 0.1, 0.10001, 0.2, 1.0], [False] * 5, bins=10, scheme="width").bins
    assert table["n"].tolist() == [2, 2, 1]
    assert table["high"].tolist() == [0.1, 0.2, 1.0]


SURE = st.one_of(st.floats(0.001, 0.999), st.sampled_from([0.25, 0.5, 0.9]))
ROWS = st.lists(st.tuples(SURE, st.booleans()), min_size=2, max_size=60)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_equal_to_sklearn(rows: list[tuple[float, bool]]) -> None:
    sure, right = (np.array(column) for column in zip(*rows, strict=True))
    found = calibrate(sure, right)
    assert found.brier == pytest.approx(brier_score_loss(right, sure))
    assert found.nll == pytest.approx(log_loss(right, sure, labels=[False, True]))
    if 0 < right.sum() < len(right):
        assert found.auroc.value == pytest.approx(roc_auc_score(right, sure))
    else:
        assert found.auroc is NO_RATE


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 12), st.sampled_from(["mass", "width"]), st.randoms(use_true_random=False))
def test_bounds_and_order(rows: list[tuple[float, bool]], bins: int, scheme: str, random: object) -> None:
    sure, right = (np.array(column) for column in zip(*rows, strict=True))
    found = calibrate(sure, right, bins, scheme)
    order = random.sample(range(len(rows)), len(rows))
    moved = calibrate(sure[order], right[order], bins, scheme)
    assert moved.ece == pytest.approx(found.ece, abs=1e-12)
    assert moved.bins["n"].tolist() == found.bins["n"].tolist()
    assert found.bins["n"].sum() == found.n
    assert len(found.bins) <= bins
    # one bin gives the least ECE there is: |accuracy - mean confidence|
    assert abs(found.accuracy - found.confidence) - 1e-12 <= found.ece <= 1
    assert (found.bins["low"].to_numpy()[1:] > found.bins["high"].to_numpy()[:-1]).all()


def test_mass_bins_hold_equal_numbers() -> None:
    found = calibrate(np.random.default_rng(0).random(1000), np.zeros(1000, bool), bins=15)
    assert found.bins["n"].between(66, 67).all()
    # equal confidences stay together, so that bins merge
    assert calibrate([0.9] * 90 + [0.1] * 11, [True] * 101, bins=10).bins["n"].tolist() == [11, 90]
    assert calibrate([0.9] * 100 + [0.1], [True] * 101, bins=10).bins["n"].tolist() == [101]


def test_the_bias_of_ece_is_as_stated() -> None:
    rng = np.random.default_rng(0)
    eces = []
    for _ in range(200):
        sure = rng.random(1000)
        eces.append(calibrate(sure, rng.random(1000) < sure).ece)
    assert np.mean(eces) == pytest.approx(math.sqrt(15 / 1000) / 3, rel=0.15)


def test_a_sure_error_costs_much_but_not_everything() -> None:
    assert calibrate([1.0, 0.0], [True, False]).nll == pytest.approx(0, abs=1e-12)
    assert calibrate([1.0], [False]).nll == pytest.approx(36.04, abs=0.01)
    assert calibrate([1.0000009], [True]).confidence == 1.0  # the log's rounding


def test_unknown_confidences_are_left_out_and_nothing_is_nan() -> None:
    assert calibrate([*CONFIDENCE, math.nan], [*CORRECT, True], bins=2).ece == calibrate(CONFIDENCE, CORRECT, 2).ece
    nothing = calibrate([math.nan], [True])
    assert nothing.n == 0
    assert len(nothing.bins) == 0
    assert all(math.isnan(x) for x in (nothing.ece, nothing.brier, nothing.nll, nothing.accuracy, nothing.auroc.value))
    assert len(flip_rate_by_margin([], [])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-0.1], [True]), "exp"),
        (([1.5], [True]), "exp"),
        (([0.5], [True], 0), "0 bins"),
        (([0.5], [True], 5, "size"), "mass or width"),
        (([0.5], [True, False]), "not one of each"),
    ],
)
def test_wrong_input_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(*arguments)


def test_flip_rate_by_margin_by_hand() -> None:
    margin = [0.1, 3.0, 0.2, math.nan, 5.0, 1.0, 0.3]
    flipped = [True, False, True, True, False, False, False]
    table = flip_rate_by_margin(margin, flipped, bins=2)
    assert table["low"].tolist() == [0.1, 1.0]
    assert table["high"].tolist() == [0.3, 5.0]
    assert table["n"].tolist() == [3, 3]
    assert table["rate"].tolist() == pytest.approx([2 / 3, 0])
    assert table["rate_high"].tolist() == [wilson(2, 3).high, wilson(0, 3).high]


def test_auroc_of_ties_and_of_clean_parting() -> None:
    assert auroc([1, 1, 1, 1], [True, False, True, False]).value == 0.5
    assert auroc([1, 2, 2, 3], [False, True, False, True]).value == 0.875
    parted = auroc([3, 4, 1, 2], [True, True, False, False])
    assert (parted.value, math.isnan(parted.low)) == (1.0, True)
    assert math.isnan(auroc([1, 2, 3], [True, False, False]).low)
    assert auroc([1, 2], [True, True]) is NO_RATE


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auroc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    values, positive = (np.array(column) for column in zip(*rows, strict=True))
    above, below = values[positive], values[~positive]
    rate = auroc(values, positive)
    if not (len(above) and len(below)):
        assert rate is NO_RATE
        return
    wins = (above[:, None] > below).mean() + 0.5 * (above[:, None] == below).mean()
    assert rate.value == pytest.approx(wins)
    turned = auroc(-values, positive)
    assert turned.value == pytest.approx(1 - rate.value)
    assert (turned.low, turned.high) == pytest.approx((1 - rate.high, 1 - rate.low), nan_ok=True)


def test_delong_covers() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        values = np.concatenate([rng.normal(1, 1, 60), rng.normal(0, 1, 90)])
        rate = auroc(values, np.arange(150) < 60)
        covered += rate.low <= 0.7602499389 <= rate.high  # Phi(1 / sqrt 2)
    assert 0.91 <= covered / 300 <= 0.98
