"""Several processes: a failure of one ends all, and every process has a model of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmms_eval_stability.model_wrappers import errors
from lmms_eval_stability.model_wrappers.models import LlavaBaseline

TinyFolder = Callable[[str], str]
ROOT = Path(__file__).parents[2]


def test_a_failing_rank_ends_the_run_and_the_launcher_says_so(tiny_folder: TinyFolder) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.model_wrappers.failing_rank", tiny_folder("llava")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT, check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output[-3000:]
    assert "task drawn, document 2 could not be answered" in output
    assert "rank 1 of 2 failed" in output
    assert "swallowed" not in output
    assert "reached the end" not in output


def test_one_model_over_several_devices_in_several_processes_is_refused(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoProcesses:
        process_index, local_process_index, num_processes = 0, 0, 2

    monkeypatch.setattr("lmms_eval_stability.model_wrappers.wrapper.Accelerator", TwoProcesses)
    with pytest.raises(errors.InvalidArgumentError, match="2 processes run"):
        LlavaBaseline(pretrained=tiny_folder("llava"), device="cpu", device_map="auto")
