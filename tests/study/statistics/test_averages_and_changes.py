from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_eval_stability.averages import WEIGHTED_AVERAGE, weighted_average
from lmms_eval_stability.changes import changes
from lmms_eval_stability.divergence import average, diverge, mcnemar_exact, wilson
from lmms_eval_stability.noise import with_floor
from lmms_eval_stability.pairing import PairedSamples
from tests.study.statistics.builders import pairs

SMALL = pairs([1, 1, 0, 0], [0, 1, 1, 0], (["a", "b", "c", "d"], ["x", "b", "y", "z"]))
LARGE = pairs([1] * 16, [0] * 4 + [1] * 12)


def rows(*tasks: PairedSamples) -> list:  # type: ignore[type-arg]
    return [diverge(task, "base", "run") for task in tasks]


def test_changes_by_hand() -> None:
    found = changes(SMALL)
    assert found.n == 4
    groups = (found.same, found.right_to_wrong, found.wrong_to_right, found.wrong_to_other_wrong)
    assert all(group == wilson(1, 4) for group in groups)
    assert found.right_to_other_right == wilson(0, 4)
    soft = changes(pairs([1.0, 0.3], [0.9, 0.3], (["a", "b"], ["c", "d"])))
    assert (soft.right_to_other_right.value, soft.wrong_to_other_wrong.value) == (0.5, 0.5)
    assert math.isnan(changes(pairs([], [])).wrong_to_other_wrong.value)


SCORE = st.sampled_from([0.0, 0.3, 0.9, 1.0])
ROWS = st.lists(st.tuples(SCORE, SCORE, st.sampled_from("ab"), st.sampled_from("ab")), min_size=1, max_size=25)


@settings(deadline=None, max_examples=80)
@given(ROWS)
def test_changes_add_up_and_turn_round(data: list[tuple[float, float, str, str]]) -> None:
    before, after, one, other = zip(*data, strict=True)
    row = diverge(joined := pairs(before, after, (one, other)), "base", "run")
    found, back = changes(joined), changes(pairs(after, before, (other, one)))
    moved = (found.right_to_wrong, found.wrong_to_right, found.wrong_to_other_wrong, found.right_to_other_right)
    assert found.same.value + sum(rate.value for rate in moved) == pytest.approx(1)
    assert sum(rate.value for rate in moved) - row.same_prediction_flips / row.n == pytest.approx(row.dr.value)
    assert (found.right_to_wrong, found.wrong_to_right) == (row.ndr, row.pdr)
    assert (back.right_to_wrong, back.wrong_to_right) == (found.wrong_to_right, found.right_to_wrong)
    assert back.wrong_to_other_wrong == found.wrong_to_other_wrong
    assert back.same == found.same


def test_weighted_average_by_hand() -> None:
    both = rows(SMALL, LARGE)
    mean = weighted_average(both, [2, 16])
    assert (mean.task, mean.n, mean.tasks) == (WEIGHTED_AVERAGE, 20, 2)
    assert mean.ndr == wilson(5, 20)
    assert mean.pdr == wilson(1, 20)
    assert mean.dr == wilson(7, 20)
    assert mean.conditional_ndr == wilson(5, 18)
    assert mean.drop == pytest.approx(4 / 20)
    assert mean.mcnemar_p == mcnemar_exact(5, 1)
    assert average(both).ndr.value == 0.25  # (1/4 + 4/16) / 2: the same by chance; drop is not
    assert average(both).drop == pytest.approx((0 + 0.25) / 2)
    assert math.isnan(weighted_average(both).conditional_ndr.value)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_weighted_average_is_that_of_all_samples_together(tasks: list[list[tuple[float, float, str, str]]]) -> None:
    made = []
    for data in tasks:
        before, after, one, other = zip(*data, strict=True)
        made.append(pairs(before, after, (one, other)))
    whole = diverge(replace(made[0], frame=pd.concat([one.frame for one in made], ignore_index=True)), "base", "run")
    mean = weighted_average(rows(*made), [int(one.frame["correct_baseline"].sum()) for one in made])
    for name in ("dr", "ndr", "pdr", "conditional_ndr"):
        one, other = getattr(mean, name), getattr(whole, name)
        assert [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high], nan_ok=True)
    for name in ("score_baseline", "score_run", "drop", "soft_ndr", "soft_pdr", "mcnemar_p"):
        assert getattr(mean, name) == pytest.approx(getattr(whole, name), abs=1e-12), name
    assert mean.soft_ndr - mean.soft_pdr == pytest.approx(mean.drop, abs=1e-12)
    assert weighted_average(rows(*made[::-1])).dr == mean.dr


def test_tasks_of_one_size_give_the_unweighted_values() -> None:
    both = rows(SMALL, pairs([1, 1, 1, 0], [1, 0, 1, 0]))
    for name in ("dr", "ndr", "pdr"):
        assert getattr(weighted_average(both), name).value == pytest.approx(getattr(average(both), name).value)


def test_floor_needs_a_rerun_of_every_task() -> None:
    small, large = rows(SMALL, LARGE)
    noise = pairs([1] * 16, [1] * 16, (["a"] * 16, ["b"] * 2 + ["a"] * 14))
    assert math.isnan(weighted_average([small, with_floor(large, LARGE, [noise])]).rerun_dr.value)
    calm = pairs([1, 1, 0, 0], [1, 1, 0, 0])
    mean = weighted_average([with_floor(small, SMALL, [calm]), with_floor(large, LARGE, [noise])])
    assert mean.rerun_dr == wilson(2, 20)
    assert mean.excess_dr == pytest.approx(mean.dr.value - 2 / 20)


def test_native_scales_have_no_average_and_nothing_is_nan() -> None:
    mean = weighted_average(rows(SMALL, pairs([80.0], [60.0])))
    assert math.isnan(mean.drop)
    assert mean.ndr.value == 1 / 5
    nothing = weighted_average(rows(pairs([], [])), [0])
    assert all(math.isnan(x) for x in (nothing.dr.value, nothing.drop, nothing.mcnemar_p, nothing.conditional_ndr.low))
    part = weighted_average(rows(SMALL, pairs([], [])), [2, 0])
    assert part.dr == wilson(3, 4)
    assert (part.drop, part.soft_ndr) == (0.0, 0.25)
    with pytest.raises(ValueError, match="no tasks"):
        weighted_average([])
    with pytest.raises(ValueError, match="1 counts for 2 tasks"):
        weighted_average(rows(SMALL, LARGE), [3])
