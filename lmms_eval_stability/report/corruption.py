"""Corruption errors in words and cells: grids for every output, lines below them, and `corruption.csv`."""

from __future__ import annotations

import csv
import io
from math import isnan

from ..compared import Comparison, RunComparison
from ..corruption import MEAN, CorruptionError
from ..corruption_study import REPLICATES, SEED, TaskCorruption
from .sections import Grid
from .values import NOTHING, percent

CSV_COLUMNS = (
    "run", "task", "clean_task", "method", "n", "levels", "error_baseline", "error_run", "ce", "ce_low", "ce_high",
    "relative_ce", "undefined",
)  # fmt: skip


def to_csv(comparison: Comparison) -> str:
    """One row per run, perturbed task and method, and one for their mean; empty for what there is not."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in comparison.runs:
        for task in run.corruption:
            for error in task.errors:
                writer.writerow({"run": run.label, "clean_task": task.clean_task, **error.record()})
    return out.getvalue()


def corruption_grids(run: RunComparison, every: bool = False) -> list[Grid]:
    """A table per perturbed task.

    Args:
        run: compared with `reliability`.
        every: a row per method; otherwise the mean over them alone.
    """
    return [_errors(task, every) for task in run.corruption if task.errors]


def corruption_lines(run: RunComparison) -> list[str]:
    """What stands below the tables of one run."""
    lines = []
    for task in run.corruption:
        if task.missing:
            lines.append(f"reliability: {task.missing}")
        elif not task.clean_task:
            lines.append(f"relative CE ({task.task}): the task without perturbations is not compared here")
        if task.errors and (left_out := task.errors[-1].undefined):
            lines.append(f"mCE ({task.task}): {left_out} methods left out, under which the baseline makes no error")
        if task.clean_task and (left_out := sum(isnan(error.relative) for error in task.errors[:-1])):
            lines.append(
                f"relative CE ({task.task}): {left_out} methods left out, under which the baseline loses nothing"
            )
    return lines


def _errors(task: TaskCorruption, every: bool) -> Grid:
    rows = task.errors if every else task.errors[-1:]
    methods, clusters = len(task.errors) - 1, task.errors[-1].ce.clusters
    title = (
        f"Corruption errors, {task.task}: {methods} methods, mean over their levels; CE above 1: the run errs more "
        f"than the baseline; intervals of {REPLICATES:,} bootstrap replicates over {clusters} clusters "
        f"(seed {SEED})"
    )
    names = ["perturbation", "n", "levels", "error baseline (%)", "error run (%)", "CE", "relative CE"]
    return title, names, [_cells(row) for row in rows], 1


def _cells(row: CorruptionError) -> list[str]:
    name = "mean (mCE)" if row.method == MEAN else row.method
    errors = [percent(value, 1) for value in (row.error_baseline, row.error_run)]
    ce = _number(row.ce.value)
    if not isnan(row.ce.low):
        ce += f" [{_number(row.ce.low)}, {_number(row.ce.high)}]"
    return [name, str(row.n), str(row.levels), *errors, ce, _number(row.relative)]


def _number(value: float) -> str:
    return NOTHING if isnan(value) else f"{value:.2f}"
