"""Cells to processes: what is left to do, split into shards, or several tasks of a run in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import Call, Cell, Plan
from .store import Finished, Span, chosen, missing


@dataclass(frozen=True)
class Work:
    """What one lmms-eval process does: some documents of one cell, or all of several cells of one run.

    Attributes:
        cells: with one call, and distinct tasks.
        span: which documents, of every task.
    """

    cells: tuple[Cell, ...]
    span: Span

    @property
    def call(self) -> Call:
        """What the cells have in common."""
        return self.cells[0].call

    @property
    def name(self) -> str:
        """For files: `KEY_FIRST-STOP`, of the first cell."""
        more = f"+{len(self.cells) - 1}" if len(self.cells) > 1 else ""
        return f"{self.cells[0].key}{more}_{self.span.name}"

    @property
    def title(self) -> str:
        """For people."""
        first = self.cells[0]
        tasks = ",".join(cell.task for cell in self.cells)
        documents = f" [{self.span.name}]" if self.span.first or first.is_split else ""
        return f"{first.base}/{first.run} {tasks}{documents}"

    @property
    def documents(self) -> int | None:
        """How many answers; None while nobody knows."""
        whole = self.span.first == 0 and not self.cells[0].is_split
        counts = [cell.samples if whole else self.span.count for cell in self.cells]
        return None if None in counts else sum(count or 0 for count in counts)


@dataclass(frozen=True)
class CellState:
    """How far a cell is.

    Attributes:
        done: its complete shards, without repeated documents. left: the documents that are missing, in shards.
        mismatch: in words, when the task has another number of documents than the study says.
    """

    cell: Cell
    done: tuple[Finished, ...]
    left: tuple[Span, ...]
    mismatch: str = ""

    @property
    def complete(self) -> bool:
        """Whether every document is answered."""
        return not self.left and not self.mismatch

    @property
    def documents(self) -> int:
        """How many are answered."""
        return sum(shard.documents for shard in self.done)


def states(plan: Plan, finished: Mapping[str, Sequence[Finished]]) -> list[CellState]:
    """How far every cell of a plan is, in order; cells with one key share their shards."""
    return [_state(plan, cell, finished.get(cell.key, ())) for cell in plan.cells]


def _state(plan: Plan, cell: Cell, finished: Sequence[Finished]) -> CellState:
    done = chosen(finished)
    limit = plan.study.limit
    if done and cell.known_size:
        said = next(task.samples for task in plan.study.tasks if task.task == cell.task)
        if said != done[0].total:
            text = f"task {cell.task} has {done[0].total} documents, but the study says samples: {said}"
            return CellState(cell, tuple(done), (), text)
    # Undivided, lmms-eval finds the end of the task itself; spans of several tasks are then equal and share a process.
    gaps = missing(cell.samples if cell.is_split else limit, done, limit)
    return CellState(cell, tuple(done), tuple(piece for gap in gaps for piece in _split(gap, cell.shard)))


def _split(span: Span, size: int | None) -> list[Span]:
    if size is None or span.stop is None:
        return [span]
    return [Span(first, min(first + size, span.stop)) for first in range(span.first, span.stop, size)]


def work_left(plan: Plan, finished: Mapping[str, Sequence[Finished]], share: bool = True) -> list[Work]:
    """The processes to start, in the order of the plan; equal cells are done once.

    Args:
        plan: the study's plan. finished: its complete shards, by key.
        share: tasks of a run may share a process; where one of them fails, it may take the others along.
    """
    work: list[Work] = []
    together: dict[tuple[str, str, Span], list[Cell]] = {}
    seen: set[str] = set()
    for state in states(plan, finished):
        cell = state.cell
        if cell.key in seen:
            continue
        seen.add(cell.key)
        if not state.done and len(state.left) == 1 and not cell.is_split:
            group = together.setdefault((cell.base, cell.run, state.left[0]), [])
            if not group:  # stands where its first cell does
                work.append(Work((cell,), state.left[0]))
            group.append(cell)
        else:
            work += [Work((cell,), span) for span in state.left]
    size = plan.study.tasks_per_process if share else 1
    return [piece for one in work for piece in _pieces(one, together, size)]


def _pieces(one: Work, together: Mapping[tuple[str, str, Span], list[Cell]], size: int | None) -> list[Work]:
    """A process with all tasks that belong to it, or several when that is too many."""
    first = one.cells[0]
    group = together.get((first.base, first.run, one.span), [first])
    if first is not group[0]:
        return [one]
    size = size or len(group)
    return [Work(tuple(group[start : start + size]), one.span) for start in range(0, len(group), size)]
