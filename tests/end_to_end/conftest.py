"""Real lmms-eval processes on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import Output
from tests.integration.running import run_lmms_eval as run_in_one_process

LIMIT = 60
BASELINE = ("llava_baseline", "pretrained=demo")
FASTV = ("llava_fastv", "pretrained=demo,k=3,r=0.75")


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run and what it logged, by document."""

    folder: Path
    lines: dict[int, dict[str, Any]]
    results: dict[str, Any]


def run_lmms_eval(folder: Path, *arguments: str, launcher: tuple[str, ...] = ("-m",), **env: str) -> FinishedRun:
    command = [sys.executable, *launcher, "lmms_eval", *arguments, "--tasks", "shapes_vqa", "--limit", str(LIMIT)]
    command += ["--log_samples", "--output_path", str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", **env}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    return read_run(folder, done.stdout + done.stderr)


def read_run(folder: Path, output: str = "") -> FinishedRun:
    assert len(list(folder.glob("*/*_samples_shapes_vqa.jsonl"))) == 1, output[-4000:]
    lines = Output(folder).lines("shapes_vqa")
    results = json.loads(next(folder.glob("*/*_results.json")).read_text(encoding="utf-8"))
    assert len(lines) == LIMIT
    return FinishedRun(folder, lines, results)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, FinishedRun]:
    """The baseline and FastV, one after the other in one process, which starts once.

    Each has a process of its own elsewhere: FastV on two ranks, which answer the same, the baseline on perturbed tasks.
    """
    folder = tmp_path_factory.mktemp("pair")
    commands = {
        model: ["--model", model, "--model_args", model_args, "--tasks", "shapes_vqa", "--limit", str(LIMIT)]
        for model, model_args in (BASELINE, FASTV)
    }
    outputs = run_in_one_process(commands, folder / "hub", folder)
    base, fastv = (read_run(output.folder) for output in outputs.values())
    return base, fastv
