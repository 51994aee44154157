"""Time and memory that runs log are shown beside the divergence, and are no confounders."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from lmms_eval_stability.speed import Speed, describe_speeds

from .conftest import BASE, WriteRun

Compare = Callable[..., Result]
LOGGED = {
    "samples": 3,
    "samples_per_second": 12.5,
    "prefill_seconds": 30.25,
    "decode_seconds": 2.5,
    "vision_seconds": 4,
    "peak_memory_bytes": 3 * 2**30,
}


def measured(factor: float) -> list[dict[str, Any]]:
    logged = {**LOGGED, "samples_per_second": 12.5 * factor}
    first, *others = BASE
    return [{**first, "token_counts": [{"run": {"reuse": "vision", "throughput": logged}}]}, *others]


def test_it_is_shown_and_written(write_run: WriteRun, run_compare: Compare, tmp_path: Any) -> None:
    slow, fast = write_run("slow", {"gqa": measured(1)}), write_run("fast", {"gqa": measured(2)})
    out = run_compare(slow, fast, "-o", tmp_path / "out").stdout
    words = "(prefill 30.25 s, of it vision 4 s, decode 2.5 s), peak memory 3 GiB"
    text = " ".join(out.split())
    assert f"measured: 25 samples/s {words}; baseline 12.5 samples/s {words}; ×2 samples/s" in text
    assert "confounders: none" in text
    (run,) = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]
    assert run["measured"]["run"]["samples_per_second"] == 25
    assert run["measured"]["baseline"]["peak_memory_bytes"] == 3 * 2**30


def test_logs_without_it_have_no_such_line(write_run: WriteRun, run_compare: Compare) -> None:
    out = run_compare(write_run("a", {"gqa": BASE}), write_run("b", {"gqa": BASE})).stdout
    assert "measured:" not in out


@pytest.mark.parametrize(
    "logged", [None, [], {}, {**LOGGED, "vision_seconds": "4"}, {**LOGGED, "decode_seconds": float("nan")}]
)
def test_what_is_no_measurement_is_left_out(logged: Any) -> None:
    assert Speed.from_facts({"throughput": logged}) is None
    assert describe_speeds(None, None) == ""


def test_one_log_may_be_silent() -> None:
    speed = Speed.from_facts({"throughput": LOGGED})
    assert describe_speeds(speed, None).startswith("not logged; baseline 12.5 samples/s")
    assert describe_speeds(None, speed) == str(speed)
