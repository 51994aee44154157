from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_eval_stability.calibration import TopTokens
from lmms_eval_stability.logits import compare_first_tokens, first_token_kl


def logged(*rows: dict[int, float] | None) -> TopTokens:
    """Each row: token -> probability."""
    return TopTokens.from_log(
        None if row is None else [[token, "", math.log(p)] for token, p in sorted(row.items(), key=lambda x: -x[1])]
        for row in rows
    )


def test_all_logged_tokens_in_common_by_hand() -> None:
    kl = first_token_kl(logged({1: 0.6, 2: 0.3}), logged({1: 0.3, 2: 0.6}))[0]
    # rest .1 on both sides adds nothing
    assert kl == pytest.approx(0.6 * math.log(2) - 0.3 * math.log(2))


def test_a_token_that_the_run_does_not_log_by_hand() -> None:
    base, run = logged({1: 0.8, 2: 0.15}), logged({3: 0.7, 2: 0.2})
    # token 1 is not in the run's log: at most .1 (all that is left), less than the least logged .2
    # others: .05 in the baseline, .7 + .1 - .1 in the run
    expected = 0.15 * math.log(0.15 / 0.2) + 0.8 * math.log(0.8 / 0.1) + 0.05 * math.log(0.05 / 0.7)
    assert first_token_kl(base, run)[0] == pytest.approx(expected)
    # lumped together with the rest it would have been nearly nothing
    assert expected > 1
    lumped = 0.15 * math.log(0.15 / 0.2) + 0.85 * math.log(0.85 / 0.8)
    assert lumped < 0.02


def test_an_unlogged_token_is_no_likelier_than_the_least_logged_one() -> None:
    # .6 of the run is not logged, but token 1 cannot have more of it than .1, which token 3 has
    kl = first_token_kl(logged({1: 0.5, 2: 0.3}), logged({2: 0.3, 3: 0.1}))[0]
    assert kl == pytest.approx(0.5 * math.log(0.5 / 0.1) + 0.2 * math.log(0.2 / 0.6))
    # two such tokens can have twice that
    two = first_token_kl(logged({1: 0.3, 4: 0.2, 2: 0.3}), logged({2: 0.3, 3: 0.1}))[0]
    assert two == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.2 * math.log(0.2 / 0.5))


def test_no_token_in_common_is_still_a_number_and_counted() -> None:
    found = compare_first_tokens(logged({1: 0.9}, {1: 0.9}), logged({2: 0.9}, {1: 0.9}))
    assert (found.n, found.missing, found.no_common) == (2, 0, 1)
    assert found.same_top.value == 0.5
    # token 1 has at most .1 in the run, and the others .9
    one = 0.9 * math.log(0.9 / 0.1) + 0.1 * math.log(0.1 / 0.9)
    assert found.mean_kl == pytest.approx(one / 2)
    assert found.median_kl == pytest.approx(one / 2)
    assert found.p99_kl == pytest.approx(0.99 * one)


def test_samples_without_logits_are_counted_as_missing() -> None:
    found = compare_first_tokens(logged({1: 0.9}, None, {1: 0.9}), logged({1: 0.9}, {1: 0.9}, None))
    assert (found.n, found.missing, found.mean_kl, found.same_top.value) == (1, 2, 0.0, 1.0)
    nothing = compare_first_tokens(logged(None), logged({1: 0.5}))
    assert nothing.n == 0
    assert all(math.isnan(x) for x in (nothing.mean_kl, nothing.p99_kl, nothing.same_top.value))
    with pytest.raises(ValueError, match="pair them first"):
        compare_first_tokens(logged(None), logged())


def test_a_mass_that_the_run_lost_entirely_is_finite() -> None:
    kl = first_token_kl(logged({1: 0.5, 2: 0.5}), logged({1: 1.0}))[0]
    assert kl == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-6))


VOCABULARY = 12
LOGITS = st.lists(st.floats(-6, 6), min_size=VOCABULARY, max_size=VOCABULARY)


def top_five(logits: np.ndarray) -> tuple[TopTokens, np.ndarray]:
    p = np.exp(logits - np.logaddexp.reduce(logits))
    best = np.argsort(-p)[:5]
    return TopTokens.from_log([[[int(i), "", round(float(np.log(p[i])), 6)] for i in best]]), p


@settings(deadline=None, max_examples=200)
@given(LOGITS, LOGITS, st.floats(0, 1))
def test_a_lower_bound_of_the_real_divergence(one: list[float], other: list[float], far: float) -> None:
    first = np.array(one)
    second = (1 - far) * first + far * np.array(other)  # from equal to unrelated
    (base, p), (run, q) = top_five(first), top_five(second)
    real = float((p * np.log(p / q)).sum())
    bound = first_token_kl(base, run)[0]
    assert 0 <= bound <= real + 2e-5
    common = sorted(set(base.ids[0]) & set(run.ids[0]))
    coarse_p, coarse_q = (np.append(x[common], 1 - x[common].sum()) for x in (p, q))
    # no worse than the common tokens and one bucket for the rest
    assert bound >= float((coarse_p * np.log(coarse_p / coarse_q)).sum()) - 2e-5


def test_close_to_the_real_divergence_where_five_tokens_hold_the_mass() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(50):
        logits = rng.normal(0, 1, 1000)
        logits[:5] += 12
        (base, p), (run, q) = top_five(logits), top_five(logits + np.append(rng.normal(0, 1, 5), np.zeros(995)))
        real = float((p * np.log(p / q)).sum())
        errors.append((real - first_token_kl(base, run)[0]) / real)
    assert min(errors) > -1e-3
    assert max(errors) < 0.05


def test_the_same_distribution_has_no_divergence() -> None:
    base, _ = top_five(np.random.default_rng(1).normal(0, 2, VOCABULARY))
    assert first_token_kl(base, base)[0] == 0.0


def test_many_samples_are_what_they_are_one_by_one() -> None:
    n = 45_000  # more than are taken at once
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.55, 0.9, n), rng.uniform(0.55, 0.9, n)

    def tokens(first: np.ndarray, second_id: int) -> TopTokens:
        ids = np.tile([1, second_id, -1, -1, -1], (n, 1))
        return TopTokens(ids, np.log(np.stack([first, 0.95 - first, *[np.full(n, np.nan)] * 3], axis=1)))

    base, run = tokens(p, 2), tokens(q, 2)
    found = compare_first_tokens(base, run)
    assert found.n == n
    assert found.no_common == 0
    assert found.mean_kl == pytest.approx(first_token_kl(base, run).mean())
    assert compare_first_tokens(base.part(0, 0), run.part(0, 0)).n == 0
