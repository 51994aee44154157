"""Perturbed tasks in real lmms-eval processes: the same inputs in any order, number of processes and for any model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmms_eval_stability.cli import main

pytestmark = pytest.mark.any_transformers

LIMIT = 24
TASKS = ("shapes_vqa", "shapes_vqa_image_perturbed", "shapes_vqa_text_perturbed")
Logs = dict[str, dict[int, dict[str, Any]]]


def run(folder: Path, model: str, tasks: str, *, launcher: tuple[str, ...] = ("-m",), **env: str) -> Logs:
    command = [sys.executable, *launcher, "lmms_eval", "--model", model, "--model_args", "pretrained=demo"]
    command += ["--tasks", tasks, "--limit", str(LIMIT), "--log_samples", "--output_path", str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", **env}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    logs: Logs = {}
    for file in folder.glob("*/*_samples_*.jsonl"):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        logs[file.stem.partition("_samples_")[2]] = {line["doc_id"]: line for line in lines}
    assert logs, (done.stdout + done.stderr)[-4000:]
    assert all(len(lines) == LIMIT for lines in logs.values())
    return logs


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return run(tmp_path_factory.mktemp("group"), "llava_baseline", "shapes_vqa_perturbed", PYTHONHASHSEED="1")


def shown(logs: Logs, task: str) -> dict[int, Any]:
    """Return what a run says of its inputs: fingerprint of what the model saw, and record of the perturbation."""
    return {
        doc_id: (line["token_counts"][0]["input_fingerprint"], line.get("perturbation"))
        for doc_id, line in logs[task].items()
    }


def test_the_group_runs_the_task_as_it_is_and_perturbed(group: Logs) -> None:
    assert set(group) == set(TASKS)
    clean, image, text = (shown(group, task) for task in TASKS)
    for doc_id in range(LIMIT):
        assert clean[doc_id][1] is None
        for perturbed in (image, text):
            fingerprint, record = perturbed[doc_id]
            assert record["changed"] == (fingerprint != clean[doc_id][0])
            assert record["output_sha"]
        # an image's noise leaves the words alone
        assert group[TASKS[1]][doc_id]["input"] == group[TASKS[0]][doc_id]["input"]
        assert group[TASKS[2]][doc_id]["input"].endswith("Answer the question using a single word or phrase.")
        # and an answer is scored against the same target
        assert (
            group[TASKS[1]][doc_id]["target"] == group[TASKS[2]][doc_id]["target"] == group[TASKS[0]][doc_id]["target"]
        )
    assert len({record["method"] for _, record in image.values()}) > 8
    assert sum(record["changed"] for _, record in text.values()) > LIMIT / 2


def test_another_model_on_two_processes_sees_the_same_inputs(group: Logs, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    tasks = ",".join(TASKS[1:])
    other = run(tmp_path, "llava_fastv", tasks, launcher=launcher, PYTHONHASHSEED="77", OMP_NUM_THREADS="1")
    for task in TASKS[1:]:
        assert shown(other, task) == shown(group, task)


def test_the_manifest_says_what_runs_see(group: Logs, tmp_path: Path) -> None:
    file = tmp_path / "manifest.jsonl"
    command = ["perturb", "manifest", "-o", str(file), "--task", TASKS[1], "--limit"]
    # interrupted within a line, and taken up again
    for limit in ("10", str(LIMIT)):
        done = CliRunner().invoke(main, [*command, limit])
        assert done.exit_code == 0, done.output
        if limit == "10":
            file.write_bytes(file.read_bytes()[:-20])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == list(range(LIMIT))
    for line in lines:
        record = group[TASKS[1]][line["doc_id"]]["perturbation"]
        assert {key: line[key] for key in record} == record
