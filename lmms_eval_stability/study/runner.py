"""A study from its plan to complete shards: what is missing is run, what failed is run again, nothing is run twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from .engines.base import Engine
from .jobs import CellState, Work, states, work_left
from .plan import Plan
from .progress import StudyProgress
from .store import Finished, Store
from .worker import Job, JobTask, Outcome, Resources


@dataclass(frozen=True)
class StudyResult:
    """How far a study is after a call.

    Attributes:
        states: of every cell of the plan, in order.
        failures: the last failure of each process whose documents are still missing.
    """

    states: tuple[CellState, ...]
    failures: tuple[Outcome, ...]

    @property
    def complete(self) -> bool:
        """Whether every document of every cell is answered."""
        return all(state.complete for state in self.states)

    def of_run(self, base: str, run: str) -> list[CellState]:
        """The cells of one run."""
        return [state for state in self.states if (state.cell.base, state.cell.run) == (base, run)]


def run_plan(
    plan: Plan,
    store: Store,
    engine: Engine,
    progress: StudyProgress,
    scratch: str | None = None,
) -> StudyResult:
    """Run what is missing, in rounds: all that is left, then, up to `retries` times, what of it failed.

    Tasks that shared a process and failed are run one by one: whatever is wrong with one does not stop the others.

    Args:
        plan: what there is to do.
        store: holds what is finished, and gets what is done now.
        engine: runs the processes.
        progress: is told of everything.
        scratch: folder for running processes; None for temporary ones on the worker.
    """
    failures: dict[str, Outcome] = {}
    for attempt in range(1, plan.study.engine.retries + 2):
        finished = store.finished()
        work = work_left(plan, finished, share=attempt == 1)
        if not work:
            complete = _complete(plan, finished)
            if complete == len(plan.cells):
                progress.begin((complete, complete), 0, 0, attempt)
            break
        jobs = [_job(plan, one, store, scratch, attempt) for one in work]
        counts = [job.documents for job in jobs]
        samples = None if None in counts else sum(count or 0 for count in counts)
        progress.begin((_complete(plan, finished), len(plan.cells)), len(jobs), samples, attempt)
        failures = {}
        with closing(engine.run(jobs)) as events:
            for event in events:
                if isinstance(event, Outcome):
                    for shard in event.shards:
                        finished.setdefault(shard.key, []).append(shard)
                    if event.problem:
                        failures[event.job.name] = event
                progress.event(event, _complete(plan, finished))
        if not failures:
            break
    found = states(plan, store.finished())
    lacking = {span for state in found for span in ((state.cell.key, left) for left in state.left)}
    left = [one for one in failures.values() if any((task.key, one.job.span) in lacking for task in one.job.tasks)]
    return StudyResult(tuple(found), tuple(left))


def _complete(plan: Plan, finished: Mapping[str, Sequence[Finished]]) -> int:
    return sum(state.complete for state in states(plan, finished))


def _job(plan: Plan, work: Work, store: Store, scratch: str | None, attempt: int) -> Job:
    engine = plan.study.engine
    needs = engine.resources
    return Job(
        name=work.name,
        title=work.title,
        call=work.call,
        span=work.span,
        tasks=tuple(JobTask(cell.task, cell.key, cell.name) for cell in work.cells),
        documents=work.documents,
        store=store.url,
        scratch=scratch,
        attempt=attempt,
        timeout=None if engine.timeout_minutes is None else 60 * engine.timeout_minutes,
        resources=Resources(needs.gpus, needs.cpus, needs.memory_gb),
    )
