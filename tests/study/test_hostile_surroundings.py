"""Odd terminals, full disks, odd folder names and absurd numbers: exit code 0 or 2, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from .conftest import BASE, FASTV, STAMP, WriteRun, sample

Compare = Callable[..., Result]


def process(*args: object, stdout: object = subprocess.PIPE, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own, with these environment variables on top."""
    return subprocess.run(
        [sys.executable, "-m", "lmms_eval_stability.cli", "compare", *map(os.fspath, args)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
        check=False,
    )


def test_numbers_too_large_to_average_are_no_scores(write_run: WriteRun, run_compare: Compare, tmp_path: Path) -> None:
    rows = [sample(i, "a", 1.7e308) for i in range(3)]
    base, run = (write_run(name, {"gqa": [*rows, sample(3, "a", 1.0)]}, model=name) for name in "ab")
    refused = run_compare(base, run)
    assert refused.exit_code == 2
    assert "3 rows without a finite score" in refused.stderr
    accepted = run_compare(base, run, "--accept", "unscored", "--format", "json", "-o", tmp_path / "report")
    assert accepted.exit_code == 0
    assert json.loads(accepted.stdout)["comparisons"][0]["n"] == 1


def test_native_scores_too_large_to_subtract_are_null(write_run: WriteRun, run_compare: Compare) -> None:
    runs = []
    for name, native in (("a", 1.7e308), ("b", -1.7e308)):
        results = {"gqa": {"alias": "gqa", "exact_match,none": native}}
        runs.append(write_run(name, {"gqa": [sample(0, "a", 2.0)]}, model=name))
        path = runs[-1] / "demo" / f"{STAMP}_results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "results": results}))
    for layout in ("json", "table", "csv", "markdown"):
        result = run_compare(*runs, "--format", layout)
        assert result.exit_code == 0
    assert json.loads(run_compare(*runs, "--format", "json").stdout)["comparisons"][0]["drop"] is None


def test_lone_surrogates_in_the_results_json(write_run: WriteRun, run_compare: Compare, tmp_path: Path) -> None:
    base = write_run("base", {"gqa": BASE}, args="pretrained=\ud800x")
    run = write_run("run", {"gqa": FASTV}, args="pretrained=\ud800y")
    for layout in ("table", "json", "csv", "markdown"):
        result = run_compare(base, run, "--format", layout, "-o", tmp_path / layout)
        assert result.exit_code == 0
        assert "pretrained=?y" in result.stdout


def test_a_folder_name_that_is_no_text(base: Path, fastv: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe"
    shutil.copytree(os.fsencode(base), odd)
    for layout in ("table", "json", "csv", "markdown"):
        done = process(os.fsdecode(odd), fastv, "--format", layout, "-o", tmp_path / layout)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    for name in ("summary.json", "pairs.csv", "divergence.md"):
        (tmp_path / "json" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
@pytest.mark.parametrize("layout", ["table", "markdown", "csv", "json"])
def test_a_terminal_that_knows_only_ascii(base: Path, fastv: Path, env: dict[str, str], layout: str) -> None:
    done = process(base, fastv, "--format", layout, **env)
    assert done.returncode == 0, done.stderr.decode()
    assert b"gqa" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("layout", ["table", "json"])
def test_a_full_disk_behind_standard_output(base: Path, fastv: Path, layout: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = process(base, fastv, "--format", layout, stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode() == "error: standard output: cannot write: No space left on device\n"
