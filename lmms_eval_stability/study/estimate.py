"""How long the rest of a study takes, from what its finished shards took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .jobs import Work
from .plan import Cell, Plan
from .store import Finished


@dataclass(frozen=True)
class Estimate:
    """Seconds of one worker for everything left.

    Attributes:
        seconds: the sum over processes that can be estimated.
        unknown: processes that cannot: nothing like them is finished, or nobody knows how many documents they have.
    """

    seconds: float
    unknown: int


@dataclass(frozen=True)
class _Pace:
    startup: float
    per_document: float


def estimate(plan: Plan, work: Sequence[Work], finished: Mapping[str, Sequence[Finished]]) -> Estimate:
    """Estimate from the nearest finished work there is: the cell's own, its run's, its base's.

    A shard costs its start (imports, loading) once and a time per document; lmms-eval logs how long it generated.
    """
    seconds, unknown = 0.0, 0
    for one in work:
        documents = one.documents
        pace = _pace(plan, one.cells[0], finished)
        if documents is None or pace is None:
            unknown += 1
        else:
            seconds += pace.startup + documents * pace.per_document
    return Estimate(seconds, unknown)


def _pace(plan: Plan, cell: Cell, finished: Mapping[str, Sequence[Finished]]) -> _Pace | None:
    alike: list[Callable[[Cell], bool]] = [
        lambda other: other.key == cell.key,
        lambda other: (other.base, other.run) == (cell.base, cell.run),
        lambda other: (other.base, other.task) == (cell.base, cell.task),
        lambda other: other.base == cell.base,
    ]
    for is_alike in alike:
        keys = dict.fromkeys(other.key for other in plan.cells if is_alike(other))
        if pace := _mean(shard for key in keys for shard in finished.get(key, ())):
            return pace
    return None


def _mean(shards: Iterable[Finished]) -> _Pace | None:
    known = [shard for shard in shards if shard.documents]
    if not known:
        return None
    generating = sum(shard.seconds - (shard.startup or 0.0) for shard in known)
    return _Pace(fmean(shard.startup or 0.0 for shard in known), generating / sum(shard.documents for shard in known))


def duration(seconds: float) -> str:
    """Seconds for people: `40 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
