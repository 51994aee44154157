"""A study's plan for people: the grid, what is finished, and how much is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .estimate import duration, estimate
from .jobs import CellState, states, work_left
from .plan import Cell, Plan
from .store import Finished

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: More than any terminal has: nothing is cut off.
_WIDTH = 1000


def print_plan(console: Console, plan: Plan, finished: Mapping[str, Sequence[Finished]], workers: int) -> None:
    """Print the models, then the grid with a row per run and a column per task, then the totals.

    Args:
        console: where to.
        plan: the study's plan. finished: its complete shards, by key.
        workers: processes at a time, for the estimate.
    """
    from rich.text import Text

    study = plan.study
    console.width = _WIDTH  # a line that is too long is broken by the terminal; rich would cut columns
    title = f"{study.name}: {study.description}".rstrip(": ")
    console.print(Text(title, style="bold"), soft_wrap=True)
    found = {(state.cell.base, state.cell.run, state.cell.task): state for state in states(plan, finished)}
    tasks = [task.task for task in study.tasks]
    grid, models = _table("run", *tasks), _table("run", "lmms-eval --model", "--model_args")
    for base, run in plan.runs:
        call = plan.of_run(base, run)[0].call
        marks = [_mark(found.get((base, run, task))) for task in tasks]
        grid.add_row(*map(Text, (f"{base}/{run}", *marks)))
        models.add_row(*map(Text, (f"{base}/{run}", call.model, call.model_args_text)))
    for table in (models, grid):
        console.print(table)
        console.print()
    for line in _totals(plan, finished, workers):
        console.print(Text(line), soft_wrap=True)


def _table(*columns: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column), no_wrap=True)
    return table


def _mark(state: CellState | None) -> str:
    """How far a cell is: how many documents are answered of how many, and in how many processes the others will be."""
    if state is None:
        return "-"
    if state.mismatch:
        return "wrong size"
    if state.complete:
        return f"done ({state.documents:,})"
    samples = "?" if state.cell.samples is None else f"{state.cell.samples:,}"
    done = f"{state.documents:,} of " if state.done else ""
    split = f", {_number(len(state.left), 'shard')}" if len(state.left) > 1 or state.done else ""
    return f"{done}{samples}{split}"


def _totals(plan: Plan, finished: Mapping[str, Sequence[Finished]], workers: int) -> list[str]:
    found = states(plan, finished)
    work = work_left(plan, finished)
    distinct: dict[str, Cell] = {cell.key: cell for cell in plan.cells}
    complete = sum(state.complete for state in found)
    lines = [
        f"{_number(len(plan.runs), 'run')}, {_number(len(plan.cells), 'cell')} (one task of one run):"
        f" {complete} finished, {len(found) - complete} to do in {_number(len(work), 'process')}"
    ]
    if len(distinct) < len(plan.cells):
        lines.append(f"equal cells run once: {len(plan.cells) - len(distinct)} share the answers of another")
    unknown = [cell for cell in plan.cells if cell.samples is None]
    known = sum(cell.samples or 0 for cell in plan.cells)
    more = f", and {_number(len(unknown), 'cell')} of unknown size" if unknown else ""
    answered = sum(state.documents for state in found)
    lines.append(f"samples: {known:,}{more}; {answered:,} answered")
    lines += [f"error: {state.cell.name}: {state.mismatch}" for state in found if state.mismatch]
    lines.append(f"versions: {', '.join(f'{name} {text}' for name, text in plan.versions.items())}")
    if work:
        time = estimate(plan, work, finished)
        rest = f"; no estimate for {_number(time.unknown, 'process')}" if time.unknown else ""
        if time.unknown < len(work):
            lines.append(f"time left: {duration(time.seconds / workers)} with {_number(workers, 'worker')}{rest}")
        else:
            lines.append("time left: unknown; finished cells give an estimate")
    others = finished.keys() - distinct.keys()
    if others:
        lines.append(f"not part of this plan: {_number(len(others), 'finished cell')} of other settings or versions")
    return lines


def _number(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"
