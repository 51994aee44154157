"""What happens to a study from outside: Ctrl-C, SIGKILL, SIGTERM, a full disk. Nothing is lost or run twice."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmms_eval_stability.runs import load_run
from lmms_eval_stability.study.store import Store

from .conftest import SMALL, Bench, gone

#: The first shard hangs behind one that is done: what an interrupt meets.
HANGS = {"faults": {"llava_baseline:8": ["hang"]}}


def start(bench: Bench) -> subprocess.Popen[str]:
    return subprocess.Popen(
        bench.command(), env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def finish(bench: Bench) -> subprocess.CompletedProcess[str]:
    return subprocess.run(bench.command(), env=bench.environment, capture_output=True, text=True, check=False)


def documents(bench: Bench, run: str = "fastv") -> list[int]:
    path = load_run(bench.out / "runs" / "demo" / run).sample_files["gqa"]
    return [json.loads(line)["doc_id"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_processes_and_the_same_command_goes_on(number: int, bench: Bench) -> None:
    bench.behave(**HANGS)
    running = start(bench)
    wait_for(lambda: len(bench.calls) == 2)
    assert "child" in bench.calls[1]
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "interrupted: what is finished is kept" in errors
    assert "Traceback" not in errors
    assert gone(bench.calls[1]["pid"])
    assert gone(bench.calls[1]["child"])
    assert not (bench.out / "work").exists()
    bench.behave()
    done = finish(bench)
    assert done.returncode == 0, done.stderr
    where = [call["where"] for call in bench.calls]
    assert len(where) == 10
    assert where[2] == "llava_baseline:8"  # 0 to 8 was done, and stays
    assert documents(bench) == documents(bench, "baseline") == list(range(20))


def test_a_study_that_is_killed_leaves_no_process_and_goes_on(bench: Bench) -> None:
    bench.behave(**HANGS)
    running = start(bench)
    wait_for(lambda: len(bench.calls) == 2)
    running.kill()
    running.communicate(timeout=60)
    assert gone(bench.calls[1]["pid"])
    os.kill(bench.calls[1]["child"], signal.SIGKILL)  # of a process that did not take its own with it
    bench.behave()
    done = finish(bench)
    assert done.returncode == 0, done.stderr
    assert len(bench.calls) == 10
    assert not (bench.out / "work").exists()
    assert documents(bench) == list(range(20))


@dataclass
class SmallDisk:
    """A folder on which little can be written, until `enlarge()`."""

    folder: Path
    preexec: Callable[[], None] | None
    enlarge: Callable[[], None]
    says: str


KILOBYTES = 256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A tmpfs of some kilobytes; where nobody may mount one, a limit on the size of files, which fails alike."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={KILOBYTES}k", "tmpfs", str(folder)]
    mount = shutil.which("mount")
    if mount and subprocess.run([mount, *options], capture_output=True, check=False).returncode == 0:
        try:
            yield SmallDisk(
                folder,
                None,
                lambda: subprocess.run([mount, "-o", "remount,size=64m", str(folder)], check=True) and None,
                "No space left on device",
            )
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    disk = SmallDisk(folder, _limit_files, lambda: None, "File too large")

    def enlarge() -> None:
        disk.preexec = None

    disk.enlarge = enlarge
    yield disk


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 << 10, 40 << 10))


def test_a_full_disk_loses_nothing_that_is_done(small_disk: SmallDisk, bench: Bench) -> None:
    # Answers of 10.5 kB: the disk holds the first shards, and then neither lmms-eval's logs nor ours.
    bench.behave(pad=10_500)
    text = SMALL.replace("shard: 8", "shard: 4, retries: 0").replace("reruns: 1", "reruns: 0")
    out = small_disk.folder / "out"
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "study", str(bench.write(text)), "-o", str(out)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=bench.environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=small_disk.preexec,
            timeout=120,
        )

    full = run()
    assert full.returncode == 1, full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    assert small_disk.says in full.stderr
    assert "not complete; the same command runs what is missing" in full.stderr
    # what counts as done is whole
    store = Store(str(out))
    kept = [shard for shards in store.finished().values() for shard in shards]
    for shard in kept:
        ids = [json.loads(line)["doc_id"] for line in store.read(shard, "samples.jsonl").splitlines()]
        assert ids == list(range(shard.span.first, shard.stop))
    assert len(kept) < 10
    calls = len(bench.calls)
    small_disk.enlarge()
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(bench.calls) - calls == 10 - len(kept)
    path = load_run(out / "runs" / "demo" / "fastv").sample_files["gqa"]
    assert [json.loads(line)["doc_id"] for line in path.read_text().splitlines()] == list(range(20))
