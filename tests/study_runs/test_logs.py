"""What counts as complete logs, since lmms-eval ends with exit code 0 even when a run failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmms_eval_stability.study.errors import IncompleteLogError
from lmms_eval_stability.study.logs import complete_log
from lmms_eval_stability.study.store import Span

STAMP = "20260101_000000"


def write(folder: Path, lines: str | None, total: object = 10, results: str | None = None) -> None:
    home = folder / "demo"
    home.mkdir(parents=True)
    counts = {"n-samples": {"gqa": {"original": total, "effective": 3}}}
    (home / f"{STAMP}_results.json").write_text(json.dumps(counts) if results is None else results)
    if lines is not None:
        (home / f"{STAMP}_samples_gqa.jsonl").write_text(lines)


def rows(*documents: int) -> str:
    return "".join(f'{{"doc_id": {document}}}\n' for document in documents)


@pytest.mark.parametrize(
    ("documents", "span", "stop"),
    [
        ((2, 3, 4), Span(2, 5), 5),
        ((4, 2, 3), Span(2, 5), 5),  # several ranks log out of order
        ((8, 9), Span(8, 12), 10),  # the task ends earlier
        (tuple(range(10)), Span(0, None), 10),
        ((2, 3, 2, 3), Span(2, 4), 4),  # a task with two filters
    ],
)
def test_complete_logs_pass(documents: tuple[int, ...], span: Span, stop: int, tmp_path: Path) -> None:
    write(tmp_path, rows(*documents))
    log = complete_log(tmp_path, "gqa", span)
    assert (log.stop, log.total) == (stop, 10)


def test_what_a_task_writes_for_a_benchmarks_server_is_no_result(tmp_path: Path) -> None:
    write(tmp_path, rows(0, 1))
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / "mmbench_en_dev_results.json").write_text("{}")
    assert complete_log(tmp_path, "gqa", Span(0, 2)).total == 10


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "task gqa has no logged samples"),
        ("", "3 of 3 documents not logged: 2, 3, 4"),
        (rows(2, 3), "1 of 3 documents not logged: 4"),
        (rows(2, 3, 4, 5), "1 of 3 documents not asked for: 5"),
        (rows(2, 3, 4, 4), "1 of 3 documents logged more often than others: 4"),
        (rows(2, 3, 4)[:-1], "the last line of the samples is cut off"),
        (rows(2, 3, 4)[:-3], "line 3 of the samples is no record (cut off: the line has no end)"),
        (rows(2, 3) + '{"doc_id": "4"}\n', "line 3 of the samples is no record (no doc_id)"),
        (rows(2, 3) + "[4]\n", "line 3 of the samples is no record (not a JSON object)"),
        (rows(2, 3) + '{"doc_id": true}\n', "no record (no doc_id)"),
    ],
)
def test_anything_else_is_refused_by_name(lines: str | None, message: str, tmp_path: Path) -> None:
    write(tmp_path, lines)
    with pytest.raises(IncompleteLogError) as caught:
        complete_log(tmp_path, "gqa", Span(2, 5))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("results", "message"),
    [("", "cannot be read"), ("[]", "is no results JSON"), ('{"n-samples": {}}', "do not say how many documents")],
)
def test_results_that_are_none_are_refused(results: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, rows(2, 3, 4), results=results)
    with pytest.raises(IncompleteLogError, match=message):
        complete_log(tmp_path, "gqa", Span(2, 5))


def test_no_results_several_results_and_no_documents(tmp_path: Path) -> None:
    with pytest.raises(IncompleteLogError, match="wrote no results"):
        complete_log(tmp_path, "gqa", Span(0, 5))
    write(tmp_path, rows(2, 3, 4))
    with pytest.raises(IncompleteLogError, match="has 10 documents: none from 10 on"):
        complete_log(tmp_path, "gqa", Span(10, 15))
    write(tmp_path / "second", rows(2, 3, 4))
    (tmp_path / "demo" / "20270101_000000_results.json").write_text("{}")
    with pytest.raises(IncompleteLogError, match="several results files"):
        complete_log(tmp_path, "gqa", Span(2, 5))
