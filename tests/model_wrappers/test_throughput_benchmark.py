"""`benchmarks/throughput.py`, run as users run it, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.cost import Geometry

pytestmark = pytest.mark.any_transformers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
INSIDE = {"fastv", "pyramiddrop", "sparsevlm", "lvpruning", "random_inside"}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), "--only", "throughput", "-o", str(folder), "--"]
    command += ["--quick", "--sections", "llava", "methods", "inside", "quantized"]
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
            "lmms-eval", *one["differing"], "document", "whole", "rest", "rest_batch", "vision", "prefix",
            "question_batch",
        }  # fmt: skip
        assert min(wall for wall, _ in one["seconds"].values()) > 0
    text = (output / "throughput.md").read_text()
    assert text.count("| 5 per image | prefix, batch 4 |") == 1
    assert text.count("| 2 per image, perturbed |") == 6  # the rival, four configurations, and the parts


def test_methods_stand_beside_their_theory(output: Path) -> None:
    methods = read(output)["methods"]["methods"]
    assert methods.pop("baseline")[1] == 1.0
    assert set(methods) == {*INSIDE - {"lvpruning"}, "random", "visionzip", "hired", "lofi"}
    assert all(measured > 0 and 0 < theory < 1 for measured, theory in methods.values())


def test_reuse_for_methods_inside_the_model_and_for_int8(output: Path) -> None:
    found = read(output)
    inside, quantized = (found[name]["results"] for name in ("inside", "quantized"))
    assert set(inside) == INSIDE
    for name, one in inside.items():
        assert one["layers"][1] == one["shared_layers"][0] < one["shared_layers"][1] == 8
        assert one["visual_tokens"][0] > one["visual_tokens"][-1]
        assert one["differing"] == {"vision, batch 2": 0, "prefix, batch 2": 0}
        assert (one["large"] is None) == (name == "lvpruning")
    assert list(quantized) == ["int8", "int8, fastv"]
    assert all(
        list(one["differing"]) == ["none, batch 2", "vision, batch 2", "prefix, batch 2"] for one in quantized.values()
    )
    text = (output / "throughput.md").read_text()
    assert text.count("| prefix, batch 2 |") == len(INSIDE) + 2
    assert text.count(" at the start, ") == 2 + 1 + len(INSIDE) + 2  # how quiet it was, of every case


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import throughput_tables  # type: ignore[import-not-found]

    return throughput_tables


def test_what_cannot_be_left_out_is_computed_from_the_passes(tables: Any) -> None:
    from throughput_parts import Spent, bare, needed  # type: ignore[import-not-found]

    walls = {"whole": 550, "rest": 430, "rest_batch": 400, "vision": 120, "prefix": 390, "question_batch": 45}
    cost = {name: Spent(float(wall), 2.0 * wall) for name, wall in walls.items()}

    def least(name: str, shared: tuple[int, int] = (1, 1)) -> float:
        names = needed(name, inside=shared[0] < shared[1])
        found = bare(name, {one: cost[one] for one in names}, Spent(5.0, 10.0), 32, shared)
        assert found.user == pytest.approx(2 * found.wall)
        return float(found.wall)

    assert least("none, batch 1") == pytest.approx(555)
    assert least("none, batch 8") == pytest.approx(5 + 120 + 400)
    assert least("vision, batch 1") == pytest.approx(120 / 32 + 435)
    assert least("vision, batch 8") == pytest.approx(120 / 32 + 405)
    assert least("prefix, batch 16") == pytest.approx((120 + 390) / 32 + 50)
    inside = 390 * 3 / 12
    assert least("prefix, batch 8", (3, 12)) == pytest.approx((120 + inside) / 32 + 405 - inside)


def test_missed_targets_are_named_and_lower_ratios_fail(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import throughput  # type: ignore[import-not-found]

    rounds = {"lmms-eval": [[600, 700]], "vision, batch 1": [[500, 500]], "prefix, batch 16": [[100, 100]]}
    least = {"vision, batch 1": [[480, 480]], "prefix, batch 16": [[95, 95]]}
    result = {
        "workload": "5 per image", "n": 5, "rounds": rounds, "bare": least,
        "quiet": {"start": 0.1, "end": 0.2, "others": 0.07},
        "targets": {"vision, batch 1": 1.3, "prefix, batch 16": 5.0},
        "differing": {"vision, batch 1": 0, "prefix, batch 16": 1},
    }  # fmt: skip
    found = {"llava": {"results": {"5 per image": result}}}
    assert [(one.what, one.name, round(one.wall, 3), round(one.processor, 3)) for one in tables.missed(found)] == [
        ("ratio", "5 per image, vision, batch 1", 1.2, 1.4)
    ]
    assert "| llava | 5 per image, vision, batch 1 | ratio at least 1.3 | 1.2 | 1.4 | 7 % |" in tables.missed_lines(
        found
    )
    assert throughput.failures(found, ["llava"]) == ["llava, 5 per image, vision, batch 1: ratio 1.2, target 1.3"]
    assert throughput.failures(found, ["methods"]) == []  # of what was run alone
    rounds["prefix, batch 16"] = [[200, 100]]
    result["targets"] = {}
    assert [(one.what, one.name) for one in tables.missed(found)] == [("share", "5 per image, prefix, batch 16")]
    assert throughput.failures(found, ["llava"]) == []
    result["differing"]["vision, batch 1"] = 2
    assert "answers differ" in throughput.failures(found, ["llava"])[0]


def test_a_ratio_is_the_median_over_rounds_with_the_sign_tests_interval(tables: Any) -> None:
    ours = [[100.0, 1.0]] * 9
    theirs = [[100.0 * one, 2.0] for one in (9, 1, 5, 3, 7, 2, 8, 4, 6)]
    result = {"rounds": {"lmms-eval": theirs, "vision, batch 1": ours}, "bare": {"vision, batch 1": [[80, 1]] * 9}}
    assert tables.ratio("vision, batch 1", result, 0) == tables.Ratio(5, 2, 8)  # 96.1 %: 1 - 2 * 10 / 512
    assert tables.ratio("vision, batch 1", result, 1) == tables.Ratio(2, 2, 2)
    assert tables.limit("vision, batch 1", result, 0) == pytest.approx(500 / 80)
    assert tables.share("vision, batch 1", result, 0) == tables.Ratio(0.8, 0.8, 0.8)
    result["rounds"] = {name: some[:4] for name, some in result["rounds"].items()}
    assert tables.ratio("vision, batch 1", result, 0) == tables.Ratio(4, 1, 9)  # too few: all of them


def test_a_target_inside_the_interval_is_not_missed(tables: Any) -> None:
    rounds = {"lmms-eval": [[90, 90], [99, 99], [101, 101]], "vision, batch 1": [[100, 100]] * 3}
    result = {
        "workload": "1 per image", "n": 1, "rounds": rounds, "bare": rounds, "targets": {"vision, batch 1": 1.0},
        "quiet": {"start": 0.1, "end": 0.2, "others": 0.0}, "differing": {"vision, batch 1": 0},
    }  # fmt: skip
    found = {"llava": {"results": {"1 per image": result}}}
    assert "ratio" not in {one.what for one in tables.missed(found)}
    rounds["lmms-eval"] = [[90, 90], [99, 99], [98, 98]]
    assert "ratio" in {one.what for one in tables.missed(found)}


def test_every_round_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from throughput_bench import in_turns  # type: ignore[import-not-found]

    orders = ["".join(name for name, _ in in_turns(dict.fromkeys("abc"), number)) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_work_of_all_processors(tables: Any, tmp_path: Path) -> None:
    from throughput_machine import _busy  # type: ignore[import-not-found]

    path = tmp_path / "stat"
    path.write_text(
        "cpu  100 0 50 1000 20 5 5 40 7 0\ncpu0 50 0 25 500 10 2 3 20 7 0\ncpu1 50 0 25 500 10 3 2 20 0 0\n"
    )
    assert _busy(path) == (200 / os.sysconf("SC_CLK_TCK"), 2)  # neither idle nor waiting, and guests once
    assert _busy(tmp_path / "none") is None


def test_arithmetic_spared_by_sharing_layers(tables: Any) -> None:
    from throughput_own import shared_bound  # type: ignore[import-not-found]

    thin = Geometry(
        layers=32, hidden=10**6, intermediate=10**6, heads=1, kv_heads=1, head_dim=1
    )  # no squares to speak of
    half = [0, 3], [576, 288]
    assert shared_bound(thin, *half, 0, 1) == pytest.approx(1, rel=1e-3)
    assert shared_bound(thin, *half, 0, 10**6) == pytest.approx((3 + 29 / 2) / (29 / 2), rel=1e-3)
    assert shared_bound(thin, *half, 576, 10**6) == pytest.approx((6 + 29 * 1.5) / (3 + 29 * 1.5), rel=1e-3)


def test_the_table_of_all_names_what_was_run_and_what_was_not(output: Path) -> None:
    lines = (output / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| throughput |"))
    assert "| done |" in row
    assert "[throughput.md](throughput.md)" in row
    parts = {"run_all", "compare_logs"} | {path.stem for path in BENCHMARKS.glob("throughput_*.py")}
    names = {path.stem for path in BENCHMARKS.glob("*.py")} - parts
    assert {line.split("|")[1].strip() for line in lines if line.startswith("| ")} - {"benchmark"} == names
