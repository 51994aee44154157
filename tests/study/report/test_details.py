from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.cost import Geometry
from lmms_eval_stability.report.html.details import read_details, speedup

GEOMETRY = Geometry(4, 8, 16, 2, 2, 4)
TOKENS = [[1, "a", -0.25], [2, "b", -1.5], [3, "c", -9.0]]


def log(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(doc_id: Any, **counts: Any) -> dict[str, Any]:
    return {"doc_id": doc_id, "input": f"q{doc_id}", "filtered_resps": ["a"], "token_counts": [counts]}


def test_what_a_line_says(tmp_path: Path) -> None:
    counts = {"first_token_logprobs": TOKENS, "prefill_ms": 10, "decode_ms": 2.5}
    path = log(tmp_path / "log", row(3, visual_tokens=[10, 5], visual_token_layers=[0, 1], **counts), row(4))
    found = read_details(path, "gqa", {3}, GEOMETRY)
    assert found.margin == {3: 1.25}
    assert found.answer_ms == {3: 12.5}
    assert found.kept == {3: (10 + 5 + 5 + 5) / 40}
    assert (list(found.samples), found.samples[3].question, found.samples[3].answer) == ([3], "q3", "a")


def test_the_first_of_repeated_lines_counts_as_in_pairing(tmp_path: Path) -> None:
    path = log(tmp_path / "log", row(3, prefill_ms=1), row(3, prefill_ms=2))
    assert read_details(path, "gqa", set(), None).answer_ms == {3: 1}


@pytest.mark.parametrize(
    "counts",
    [
        {"first_token_logprobs": value}
        for value in (None, [], [[1, "a", 0.0]], "text", [[1]], [[1, "a", None], [2, "b", 1]], 5, {"a": 1})
    ]
    + [{"first_token_logprobs": [[1, "a", float("nan")], [2, "b", -1]]}]
    + [{"prefill_ms": value} for value in (None, "10", True, -1, float("nan"), float("inf"), [1])]
    + [
        {"visual_tokens": tokens, "visual_token_layers": layers}
        for tokens, layers in (
            ([], []),
            ([10], [1]),
            (["x"], [0]),
            ([10, 5], [0]),
            ([0], [0]),
            ([10, 5], [0, 9]),
            (1, 0),
        )
    ]
    + [{"visual_tokens": [[1]], "visual_token_layers": [{}]}],
)
def test_what_is_no_measurement_is_none(tmp_path: Path, counts: dict[str, Any]) -> None:
    found = read_details(log(tmp_path / "log", row(1, **counts)), "gqa", set(), GEOMETRY)
    assert (found.margin, found.answer_ms, found.kept) == ({}, {}, {})


@pytest.mark.parametrize("line", ["{", "[]\n", "null\n", json.dumps({"doc_id": "1"}) + "\n", "\n"])
def test_lines_that_are_no_samples_are_passed_over(tmp_path: Path, line: str) -> None:
    path = log(tmp_path / "log", row(1, prefill_ms=1), line)
    assert read_details(path, "gqa", {1}, None).answer_ms == {1: 1}


@pytest.mark.parametrize("counts", [None, [], [None], "x", {}])
def test_lines_without_measurements(tmp_path: Path, counts: Any) -> None:
    path = log(tmp_path / "log", {**row(1), "token_counts": counts})
    assert list(read_details(path, "gqa", {1}, None).samples) == [1]


def test_speed_is_that_of_the_documents_that_both_have() -> None:
    assert speedup({1: 10.0, 2: 20.0, 3: 1000.0}, {1: 5.0, 2: 10.0, 4: 1.0}) == 2
    assert isnan(speedup({1: 10.0}, {2: 1.0}))
    assert isnan(speedup({1: 10.0}, {1: 0.0}))
