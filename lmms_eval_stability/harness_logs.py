"""Logs of lm-evaluation-harness (`lm_eval --log_samples`, text models) read as if lmms-eval had written them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

SAMPLES = re.compile(r"^samples_(?P<task>.+)_(?P<run_id>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl$")
RESULTS = re.compile(r"^results_(?P<run_id>\d{4}-\d\d-\d\dT[\d.-]+)\.json$")
#: Keys of a line that lmms-eval's have not: its metrics, an open set, stay.
_OWN = {"doc", "arguments", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"}
_PathBase: Any = Path if TYPE_CHECKING else type(Path())


class HarnessLog(_PathBase):  # type: ignore[misc]
    """A samples file of the harness that stands for the lines of one `filter` (each file holds those of all)."""

    filter = "none"

    def __reduce__(self) -> Any:
        return of_filter, (str(self), self.filter)


def of_filter(path: str | Path, name: str) -> HarnessLog:
    """The file, standing for the lines of this filter."""
    log = HarnessLog(path)
    log.filter = name
    return log


def task_files(task: str, path: Path, rows: Iterable[tuple[int, Any]]) -> dict[str, Path]:
    """The file under the name of its task, or several times under "TASK,FILTER" if its lines are of several filters."""
    names = list(dict.fromkeys(_filter(row) for _, row in rows if isinstance(row, dict))) or ["none"]
    return {f"{task},{name}" if len(names) > 1 else task: of_filter(path, name) for name in names}


def converted(rows: Iterable[tuple[int, Any]], name: str) -> Iterator[tuple[int, Any]]:
    """The lines of one filter in lmms-eval's layout; lines that cannot be parsed stay among them."""
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
        elif _filter(row) == name:
            own = {key: _as_losses(row[key]) for key in ("resps", "filtered_resps") if key in row}
            own |= {"input": _prompt(row["arguments"])} if "arguments" in row else {}
            yield number, {key: value for key, value in row.items() if key not in _OWN} | own


def _filter(row: dict[str, Any]) -> str:
    return str(row.get("filter", "none"))


def _prompt(arguments: Any) -> str:
    """The text of the only request, else all requests as JSON: of multiple choice, each with its continuation."""
    requests = list(arguments.values()) if isinstance(arguments, dict) else arguments
    first = requests[0] if isinstance(requests, list) and len(requests) == 1 else None
    prompt = next(iter(first.values()), None) if isinstance(first, dict) else None
    return prompt if isinstance(prompt, str) else json.dumps(requests, ensure_ascii=False, sort_keys=True)


def _as_losses(answer: Any) -> Any:
    """Log-likelihoods with the other sign: the harness takes the greatest, lmms-eval the least of what it logs."""
    if isinstance(answer, list) and len(answer) == 2 and str(answer[1]) in ("True", "False"):
        try:
            return [-float(answer[0]), answer[1]]
        except (TypeError, ValueError):
            return answer
    return [_as_losses(item) for item in answer] if isinstance(answer, list) else answer
