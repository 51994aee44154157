"""Our number for a cell of a published table, with a 95 % interval where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import Any

from ..divergence import NO_RATE, Rate
from .names import TASKS
from .reports import BaseReport, RunReport

_Z = 1.959963984540054
_DOMAINS = {"Chest-Xray": "chest_xray", "MRI": "mri", "Histology": "histology", "Gross": "gross", "CT": "ct"}
_KINDS = {"Conversation": "conversation", "Description": "description"}
_PARTS = {"VQA-RAD/open": "open recall", "VQA-RAD/closed": "closed accuracy"}


@dataclass(frozen=True)
class OurCell:
    """Our number in the unit of the paper: points of percent, or the benchmark's own scale.

    Attributes:
        rate: value and interval; the ends are nan where there is none.
        n: samples (for an average their sum). task: where it comes from; "" for an average.
    """

    rate: Rate
    n: int
    task: str


def our_cell(report: BaseReport, method: str, benchmark: str, perturbation: str, metric: str) -> OurCell | None:
    """Our number for a cell that is no average; None where it was not run.

    Args:
        method: as the paper calls it; "baseline" for the unaccelerated model, whose score every run states.
    """
    if method == "baseline":
        cells = [_of_run(run, benchmark, perturbation, metric, "score_baseline") for run in report.runs.values()]
        return max(filter(None, cells), key=lambda cell: cell.n, default=None)
    run = report.runs.get(method)
    return None if run is None else _of_run(run, benchmark, perturbation, metric, "score_run")


def _of_run(run: RunReport, benchmark: str, perturbation: str, metric: str, side: str) -> OurCell | None:
    tasks = [task for task in TASKS.get((benchmark, perturbation), ()) if task in run.records]
    if not tasks:
        return None
    task = tasks[0]
    source = _source(run, task, benchmark, metric)
    if source is None:
        return None
    if metric in ("DR", "NDR"):
        rate = _times(Rate(*(_number(source, f"{metric.lower()}{end}") for end in ("", "_low", "_high"))), 100)
    elif metric == "drop":
        rate = _drop(source)
    else:
        rate = _score(source, side)
    n = _count(source)
    return None if isnan(rate.value) or not n else OurCell(rate, n, task)


def _source(run: RunReport, task: str, benchmark: str, metric: str) -> Mapping[str, Any] | None:
    """The part of the report that a cell is in: the task's record, its benchmark's own metric, or a category."""
    if benchmark in _KINDS:
        return run.parts.get((task, "kind", _KINDS[benchmark]))
    if benchmark in _DOMAINS:
        return run.parts.get((task, "domain", _DOMAINS[benchmark]))
    if benchmark in _PARTS:
        return run.metrics.get((task, _PARTS[benchmark]))
    if metric in ("score", "drop"):
        if task == "pope":
            return run.metrics.get((task, "F1"))  # never the accuracy in its place
        if task.startswith("mmbench"):
            # its interval is over questions; DR and NDR are over rows
            circular = run.metrics.get((task, "circular accuracy"))
            return run.records.get(task) if circular is None else circular
    return run.records.get(task)


def _score(source: Mapping[str, Any], side: str) -> Rate:
    value = _number(source, side)
    if source.get("score_unit", "fraction") != "fraction":
        return Rate(value, nan, nan)
    if source.get("unit") == "pairs":  # F1 is no mean over samples
        return _times(Rate(value, nan, nan), 100)
    return _times(share(value, _count(source)), 100)


def _drop(source: Mapping[str, Any]) -> Rate:
    """The drop; what is lost and gained are NDR and PDR of a benchmark's own metric, the soft ones of a record."""
    value, n = _number(source, "drop"), _count(source)
    if source.get("score_unit", "fraction") != "fraction":
        return Rate(value, nan, nan)
    names = ("soft_ndr", "soft_pdr") if "soft_ndr" in source else ("ndr", "pdr")
    lost, gained = (_number(source, name) for name in names)
    if isnan(lost) or isnan(gained) or source.get("soft_unit", "fraction") != "fraction":
        return _times(Rate(value, nan, nan), 100)
    return _times(difference(value, lost + gained, n), 100)


def share(p: float, n: int) -> Rate:
    """A mean of n scores in [0, 1] with Wilson's interval, which is too wide, never too narrow, for soft scores.

    The variance of such a score is at most p (1 - p), that of scores 0 and 1.
    """
    if n <= 0 or isnan(p):
        return NO_RATE
    centre = (p + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * sqrt(max(0.0, p * (1 - p)) / n + _Z * _Z / (4 * n * n))
    return Rate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def difference(drop: float, changed: float, n: int) -> Rate:
    """A mean of n paired differences of scores in [0, 1], with the interval of Agresti and Min (2005).

    Args:
        drop: mean of the differences.
        changed: mean of their sizes, what is lost plus what is gained: at least the mean of their squares, and equal to
            it for scores 0 and 1. For soft scores the interval is too wide, never too narrow.
    """
    if n <= 0 or isnan(drop):
        return NO_RATE
    size = n + 2
    centre, squares = drop * n / size, (changed * n + 1) / size
    half = _Z * sqrt(max(0.0, squares - centre * centre) / size)
    return Rate(drop, max(-1.0, min(drop, centre - half)), min(1.0, max(drop, centre + half)))


def _times(rate: Rate, factor: float) -> Rate:
    return Rate(rate.value * factor, rate.low * factor, rate.high * factor)


def _number(source: Mapping[str, Any], key: str) -> float:
    value = source.get(key)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usable and value is not None else nan


def _count(source: Mapping[str, Any]) -> int:
    n = _number(source, "n")
    return 0 if isnan(n) else int(n)
