"""Reads back what `compare -o DIR` wrote, for `gate`. A file that says something impossible is refused, not judged."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isnan, nan
from pathlib import Path
from typing import Any

import orjson

from .divergence import AVERAGE, Rate
from .errors import StabilityError
from .gate import RATES, GateReport, ReportRow, ReportRun

#: The `schema_version` of summary.json that is understood: the one that `report.machine` writes (a test compares).
SCHEMA_VERSION = 1
SUMMARY = "summary.json"
#: Rounding of what is compared with each other here.
_TOLERANCE = 1e-6


class GateReportError(StabilityError):
    """A path holds no summary.json of `compare`, or one that cannot be."""


def read_report(path: str | Path) -> GateReport:
    """Read the folder that `compare -o` wrote, or the summary.json in it.

    Raises GateReportError when there is none, when a later version wrote it, and for rates that are none.
    """
    file = Path(path)
    if file.is_dir():
        file = file / SUMMARY
    if not file.exists():
        raise GateReportError(f"{path}: no {SUMMARY} there; write one with: lmms-eval-stability compare ... -o DIR")
    try:
        summary = orjson.loads(file.read_bytes())
    except OSError as error:
        raise GateReportError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise GateReportError(f"{file}: not JSON: {error}") from error
    return _Reader(file).report(summary)


class _Reader:
    """Takes one file apart; every complaint names it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def fail(self, message: str) -> GateReportError:
        return GateReportError(f"{self.file}: {message}; write it anew with: lmms-eval-stability compare ... -o DIR")

    def report(self, summary: Any) -> GateReport:
        if not isinstance(summary, dict) or "schema_version" not in summary:
            raise self.fail("no summary of compare (no schema_version)")
        version = summary["schema_version"]
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise self.fail(f"schema_version is {version!r}, and this version understands {SCHEMA_VERSION}")
        described, records = summary.get("runs"), summary.get("comparisons")
        if not isinstance(described, list) or not isinstance(records, list) or not described or not records:
            raise self.fail("'runs' and 'comparisons' must be lists that are not empty")
        runs: dict[str, ReportRun] = {}
        for one in described:
            if not isinstance(one, dict) or not isinstance(one.get("label"), str) or one["label"] in runs:
                raise self.fail("every entry of 'runs' must be an object with a 'label' of its own")
            runs[one["label"]] = ReportRun(one["label"], str(one.get("model") or ""), {}, _notes(one))
        rows: dict[str, dict[str, ReportRow]] = {label: {} for label in runs}
        for i, record in enumerate(records):
            self._add(rows, record, f"comparisons[{i}]")
        baseline = summary.get("baseline")
        return GateReport(
            name=str(self.file),
            baseline=str(baseline.get("label", "")) if isinstance(baseline, dict) else "",
            runs=tuple(ReportRun(run.label, run.model, rows[run.label], run.notes) for run in runs.values()),
            correct_at=self._number(summary, "correct_at", "summary"),
            prediction=str(summary.get("prediction") or ""),
        )

    def _add(self, rows: dict[str, dict[str, ReportRow]], record: Any, where: str) -> None:
        """One record. Other averages than `AVERAGE` (over all samples, say) are no tasks, and cannot be limited."""
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("run", "task")):
            raise self.fail(f"{where} names no run and task")
        if record["run"] not in rows:
            raise self.fail(f"{where} is no record of one of the runs")
        task, of_run = record["task"], rows[record["run"]]
        if task in of_run:
            raise self.fail(f"{where}: {record['run']} has {task} twice")
        if task != AVERAGE and (self._count(record, "tasks", where) > 1):
            return
        n, rerun_n = self._count(record, "n", where), self._count(record, "rerun_n", where)
        of_run[task] = ReportRow(task, n, rerun_n, {name: self._rate(record, name, where) for name in RATES})

    def _rate(self, record: Mapping[str, Any], name: str, where: str) -> Rate:
        """A rate with its interval, in percent; nan for null and for a missing key."""
        value, low, high = (self._number(record, f"{name}{end}", where) for end in ("", "_low", "_high"))
        least = -1 if name == "excess_dr" else 0
        known = [one for one in (value, low, high) if not isnan(one)]
        if any(not least <= one <= 1 for one in known):
            raise self.fail(f"{where}: {name} must be a fraction in [{least}, 1]")
        # a bootstrap's percentiles need not hold the estimate, and excess DR's may be over fewer samples than its value
        holds = record.get("intervals", "wilson") == "wilson" and name != "excess_dr"
        ordered = [one for one in ((low, value, high) if holds else (low, high)) if not isnan(one)]
        if any(a > b + _TOLERANCE for a, b in pairwise(ordered)):
            raise self.fail(f"{where}: {name} does not lie within its interval")
        return Rate(100 * value, 100 * low, 100 * high)

    def _number(self, record: Mapping[str, Any], key: str, where: str) -> float:
        value = record.get(key)
        if value is None:
            return nan
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(f"{where}: {key} must be a number or null, not {value!r}")
        return float(value)

    def _count(self, record: Mapping[str, Any], key: str, where: str) -> int:
        value = record.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fail(f"{where}: {key} must be a count, not {value!r}")
        return value


def _notes(run: Mapping[str, Any]) -> tuple[str, ...]:
    """What to know before believing the numbers of a run, in short: the report has it in full."""
    counts = {}
    for key, what in (("accepted", "accepted problems"), ("confounders", "confounders"), ("warnings", "warnings")):
        found = run.get(key)
        if isinstance(found, list) and found:
            counts[what] = len(found)
    return tuple(f"{count} {what}" for what, count in counts.items())
