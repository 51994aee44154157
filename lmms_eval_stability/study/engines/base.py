"""What an engine is: something that takes jobs and yields how they went."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..worker import Job, Outcome


@dataclass(frozen=True)
class Started:
    """A job has begun; `where` is the worker, for people."""

    job: Job
    where: str = ""


class Engine(Protocol):
    """Runs jobs. An engine only has to call `worker.run_job(job, environment, stop)` somewhere.

    Which jobs there are, which are run again, and what is stored where is not its business: a job that never came back
    (its machine is gone, its worker was killed) is an `Outcome` with a `problem`, and the runner plans it again.
    """

    @property
    def workers(self) -> int:
        """How many jobs run at a time, for estimates."""

    @property
    def description(self) -> str:
        """In a few words, such as `2 CPU workers`."""

    def scratch(self, folder: Path) -> str | None:
        """Where running processes keep their files: `folder`, in the study's, where workers see it, or None."""

    def run(self, jobs: Sequence[Job]) -> Generator[Started | Outcome, None, None]:
        """Run all jobs and yield, for each, `Started` (which may be left out) and one `Outcome`, as they happen.

        A consumer that closes the iterator, or an exception such as KeyboardInterrupt while it waits, stops and kills
        everything that still runs, before the iterator ends.
        """
