"""`compare --reliability --ood` and corruption errors, from logs to every output."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sklearn.metrics import roc_auc_score

from lmms_eval_stability import compare_runs

from .conftest import WriteRun, sample, samples
from .test_summary_schema import valid

Compare = Callable[..., Result]
PAIR = "shapes_vqa:shapes_vqa_ood"


def sure(i: int, confidence: float, score: float = 1.0, **more: Any) -> dict[str, Any]:
    counts = {
        "output_tokens": 1,
        "first_token_logprobs": [[5, "a", log(confidence)], [6, "b", log(1 - confidence)]],
        "answer_logprob": log(confidence),
    }
    return sample(i, "yes" if score else "no", score, **{"token_counts": [counts], **more})


def record(i: int, kind: str) -> dict[str, Any]:
    return {"shapes_record": {"kind": kind, "image_id": str(i // 2)}}


INSIDE, OUTSIDE = [0.9, 0.8, 0.95, 0.85, 0.7, 0.9], [0.6, 0.8, 0.55, 0.65]
AFTER_IN, AFTER_OUT = [0.9, 0.8, 0.6, 0.85, 0.7, 0.9], [0.6, 0.95, 0.55, 0.65]


def two(inside: list[float], outside: list[float]) -> dict[str, list[dict[str, Any]]]:
    kinds = ("shape", "count")
    return {
        "shapes_vqa": [sure(i, one, **record(i, kinds[i // 3])) for i, one in enumerate(inside)],
        "shapes_vqa_ood": [sure(i, one, i % 2, **record(i, "shape")) for i, one in enumerate(outside)],
    }


@pytest.fixture
def runs(write_run: WriteRun) -> tuple[Path, Path]:
    return write_run("base", two(INSIDE, OUTSIDE)), write_run("run", two(AFTER_IN, AFTER_OUT), model="llava_fastv")


def auroc(inside: list[float], outside: list[float]) -> float:
    return float(roc_auc_score([1] * len(inside) + [0] * len(outside), inside + outside))


def test_every_output(runs: tuple[Path, Path], run_compare: Compare, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    done = run_compare(*runs, "--reliability", "--ood", PAIR, "-o", folder, "--html")
    assert done.exit_code == 0, done.output
    title = "shapes_vqa (n 6) told from shapes_vqa_ood (OOD, n 4) by answer confidence"
    assert title in done.stdout
    assert "FPR at 95% TPR" in done.stdout
    (run,) = json.loads((folder / "summary.json").read_text())["runs"]
    (pair,) = run["ood_detection"]
    assert (pair["inside"], pair["outside"], pair["missing"]) == ("shapes_vqa", "shapes_vqa_ood", "")
    assert [kind["kind"] for kind in pair["kinds"]] == ["answer", "first token"]
    kind = pair["kinds"][0]
    assert [kind[name] for name in ("n_in", "n_out", "clusters_in", "clusters_out")] == [6, 4, 3, 2]
    found = {score["name"]: score for score in kind["scores"]}
    before, after = auroc(INSIDE, OUTSIDE), auroc(AFTER_IN, AFTER_OUT)
    assert found["auroc"]["baseline"]["value"] == pytest.approx(before)
    assert found["auroc"]["run"]["value"] == pytest.approx(after)
    assert found["auroc"]["difference"]["value"] == pytest.approx(after - before)
    lines = list(csv.DictReader((folder / "ood.csv").open()))
    assert len(lines) == 2 * len(found)
    assert float(lines[0]["value"]) == pytest.approx(after)
    assert not (folder / "corruption.csv").exists()
    assert "told from shapes\\_vqa\\_ood" in (folder / "divergence.md").read_text()
    assert title in (folder / "report.html").read_text()


def test_the_summary_is_what_its_schema_says(runs: tuple[Path, Path], run_compare: Compare) -> None:
    summary = valid(run_compare(*runs, "--reliability", "--ood", PAIR, "--format", "json"))
    assert summary["runs"][0]["ood_detection"][0]["kinds"]
    plain = valid(run_compare(*runs, "--reliability", "--format", "json"))
    assert plain["runs"][0]["ood_detection"] == plain["runs"][0]["corruption"] == []


@pytest.mark.parametrize("part", ["shapes_vqa@count", "shapes_vqa@kind=count"])
def test_a_part_of_a_task_by_category(runs: tuple[Path, Path], part: str) -> None:
    # what is sure in the log, whatever it is called: the first three of six are of kind shape, the others count
    found = compare_runs(runs[0], [runs[1]], reliability=True, ood=[f"shapes_vqa@shape:{part}"])
    (kind, _) = found.runs[0].detection[0].kinds
    assert (kind.n_in, kind.n_out) == (3, 3)
    assert kind.scores[0].baseline.value == pytest.approx(auroc(INSIDE[:3], INSIDE[3:]))


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        ("shapes_vqa", "write ID_TASK:OOD_TASK"),
        ("shapes_vqa:shapes_vqa", "both sides are the same samples"),
        ("shapes_vqa@:shapes_vqa_ood", "names no task"),
        ("shapes_vqa:gqa", "task gqa is not compared; compared are shapes_vqa, shapes_vqa_ood"),
        ("shapes_vqa@size:shapes_vqa_ood", "the log names no such part of shapes_vqa; it names kind=count, shape"),
        ("shapes_vqa@split=count:shapes_vqa_ood", "no such part"),
        ("shapes_vqa@count:shapes_vqa", "3 samples are in both parts"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    runs: tuple[Path, Path], run_compare: Compare, ood: str, message: str
) -> None:
    done = run_compare(*runs, "--reliability", "--ood", ood)
    assert done.exit_code == 2
    assert message in done.stderr


def test_it_is_part_of_reliability_and_needs_log_probabilities(
    runs: tuple[Path, Path], run_compare: Compare, write_run: WriteRun
) -> None:
    done = run_compare(*runs, "--ood", PAIR)
    assert (done.exit_code, "--ood is part of --reliability: add it" in done.stderr) == (2, True)
    bare = {**two(INSIDE, OUTSIDE), "shapes_vqa_ood": samples("a b c d", [1.0] * 4)}
    done = run_compare(write_run("a", bare), write_run("b", bare, model="m"), "--reliability", "--ood", PAIR)
    assert done.exit_code == 2
    assert "no sample of shapes_vqa_ood has log-probabilities in both logs" in done.stderr


def test_a_run_without_them_is_named_beside_one_that_has_them(
    runs: tuple[Path, Path], run_compare: Compare, write_run: WriteRun
) -> None:
    rows = {**two(INSIDE, OUTSIDE), "shapes_vqa_ood": [sample(i, "yes", 1.0, **record(i, "shape")) for i in range(4)]}
    other = write_run("bare", rows, model="llava_int8")
    done = run_compare(*runs, other, "--reliability", "--ood", PAIR)
    assert done.exit_code == 0, done.output
    why = "no sample of shapes_vqa_ood has log-probabilities in both logs (llava_int8)"
    assert f"reliability: shapes_vqa against shapes_vqa_ood: {why}" in done.stdout


def perturbed(scores: list[float]) -> list[dict[str, Any]]:
    levels = [("fog", "1"), ("fog", "2"), ("snow", "1"), ("snow", "1")]
    said = [{"method": method, "severity": severity, "changed": True} for method, severity in levels]
    return [sure(i, 0.9, score, perturbation=said[i % 4]) for i, score in enumerate(scores)]


def test_corruption_errors_from_logs_to_every_output(write_run: WriteRun, run_compare: Compare, tmp_path: Path) -> None:
    task, folder = "shapes_vqa_image_perturbed", tmp_path / "report"
    configs = {"configs": {task: {"metadata": [{"base_task": "shapes_vqa", "perturbation": {}}]}}}
    # the perturbed task comes first in both: the clean one is read after it
    base = {task: perturbed([1, 0, 0, 1] * 2), "shapes_vqa": [sure(i, 0.9, float(i > 0)) for i in range(10)]}
    worse = {task: perturbed([0, 0, 0, 1] * 2), "shapes_vqa": [sure(i, 0.9, float(i > 1)) for i in range(10)]}
    runs = (write_run("base", base, **configs), write_run("run", worse, model="llava_fastv", **configs))
    done = run_compare(*runs, "--reliability", "-o", folder)
    assert done.exit_code == 0, done.output
    assert f"Corruption errors, {task}: 2 methods" in done.stdout
    (found,) = json.loads((folder / "summary.json").read_text())["runs"][0]["corruption"]
    assert (found["task"], found["clean_task"], found["missing"]) == (task, "shapes_vqa", "")
    errors = {error["method"]: error for error in found["errors"]}
    # fog: 0 and 1 at its two levels for the baseline, 1 and 1 for the run; clean: 0.1 and 0.2
    assert errors["fog"]["ce"] == 2.0
    assert errors["fog"]["relative_ce"] == pytest.approx((2 - 0.4) / (1 - 0.2))
    assert errors["snow"]["ce"] == 1.0
    assert errors["mean"]["ce"] == 1.5
    assert errors["mean"]["relative_ce"] == pytest.approx((2.0 + 0.3 / 0.4) / 2)
    lines = list(csv.DictReader((folder / "corruption.csv").open()))
    assert [line["method"] for line in lines] == ["fog", "snow", "mean"]
    assert lines[0]["task"] == task
    valid(run_compare(*runs, "--reliability", "--format", "json"))
    alone = run_compare(*runs, "--reliability", "--task", task)
    assert f"relative CE ({task}): the task without perturbations is not compared here" in alone.stdout


def test_scores_without_an_error_rate_are_said_not_counted(write_run: WriteRun, run_compare: Compare) -> None:
    rows = perturbed([50.0, 40.0, 30.0, 20.0])
    base, run = write_run("base", {"some_perturbed": rows}), write_run("run", {"some_perturbed": rows}, model="m")
    done = run_compare(base, run, "--reliability")
    assert done.exit_code == 0, done.output
    assert "reliability: task some_perturbed: scores from 20 to 50 have no error rate" in done.stdout
