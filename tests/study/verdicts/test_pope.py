"""POPE against lmms-eval's scoring and aggregation."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lmms_eval_stability.verdicts import adapter_for, judge_line
from lmms_eval_stability.verdicts.pope import normalise, rates

from ..conftest import sample
from .answers import generated


@pytest.fixture(scope="module")
def pope() -> Any:
    from lmms_eval.tasks.pope import utils

    return utils


def test_answers_and_scores_equal_lmms_evals(pope: Any) -> None:
    rng = random.Random(3)
    usual = ["yes", "no", " Yes", "NO\n", "yes.", "Yes, a dog"]
    answers = [*generated(5500, 3), *(rng.choice(usual) for _ in range(1000))]
    for answer in answers:
        for target in ("yes", "No "):
            logged = pope.pope_process_results({"answer": target, "question_id": 1}, [answer.strip()])["pope_accuracy"]
            assert normalise(answer) == logged["prediction"], answer
            row = {**sample(0, answer, None, target=target), "pope_accuracy": logged}
            verdict = judge_line(row, adapter_for("pope"), "pope_accuracy")
            assert (verdict.prediction, verdict.score) == (logged["prediction"], logged["score"])
            assert verdict.correct == (normalise(answer) == normalise(target))


@pytest.mark.parametrize("seed", range(60))
def test_rates_equal_lmms_evals_aggregation(pope: Any, seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([1, 2, 5, 100, 300])
    kinds = rng.choice([["yes"], ["no"], ["maybe"], ["yes", "no"], ["yes", "no", "no", "yes.", ""]])
    said, truth = [rng.choice(kinds) for _ in range(n)], [rng.choice(["yes", "no"]) for _ in range(n)]
    logged = [
        {"score": float(a == b), "prediction": a, "ground_truth": b} for a, b in zip(said, truth, strict=True)
    ]  # fmt: skip
    ours = rates(np.array(said, dtype=object), np.array(truth, dtype=object))
    assert ours["F1"] == pytest.approx(pope.pope_aggregate_f1_score(logged))
    assert ours["precision"] == pytest.approx(pope.pope_aggregate_precision(logged))
    assert ours["recall"] == pytest.approx(pope.pope_aggregate_recall(logged))
    assert ours["yes rate"] == said.count("yes") / n
    assert ours["neither yes nor no"] == pytest.approx(1 - (said.count("yes") + said.count("no")) / n)


def test_the_yes_rate_is_that_of_the_answers_not_of_the_references(pope: Any) -> None:
    logged = [{"ground_truth": "yes", "prediction": "no"}] * 4
    assert pope.pope_aggregate_yes_ratio(logged) == 1.0
    assert rates(np.array(["no"] * 4, dtype=object), np.array(["yes"] * 4, dtype=object))["yes rate"] == 0.0


def test_nothing_to_count_has_no_rate() -> None:
    nothing = np.array([], dtype=object)
    assert all(np.isnan(value) for value in rates(nothing, nothing).values())
