"""The end of a study: complete cells become runs, and each base's runs are compared with its baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..detection_study import tasks_of
from ..errors import OutputError, StabilityError
from .checks import BASELINE, RERUN
from .jobs import CellState
from .merge import merge_run
from .plan import Plan
from .runner import StudyResult
from .store import Store

if TYPE_CHECKING:
    from ..comparison import Comparison


@dataclass(frozen=True)
class BaseReport:
    """What came of one base model.

    Attributes:
        base: its label.
        comparison: None when there was nothing to compare, or it was refused.
        written: files of the report.
        problem: why there is no comparison; empty where there is one.
    """

    base: str
    comparison: Comparison | None = None
    written: tuple[Path, ...] = ()
    problem: str = ""


def write_runs(plan: Plan, result: StudyResult, store: Store, folder: Path) -> None:
    """Merge the complete cells of every run into `folder/runs/BASE/RUN`; a run without any has no folder.

    Raises:
        OutputError: the disk is full, say.
    """
    for base, run in plan.runs:
        complete = [state for state in result.of_run(base, run) if state.complete]
        target = run_folder(folder, base, run)
        try:
            if complete:
                target.parent.mkdir(parents=True, exist_ok=True)
                merge_run(store, complete, target, plan.study.limit)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def run_folder(folder: Path, base: str, run: str) -> Path:
    """Where a merged run lies."""
    return folder / "runs" / base / run


def compare_bases(
    plan: Plan, result: StudyResult, folder: Path, report: Callable[[str], Path], on_base: Callable[[BaseReport], None]
) -> list[BaseReport]:
    """Compare, for every base, the runs that have complete cells with the baseline's complete cells.

    Args:
        plan, result: the study.
        folder: where `write_runs` has put the runs.
        report: folder of a base's report.
        on_base: called with each base's report as soon as it is there.
    """
    reports = []
    for base in plan.study.bases:
        try:
            one = _compare(plan, result, base, folder, report(base))
        except StabilityError as error:
            one = BaseReport(base, problem=str(error))
        on_base(one)
        reports.append(one)
    return reports


def _compare(plan: Plan, result: StudyResult, base: str, folder: Path, report: Path) -> BaseReport:
    from ..comparison import compare_runs
    from ..report.folder import ReportFolder

    options = plan.study.compare
    names = [run for of, run in plan.runs if of == base]
    tasks = {run: _tasks(result.of_run(base, run)) for run in names}
    held = [run for run in names if tasks[run] & tasks[BASELINE] and run != BASELINE]
    again = [run for run in held if run.startswith(RERUN)]
    others = [run for run in held if run not in again]
    if not tasks[BASELINE]:
        return BaseReport(base, problem="no task of the baseline is complete")
    if not others:
        return BaseReport(base, problem="no run has a complete task in common with the baseline")
    used = sorted(set.union(*(tasks[run] for run in others)) & tasks[BASELINE])
    uneven = any(tasks[run] & set(used) != set(used) for run in (*others, *again))
    with contextlib.ExitStack() as stack:
        written = stack.enter_context(ReportFolder(report, page=options.html, images=options.images))
        comparison = compare_runs(
            run_folder(folder, base, BASELINE),
            [run_folder(folder, base, run) for run in others],
            rerun=[run_folder(folder, base, run) for run in again],
            correct_at=options.correct_at,
            # which cells are missing, and which runs have fewer tasks, is known here: it is no accident of the logs
            accept=[*options.accept, "task"] if uneven else options.accept,
            tasks=[task.task for task in plan.study.tasks if task.task in used],
            metric=options.metric,
            prediction=options.prediction,
            reliability=options.reliability,
            # a pair with a task that is not complete is no mistake of the study's: what is missing is said anyway
            ood=[pair for pair in options.ood if tasks_of(pair) <= set(used)],
            on_pairs=written.add_pairs,
        )
        return BaseReport(base, comparison, tuple(written.finish(comparison)))


def _tasks(states: list[CellState]) -> set[str]:
    return {state.cell.task for state in states if state.complete}


def missing_lines(result: StudyResult) -> list[str]:
    """What of a study is not complete, one line per cell and one per failed process, with the end of its log."""
    lines = []
    for state in result.states:
        if state.mismatch:
            lines.append(f"{state.cell.name}: {state.mismatch}; correct the number in the study's YAML")
        elif not state.complete:
            of = "" if state.cell.samples is None else f" of {state.cell.samples:,}"
            lines.append(f"{state.cell.name}: {state.documents:,}{of} samples are there")
    for failure in result.failures:
        lines.append(f"{failure.job.title}: {failure.problem}" + (f"; its log: {failure.log}" if failure.log else ""))
        lines += [f"    {line}" for line in failure.tail.splitlines()]
    return lines
