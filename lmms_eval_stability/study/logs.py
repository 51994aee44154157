"""Are the logs of an lmms-eval process complete? It ends with exit code 0 even when a run failed: only they tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..log_lines import logged_lines, python_json
from .errors import IncompleteLogError
from .store import Span

#: How many document numbers an error names.
_SHOWN = 5


@dataclass(frozen=True)
class CompleteLog:
    """The complete log of one task.

    Attributes:
        samples: the samples file. results: lmms-eval's results JSON, of all tasks of the process.
        stop: behind the last document. total: documents of the task.
    """

    samples: Path
    results: Mapping[str, Any]
    stop: int
    total: int


def complete_log(folder: Path, task: str, span: Span) -> CompleteLog:
    """Check what one process logged of one task.

    Args:
        folder: what was given to `--output_path`; empty before.
        task: lmms-eval's name.
        span: the documents that were asked for; those behind the end of the task do not count.

    Raises:
        IncompleteLogError: files or documents are missing, documents repeat, a line cannot be parsed or has no end.
    """
    # tasks put files for the benchmarks' servers into `submissions`, and MMBench an `mmbench_en_dev_results.json`
    found = sorted(file for file in folder.glob("*/*_results.json") if file.parent.name != "submissions")
    if len(found) != 1:
        raise IncompleteLogError("lmms-eval wrote no results" if not found else f"{folder} holds several results files")
    results = _results(found[0])
    total = _total(results, task)
    samples = found[0].with_name(found[0].name.replace("_results.json", f"_samples_{task}.jsonl"))
    if not samples.is_file():
        raise IncompleteLogError(f"task {task} has no logged samples")
    stop = total if span.stop is None else min(span.stop, total)
    if stop <= span.first:
        raise IncompleteLogError(f"task {task} has {total} documents: none from {span.first} on")
    _check_lines(samples, task, range(span.first, stop))
    return CompleteLog(samples, results, stop, total)


def _results(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        try:
            parsed = orjson.loads(raw)
        except ValueError:
            parsed = python_json(raw)
    except (OSError, ValueError) as error:
        raise IncompleteLogError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise IncompleteLogError(f"{path.name} is no results JSON")
    return parsed


def _total(results: Mapping[str, Any], task: str) -> int:
    counts = results.get("n-samples")
    stated = counts.get(task) if isinstance(counts, dict) else None
    total = stated.get("original") if isinstance(stated, dict) else None
    if not isinstance(total, int):
        raise IncompleteLogError(f"the results do not say how many documents task {task} has")
    return total


def _check_lines(samples: Path, task: str, expected: range) -> None:
    """Every document as often as every other: once, or once per filter of the task."""
    times: dict[int, int] = {}
    for number, row in logged_lines(samples):
        document = None if isinstance(row, str) else row.get("doc_id")
        if type(document) is not int:
            reason = row if isinstance(row, str) else "no doc_id"
            raise IncompleteLogError(f"task {task}: line {number} of the samples is no record ({reason})")
        times[document] = times.get(document, 0) + 1
    if not _ends_with_newline(samples):
        raise IncompleteLogError(f"task {task}: the last line of the samples is cut off")
    for what, documents in (
        ("not logged", [document for document in expected if document not in times]),
        ("not asked for", [document for document in times if document not in expected]),
        ("logged more often than others", [document for document, n in times.items() if n != min(times.values())]),
    ):
        if documents:
            more = ", ..." if len(documents) > _SHOWN else ""
            names = ", ".join(map(str, documents[:_SHOWN]))
            raise IncompleteLogError(
                f"task {task}: {len(documents)} of {len(expected)} documents {what}: {names}{more}"
            )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        if not file.tell():
            return True  # which documents are missing says more
        file.seek(-1, 2)
        return file.read() == b"\n"
