from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_eval_stability.divergence import wilson
from lmms_eval_stability.openanswers import compare_open_answers, first_divergent_token, token_f1


@pytest.mark.parametrize(
    ("baseline", "run", "place", "f1"),
    [
        ("a red cat", "a red cat", None, 1.0),
        ("a red cat", "  a red\ncat ", None, 1.0),
        ("a red cat", "a blue cat", 1, 2 / 3),
        ("a red cat", "a red", 2, 4 / 5),
        ("a red", "a red cat", 2, 4 / 5),
        ("a red cat", "cat red a", 0, 1.0),
        ("cat cat cat", "cat", 1, 1 / 2),
        ("Cat.", "cat", 0, 0.0),
        ("", "", None, 1.0),
        ("", "cat", 0, 0.0),
        ("cat", " ", 0, 0.0),
    ],
)
def test_by_hand(baseline: str, run: str, place: int | None, f1: float) -> None:
    assert first_divergent_token(baseline, run) == place
    assert token_f1(baseline, run) == pytest.approx(f1)


def test_summary_by_hand() -> None:
    found = compare_open_answers(["a b c d", "x y", "", "same"], ["a b z d", "x", "new", "same"])
    assert found.n == 4
    assert found.same == wilson(1, 4)
    assert found.first_divergent == 1  # of 2, 1, 0
    assert found.kept == pytest.approx((2 / 4 + 1 / 2 + 0 + 1) / 4)
    assert found.token_f1 == pytest.approx((3 / 4 + 2 / 3 + 0 + 1) / 4)
    assert found.token_f1_changed == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)


def test_nothing_is_nan() -> None:
    nothing = compare_open_answers([], [])
    assert nothing.n == 0
    assert all(math.isnan(x) for x in (nothing.same.value, nothing.kept, nothing.token_f1, nothing.first_divergent))
    same = compare_open_answers(["a"], ["a"])
    assert (same.kept, same.token_f1, math.isnan(same.first_divergent)) == (1.0, 1.0, True)
    assert math.isnan(same.token_f1_changed)
    with pytest.raises(ValueError, match="1 answers against 0"):
        compare_open_answers(["a"], [])


TEXT = st.lists(st.sampled_from(["a", "b", "c", "the"]), max_size=6).map(" ".join)


@settings(deadline=None, max_examples=100)
@given(TEXT, TEXT)
def test_swapping_the_answers_changes_nothing(one: str, other: str) -> None:
    place = first_divergent_token(one, other)
    assert place == first_divergent_token(other, one)
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    assert 0 <= token_f1(one, other) <= 1
    assert (place is None) == (one == other)
    if place is not None:
        assert one.split()[:place] == other.split()[:place]
        assert one.split()[: place + 1] != other.split()[: place + 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_order_of_pairs_does_not_matter(pairs: list[tuple[str, str]], random: object) -> None:
    shuffled = random.sample(pairs, len(pairs))
    one, other = (compare_open_answers(*zip(*rows, strict=True)) for rows in (pairs, shuffled))
    assert list(vars(one).values())[2:] == pytest.approx(list(vars(other).values())[2:], nan_ok=True)
    assert one.same == other.same
