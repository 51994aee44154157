"""The `study` command on lmms-eval's own tasks: what it runs, keeps and compares is what single runs would give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.grid import build_speaking
from tests.integration.running import ADAPTERS, DOCUMENTS, TIMEOUT, Output, base_of, compared, metric_of

TASKS = ("gqa", "gqa_text_perturbed", "mmbench_en_dev_static", "mmmu_val", "pope", "vqa_rad", "vqav2_val")
LIMIT = 8
pytestmark = pytest.mark.timeout(TIMEOUT)


def run_study(config: Path, folder: Path, hub: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "study", str(config), "-o", str(folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(hub), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)


def test_a_study_of_real_tasks(hub: Path, tmp_path: Path) -> None:
    checkpoint = build_speaking("llava", tmp_path / "tiny-llava")
    config = tmp_path / "study.yaml"
    study = {
        "name": "real",
        "tasks": list(TASKS),
        "limit": LIMIT,
        "offline": True,
        "bases": {"tiny": {"family": "llava", "model_args": {"pretrained": str(checkpoint)}}},
        "methods": {"fastv": {"method": "fastv", "model_args": {"k": 2, "r": 0.7}}},
        "lmms_eval": {"batch_size": 8, "gen_kwargs": "max_new_tokens=3", "extra": ["--device", "cpu"]},
    }
    config.write_text(yaml.safe_dump(study))
    folder = tmp_path / "study"
    done = run_study(config, folder, hub)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    summary = json.loads((folder / "report" / "tiny" / "summary.json").read_text(encoding="utf-8"))
    rows = {row["task"]: row for row in summary["comparisons"]}
    assert set(rows) == {*TASKS, "average"}
    assert [run["warnings"] for run in summary["runs"]] == [[]]
    runs = {name: Output(folder / "runs" / "tiny" / name) for name in ("baseline", "fastv")}
    for task in TASKS:
        row, documents = rows[task], min(LIMIT, DOCUMENTS[base_of(task)])
        found = (row["adapter"], row["metric"], row["n"], row["fingerprints_equal"])
        assert found == (ADAPTERS[base_of(task)], metric_of(task), documents, documents)
        if task != "mmmu_val":
            assert row["score_run"] == runs["fastv"].native(task)
        assert list(runs["fastv"].lines(task)) == list(range(documents))
    # the same runs, compared by hand
    again = compared(tmp_path / "report", runs["baseline"].folder, runs["fastv"].folder).records(0)
    assert {task: again[task]["dr"] for task in TASKS} == {task: rows[task]["dr"] for task in TASKS}
    assert any(rows[task]["dr"] for task in TASKS)
    # nothing is run twice
    finished = {file: file.stat().st_mtime_ns for file in (folder / "shards").rglob("done.json")}
    assert len(finished) == 2 * len(TASKS)
    assert run_study(config, folder, hub).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in (folder / "shards").rglob("done.json")} == finished
