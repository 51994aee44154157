"""Intervals of scores and drops: exact where scores are 0 or 1, never too narrow where they are soft."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from lmms_eval_stability.paper.ours import difference, share


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (560, 900), (1, 214354)])
def test_shares_have_wilsons_interval(k: int, n: int) -> None:
    rate = share(k / n, n)
    low, high = proportion_confint(k, n, method="wilson")
    assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))
    assert rate.low <= rate.value <= rate.high


def test_differences_have_agresti_and_mins() -> None:
    """Agresti and Min (2005), Statistics in Medicine 24: half a pair added to each cell of the 2 x 2 table."""
    lost, gained, n = 12, 5, 100
    b, c, size = lost + 0.5, gained + 0.5, n + 2
    centre = (b - c) / size
    half = 1.959963984540054 * (((b + c) - (b - c) ** 2 / size) ** 0.5) / size
    rate = difference((lost - gained) / n, (lost + gained) / n, n)
    assert (rate.low, rate.high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    assert rate.value == pytest.approx(0.07)


def test_no_change_is_no_certainty() -> None:
    rate = difference(0.0, 0.0, 50)
    assert rate.low < 0 < rate.high
    assert isnan(difference(0.0, 0.0, 0).value)
    assert isnan(share(0.5, 0).value)
    assert isnan(share(float("nan"), 5).value)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_cover_the_true_values(seed: int) -> None:
    """Nominal 95 %: near it for scores of 0 and 1, and at least that for soft ones."""
    rng = np.random.default_rng(seed)
    n, repeats, inside = 300, 1500, dict.fromkeys(("score", "drop", "soft score", "soft drop"), 0)
    levels = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
    for _ in range(repeats):
        # right before 60 %; of the right 10 % become wrong, of the wrong 5 % right
        before = rng.random(n) < 0.6
        after = np.where(before, rng.random(n) >= 0.1, rng.random(n) < 0.05)
        low, drop = share(after.mean(), n), difference(before.mean() - after.mean(), (before != after).mean(), n)
        inside["score"] += low.low <= 0.56 <= low.high
        inside["drop"] += drop.low <= 0.04 <= drop.high
        soft = levels[rng.integers(5, size=n)]
        moved = np.where(rng.random(n) < 0.2, levels[rng.integers(5, size=n)], soft)
        rate = share(moved.mean(), n)
        change = difference(soft.mean() - moved.mean(), np.abs(soft - moved).mean(), n)
        inside["soft score"] += rate.low <= 0.56 <= rate.high
        inside["soft drop"] += change.low <= 0.0 <= change.high
    covered = {name: count / repeats for name, count in inside.items()}
    assert 0.93 <= covered["score"] <= 0.97
    assert 0.93 <= covered["drop"] <= 0.97
    assert covered["soft score"] >= 0.97
    assert covered["soft drop"] >= 0.97
