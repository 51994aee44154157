"""Groups of `shapes_vqa_spurious`: accuracy on either background and of the worst group, as the task computes it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lmms_eval_stability.comparison import compare_runs
from lmms_eval_stability.tasks.shapes_vqa_variants.utils import process_results, worst_group_accuracy

from ..conftest import Row, WriteRun, sample

COLORS = ("red", "green", "blue")


def logged(seed: int, n: int = 240) -> list[Row]:
    """Lines as the task logs them, of answers that are right more often where the background helps."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        answer, group = COLORS[i % 3], "aligned" if i % 4 else "conflicting"
        said = answer if rng.random() < (0.9 if group == "aligned" else 0.5) else "purple"
        doc = {"question_id": str(i), "image_id": str(i), "kind": "color", "answer": answer, "group": group}
        rows.append({**sample(i, said, None, target=answer), **process_results(doc, [said])})
    return rows


def test_the_groups_accuracies_are_those_that_the_task_reports(write_run: WriteRun) -> None:
    runs = {name: logged(seed) for name, seed in (("base", 1), ("fast", 2))}
    folders = [
        write_run(name, {"shapes_vqa_spurious": rows}, args=f"pretrained=demo,r={seed}")
        for seed, (name, rows) in enumerate(runs.items())
    ]
    (run,) = compare_runs(folders[0], [folders[1]]).runs
    metrics = {metric.name: metric for metric in run.metrics}
    assert set(metrics) == {"aligned", "conflicting", "worst group"}
    for side, rows in zip(("baseline", "run"), runs.values(), strict=True):
        worst = worst_group_accuracy([row["worst_group_accuracy"] for row in rows])
        assert getattr(metrics["worst group"], side) == pytest.approx(worst)
        scores: dict[str, list[Any]] = {"aligned": [], "conflicting": []}
        for row in rows:
            scores[row["shapes_record"]["group"]].append(row["exact_match"])
        for group, values in scores.items():
            assert getattr(metrics[group], side) == pytest.approx(sum(values) / len(values))
    assert metrics["worst group"].n == 6
    assert (metrics["aligned"].n, metrics["conflicting"].n) == (180, 60)
    assert {row.category for row in run.categories if row.dimension == "background"} == {"aligned", "conflicting"}


def test_a_log_without_groups_has_no_such_numbers(write_run: WriteRun) -> None:
    rows = [sample(i, answer, 1.0) for i, answer in enumerate(("red", "blue"))]
    folders = [write_run(name, {"shapes_vqa_spurious": rows}, args=f"pretrained={name}") for name in ("one", "two")]
    (run,) = compare_runs(folders[0], [folders[1]]).runs
    assert run.metrics == ()
    assert run.rows[0].dr.value == 0.0
