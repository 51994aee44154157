"""`benchmarks/throughput.py`, run as users run it, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), "--only", "throughput", "-o", str(folder), "--"]
    command += ["--quick", "--sections", "llava", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "throughput.json").read_text())
    return found


def test_answers_are_llava_hfs_and_every_ratio_has_its_limit(output: Path) -> None:
    results = read(output)["llava"]["results"]
    assert [(one["n"], one["documents"]) for one in results.values()] == [(5, 10), (2, 4)]
    for one in results.values():
        assert one["differing"]["none, batch 1"] == one["differing"]["vision, batch 1"] == 0
        assert one["distinct_answers"] > 1  # or equal answers would say nothing
        assert set(one["seconds"]) == {
            "lmms-eval", *one["differing"], "document", "whole", "rest", "rest_batch", "vision", "prefix", "question",
            "question_batch",
        }  # fmt: skip
        assert min(wall for wall, _ in one["seconds"].values()) > 0
    text = (output / "throughput.md").read_text()
    assert text.count("| 5 per image | prefix, batch 4 |") == 1
    assert text.count("| 2 per image, perturbed |") == 6  # the rival, four configurations, and the parts


def test_methods_stand_beside_their_theory(output: Path) -> None:
    methods = read(output)["methods"]["methods"]
    assert methods.pop("baseline")[1] == 1.0
    assert set(methods) == {"fastv", "pyramiddrop", "sparsevlm", "random", "visionzip", "hired", "lofi"}
    assert all(measured > 0 and 0 < theory < 1 for measured, theory in methods.values())


def test_the_limit_is_computed_from_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import throughput  # type: ignore[import-not-found]

    seconds = {"lmms-eval": [600, 0], "document": [5, 0], "whole": [550, 0], "rest": [430, 0], "rest_batch": [400, 0],
               "vision": [120, 0], "prefix": [390, 0], "question": [90, 0], "question_batch": [45, 0]}  # fmt: skip
    result = {"n": 32, "seconds": seconds}
    assert throughput.limit("none, batch 1", result, 0) == pytest.approx(600 / 555)
    assert throughput.limit("vision, batch 1", result, 0) == pytest.approx(32 * 600 / (120 + 32 * 435))
    assert throughput.limit("vision, batch 8", result, 0) == pytest.approx(32 * 600 / (120 + 32 * 405))
    assert throughput.limit("prefix, batch 16", result, 0) == pytest.approx(32 * 600 / (120 + 390 + 32 * 50))


def test_the_table_of_all_names_what_was_run_and_what_was_not(output: Path) -> None:
    lines = (output / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| throughput |"))
    assert "| done |" in row
    assert "[throughput.md](throughput.md)" in row
    names = {path.stem for path in BENCHMARKS.glob("*.py")} - {
        "run_all",
        "compare_logs",
        "throughput_models",
        "throughput_parts",
    }
    assert {line.split("|")[1].strip() for line in lines if line.startswith("| ")} - {"benchmark"} == names
