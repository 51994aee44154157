"""A study of real lmms-eval processes on the embedded model: in shards, one of them killed, against one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.runs import load_run
from lmms_eval_stability.study.store import Store

STUDY = """
name: real
tasks: [{task: shapes_vqa, samples: 2000}]
limit: 8
bases: {demo: {family: llava, model_args: {pretrained: demo}}}
engine: {workers: 2}
offline: true
"""
#: What is logged of an answer and is no time.
SAME = ("input_tokens", "output_tokens", "input_fingerprint", "image_fingerprint", "visual_tokens")


def study(folder: Path, text: str, kill_first: bool = False) -> subprocess.CompletedProcess[str]:
    path = folder / "study.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "study", str(path), "-o", str(folder / "out")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if kill_first:
        threading.Thread(target=kill_a_child, args=(running.pid,), daemon=True).start()
    out, err = running.communicate(timeout=400)
    return subprocess.CompletedProcess(command, running.returncode, out, err)


def kill_a_child(parent: int) -> None:
    """Send SIGKILL to the first lmms-eval process of a study."""
    while True:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                owner = int(path.read_text().rpartition(")")[2].split()[1])
                command = (path.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if owner == parent and b"lmms_eval" in command and b"-c" not in command:
                os.kill(int(path.parent.name), signal.SIGKILL)
                return
        time.sleep(0.05)


def run_of(folder: Path) -> Path:
    return folder / "out" / "runs" / "demo" / "baseline"


def rows(folder: Path) -> list[dict[str, Any]]:
    """The logged lines without what was measured."""
    path = load_run(run_of(folder)).sample_files["shapes_vqa"]
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    for row in logged:
        counts = row["token_counts"][0]
        row["same"] = {key: counts[key] for key in SAME}
        del row["token_counts"]
    return logged


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study in one process."""
    folder = tmp_path_factory.mktemp("one")
    whole = study(folder, STUDY)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    return folder


def test_shards_and_a_killed_process_give_the_rows_of_one_process(one: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    text = STUDY.replace("samples: 2000}", "samples: 2000, shard: 4}").replace("workers: 2", "workers: 2, retries: 2")
    sharded = study(parts, text, kill_first=True)
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    assert "killed by SIGKILL; lmms-eval wrote no results" in sharded.stderr
    assert "attempt 2: " in sharded.stderr
    assert [row["doc_id"] for row in rows(parts)] == list(range(8))
    assert rows(parts) == rows(one)
    native = [load_run(run_of(folder)).task("shapes_vqa").native["exact_match"] for folder in (one, parts)]
    assert native[0] == pytest.approx(native[1])
    shards = [shard for found in Store(str(parts / "out")).finished().values() for shard in found]
    assert sorted((shard.span.first, shard.stop) for shard in shards) == [(0, 4), (4, 8)]
    assert all(shard.total == 2000 for shard in shards)
    assert all(shard.startup is not None and 0 < shard.startup < shard.seconds for shard in shards)


def test_two_ranks_share_the_documents_and_give_the_rows_of_one(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = tmp_path / "two"
    two.mkdir()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    shared = study(two, STUDY.replace("workers: 2", "processes: 2"))
    assert shared.returncode == 0, shared.stdout + shared.stderr
    found = rows(two)
    assert [row["doc_id"] for row in found] == [0, 2, 4, 6, 1, 3, 5, 7]  # lmms-eval logs rank after rank
    assert sorted(found, key=lambda row: row["doc_id"]) == rows(one)
    native = [load_run(run_of(folder)).task("shapes_vqa").native["exact_match"] for folder in (one, two)]
    assert native[0] == native[1]
