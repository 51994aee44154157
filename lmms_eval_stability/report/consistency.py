"""Change of the spectrum of the visual tokens against unchanged answers, in words and cells: see `..consistency`."""

from __future__ import annotations

import csv
import io
from math import isnan

from ..comparison import Comparison
from ..consistency import Correlation, TaskConsistency
from .sections import Grid
from .values import NOTHING, p_value, rate

CSV_COLUMNS = (
    "task", "run", "n", "missing", "ipr_change", "consistency", "consistency_low", "consistency_high", "rho", "p",
    "exact", "resamples",
)  # fmt: skip


def to_csv(comparison: Comparison) -> str:
    """One row per task and run, `rho` and `p` across its samples; then one across the task's runs, without a run."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for task in comparison.consistency:
        writer.writerows({"task": task.task, **run.record()} for run in task.runs)
        writer.writerow({"task": task.task, "n": task.across.n, **task.across.record()})
    return out.getvalue()


def consistency_grids(comparison: Comparison) -> list[Grid]:
    """A table per task with a row per run."""
    return [_grid(task) for task in comparison.consistency]


def _grid(task: TaskConsistency) -> Grid:
    names = ["run", "n", "mean |ΔIPR|", "1 − DR (%)", "ρ across samples", "p"]
    rows = [
        [run.run, str(run.n), f"{run.change:.3f}", rate(run.consistency, 1), _rho(run.samples), p_value(run.samples.p)]
        for run in task.runs
    ]
    return f"Spectrum of the visual tokens and unchanged answers, {task.task}", names, rows, 1


def consistency_lines(comparison: Comparison) -> list[str]:
    """One line per task that several runs have: LoFi's claim, as found."""
    return [_line(task) for task in comparison.consistency if len(task.runs) > 1]


def _line(task: TaskConsistency) -> str:
    rhos = [run.samples.rho for run in task.runs if not isnan(run.samples.rho)]
    within = f"; across samples, run by run: ρ {_signed(min(rhos))} to {_signed(max(rhos))}" if rhos else ""
    return (
        f"change of the visual tokens' spectrum against unchanged answers ({task.task}): Spearman ρ of mean |ΔIPR| and "
        f"1 − DR across {task.across.n} runs {_rho(task.across)} ({_test(task.across)}){within}"
    )


def _test(found: Correlation) -> str:
    if isnan(found.p):
        return "fewer than three runs, or all alike"
    how = "all permutations" if found.exact else f"{found.resamples:,} permutations"
    return f"p {p_value(found.p)}, two-sided, {how}"


def _rho(found: Correlation) -> str:
    return NOTHING if isnan(found.rho) else _signed(found.rho)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
