"""Real lmms-eval processes on the embedded model, each run once per test session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIMIT = 60


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run and what it logged, by document."""

    folder: Path
    lines: dict[int, dict[str, Any]]
    results: dict[str, Any]
    output: str


def run_lmms_eval(folder: Path, *arguments: str, launcher: tuple[str, ...] = ("-m",), **env: str) -> FinishedRun:
    command = [sys.executable, *launcher, "lmms_eval", *arguments, "--tasks", "shapes_vqa", "--limit", str(LIMIT)]
    command += ["--log_samples", "--output_path", str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", **env}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    output = done.stdout + done.stderr
    logs = list(folder.glob("*/*_samples_shapes_vqa.jsonl"))
    assert len(logs) == 1, output[-4000:]
    lines = [json.loads(line) for line in logs[0].read_text(encoding="utf-8").splitlines()]
    results = json.loads(next(folder.glob("*/*_results.json")).read_text(encoding="utf-8"))
    by_document = {line["doc_id"]: line for line in lines}
    assert len(by_document) == len(lines) == LIMIT
    return FinishedRun(folder, by_document, results, output)


@pytest.fixture(scope="session")
def run_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinishedRun]:
    """Return a function (model, model_args) -> finished run; equal runs are made once."""
    finished: dict[tuple[str, str], FinishedRun] = {}

    def run(model: str, model_args: str) -> FinishedRun:
        if (model, model_args) not in finished:
            folder = tmp_path_factory.mktemp(model)
            finished[model, model_args] = run_lmms_eval(folder, "--model", model, "--model_args", model_args)
        return finished[model, model_args]

    return run
