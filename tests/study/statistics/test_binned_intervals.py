"""Intervals of sums over bins of |gap|: the correction against integrals, and their coverage beside percentiles'."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from scipy.stats import norm

from lmms_eval_stability.binned_intervals import (
    LARGEST_BIAS,
    Gaps,
    corrected_difference,
    corrected_size,
)

BINS = 15
LOCATIONS = np.linspace(0, 6, 241)


def test_the_bias_is_as_small_as_stated_wherever_the_gap_lies() -> None:
    noise = np.linspace(-8, 8, 8001)
    chance = norm.pdf(noise) * (noise[1] - noise[0])
    gaps = 0.3 * (LOCATIONS[:, None, None] + noise[:, None])  # one bin, standard error 0.3
    bias = corrected_size(gaps, np.array([0.3]))[..., 0] @ chance / 0.3 - LOCATIONS
    assert 0.9 * LARGEST_BIAS < np.abs(bias).max() <= LARGEST_BIAS
    plain = np.abs(gaps)[..., 0] @ chance / 0.3 - LOCATIONS
    assert plain.max() == pytest.approx(np.sqrt(2 / np.pi), abs=1e-3)


def test_far_from_the_kink_and_without_noise_nothing_is_corrected() -> None:
    gaps = np.array([-0.5, 0.2, 0.0])
    np.testing.assert_allclose(corrected_size(gaps, np.array([0.05, 0.02, 0.0])), np.abs(gaps), atol=1e-9)


def made(rng: np.random.Generator, truth: np.ndarray, error: float = 0.01, draws: int = 400) -> Gaps:
    """Found gaps and draws of independent bins with normal noise."""
    found = truth + error * rng.normal(size=BINS)
    return Gaps(found, found + error * rng.normal(size=(draws, BINS)), np.zeros(BINS))


def test_parts_add_up_and_sides_change_places() -> None:
    rng = np.random.default_rng(1)
    one, other = made(rng, np.zeros(BINS)), made(rng, np.linspace(-0.04, 0.04, BINS))
    size, over, under = (corrected_difference(one, other, part) for part in ("size", "over", "under"))
    assert over.value + under.value == pytest.approx(size.value)
    assert over.value - under.value == pytest.approx(float((other.values - one.values).sum()))
    back = corrected_difference(other, one, "over")
    assert (back.value, back.low, back.high) == pytest.approx((-over.value, -over.high, -over.low))
    mirrored = [Gaps(-side.values, -side.drawn, side.calibrated) for side in (one, other)]
    assert corrected_difference(*mirrored, "under") == over
    narrow = corrected_difference(one, other, "over", level=0.5)
    assert over.low < narrow.low < narrow.value < narrow.high < over.high


def test_clear_gaps_have_the_plain_normal_interval() -> None:
    # 10 and 20 standard errors from the kink there is no bias to allow for
    rng = np.random.default_rng(2)
    one, other = made(rng, np.full(BINS, 0.1)), made(rng, np.full(BINS, -0.2))
    found = corrected_difference(one, other)
    assert found.value == pytest.approx(-other.values.sum() - one.values.sum())
    spread = (np.abs(other.drawn).sum(axis=1) - np.abs(one.drawn).sum(axis=1)).std()
    assert found.high - found.value == pytest.approx(1.959964 * spread, rel=1e-5)


def test_no_draws_or_equal_draws_have_no_interval() -> None:
    side = made(np.random.default_rng(3), np.zeros(BINS))
    assert isnan(corrected_difference(side, side).low)
    bare = Gaps(side.values, side.drawn[:0], side.calibrated)
    assert isnan(corrected_difference(bare, bare).value)
    with pytest.raises(ValueError, match="size, over or under"):
        corrected_difference(side, side, "both")


def test_a_bin_without_a_wrong_answer_is_not_taken_for_certain() -> None:
    # all right at 0.96: the draws show no noise to speak of, but a calibrated model would err now and then
    rng = np.random.default_rng(4)
    found = np.full(BINS, -0.04 / BINS)
    quiet = Gaps(found, found + 1e-5 * rng.normal(size=(400, BINS)), np.full(BINS, 0.05 / BINS))
    loud = made(rng, np.full(BINS, 0.1))
    assert corrected_difference(quiet, loud).value > np.abs(loud.values).sum() - np.abs(found).sum() + 0.01


@pytest.mark.parametrize("errors", [0.0, 1.0, 1.5, 3.0])
def test_intervals_cover_where_percentiles_do_not(errors: float) -> None:
    """A calibrated baseline; the run's gaps are so many standard errors, of either sign."""
    rng, held = np.random.default_rng(5), {"ours": 0, "percentiles": 0}
    gaps = 0.01 * errors * np.where(np.arange(BINS) % 2 == 0, 1, -1)
    truth = float(np.abs(gaps).sum())
    for _ in range(200):
        one, other = made(rng, np.zeros(BINS)), made(rng, gaps)
        found = corrected_difference(one, other)
        held["ours"] += found.low <= truth <= found.high
        low, high = np.quantile(np.abs(other.drawn).sum(axis=1) - np.abs(one.drawn).sum(axis=1), [0.025, 0.975])
        held["percentiles"] += low <= truth <= high
    assert held["ours"] >= 182  # 95 % of 200 give fewer in 1 of 100 cases
    if errors > 1:
        assert held["percentiles"] < 100
