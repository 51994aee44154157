"""Rank correlations with permutation p-values, against scipy and by hand."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr

from lmms_eval_stability.consistency import RunSpectrum, across_runs, spearman


@pytest.mark.parametrize("n", [5, 8, 300])
def test_rho_and_p_equal_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.integers(0, 6, n) + 0.0  # with ties
    y = x + rng.normal(size=n) * 3
    ours = spearman(x, y)
    assert ours.rho == pytest.approx(spearmanr(x, y).statistic)
    theirs = permutation_test(
        (x,), lambda a: spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=2000 if n > 5 else np.inf,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert ours.exact == (n == 5)
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-9 if n == 5 else 0.04)


def test_seven_points_in_perfect_order_have_the_least_p_that_there_is() -> None:
    found = spearman(range(7), [-value for value in range(7)])
    assert found.exact
    assert found.rho == pytest.approx(-1.0)
    assert found.p == pytest.approx(2 / 5040)


def test_nothing_to_correlate() -> None:
    for x, y in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([], [])):
        found = spearman(x, y)
        assert isnan(found.rho)
        assert found.record() == {"n": len(x), "rho": None, "p": None, "exact": False}
    with pytest.raises(ValueError, match="3 values against 2"):
        spearman([1, 2, 3], [1, 2])


def test_p_is_uniform_where_nothing_is_related() -> None:
    rng = np.random.default_rng(3)
    values = [spearman(rng.normal(size=40), rng.random(40) < 0.4, resamples=199, seed=i).p for i in range(300)]
    assert np.mean(np.array(values) <= 0.05) < 0.09  # 0.05 expected, three standard errors are 0.038
    assert 0.4 < np.mean(values) < 0.6


def test_a_planted_relation_is_found_across_samples_and_across_runs() -> None:
    rng = np.random.default_rng(4)
    runs = []
    for strength in (0.01, 0.02, 0.05, 0.1, 0.2):
        change = rng.random(400) * strength
        changed = rng.random(400) < change * 4
        change[:10] = np.nan  # prompts without an image
        runs.append(RunSpectrum(f"r{strength}", "task", change, changed))
    across = across_runs(runs)
    assert across.exact
    assert across.rho == pytest.approx(-1.0)
    assert across.p == pytest.approx(2 / 120)
    within = runs[-1].correlation()
    assert within.n == 390
    assert within.rho < -0.2
    assert within.p < 0.01
    assert runs[-1].consistency == pytest.approx(1 - runs[-1].changed[10:].mean())


def test_runs_that_log_nothing_take_no_part() -> None:
    silent = RunSpectrum("int8", "task", np.full(3, np.nan), np.array([True, False, True]))
    assert isnan(silent.consistency)
    assert isnan(silent.mean_change)
    assert across_runs([silent, silent]).n == 0
