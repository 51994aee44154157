"""What is made of real lmms-eval runs: a gate for pipelines, a leaderboard file, a summary as its schema says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.end_to_end.conftest import LIMIT, FinishedRun

RunModel = Callable[..., FinishedRun]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "lmms_eval_stability.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def runs(run_model: RunModel) -> tuple[FinishedRun, FinishedRun]:
    return run_model("llava_baseline", "pretrained=demo"), run_model("llava_fastv", "pretrained=demo,k=3,r=0.75")


def test_reports_of_real_runs(runs: tuple[FinishedRun, FinishedRun], tmp_path: Path) -> None:
    from lmms_eval.utils import make_table

    base, fastv = runs
    done = command("compare", base.folder, fastv.folder, "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    schema = json.loads(files("lmms_eval_stability.report").joinpath("summary.schema.json").read_text("utf-8"))
    assert [error.message for error in Draft202012Validator(schema).iter_errors(summary)] == []
    (record,) = summary["comparisons"]

    (leaderboard,) = (tmp_path / "report").glob("leaderboard_*.json")
    document = json.loads(leaderboard.read_text(encoding="utf-8"))
    before, after = make_table(copy.deepcopy(fastv.results)), make_table(document)
    assert "|dr " not in before
    added = {line.split("|")[4].strip(): line.split("|") for line in after.splitlines() if line.startswith("|")}
    assert float(added["ndr"][6]) == round(record["ndr"], 4)
    assert float(added["dr"][8]) == pytest.approx((record["dr"] * (1 - record["dr"]) / (LIMIT - 1)) ** 0.5, abs=1e-4)

    loose, tight = tmp_path / "loose.yaml", tmp_path / "tight.yaml"
    loose.write_text("tasks: {shapes_vqa: {ndr: 60}}")
    tight.write_text("tasks: {shapes_vqa: {dr: {max: 0, judge: point}}}")
    assert record["dr"] > 0  # the demo really diverges
    assert command("gate", loose, tmp_path / "report").returncode == 0
    assert command("gate", tight, tmp_path / "report", "--junit", tmp_path / "gate.xml").returncode == 1
    assert "<failure" in (tmp_path / "gate.xml").read_text(encoding="utf-8")
    # no re-run, no excess DR
    tight.write_text("tasks: {shapes_vqa: {ndr_low: 99, excess_dr: 50}}")
    assert command("gate", tight, tmp_path / "report").returncode == 3
