"""Processes on this machine: one per visible GPU, or some on the CPU."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import StudyConfigError
from ..schema import EngineSpec
from ..worker import Job, Outcome, run_job
from .base import Started


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time: its name, and the variables that give it its GPUs or its share of the cores."""

    name: str
    environment: Mapping[str, str]


class LocalEngine:
    """One thread per slot takes jobs from a queue."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""
        return len(self.slots)

    @property
    def description(self) -> str:
        """The slots in a few words."""
        kind = "GPU" if self.slots[0].name.startswith("GPU") else "CPU"
        return f"{self.workers} {kind} worker{'s' if self.workers > 1 else ''}"

    def scratch(self, folder: Path) -> str | None:
        """In the study's folder: logs are then moved, not copied, to their place."""
        return str(folder.resolve())

    def run(self, jobs: Sequence[Job]) -> Generator[Started | Outcome, None, None]:
        """See `Engine.run`."""
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        events: queue.SimpleQueue[Started | Outcome | BaseException] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        stop = threading.Event()
        threads = [
            threading.Thread(target=_serve, args=(slot, waiting, events, stop), daemon=True)
            for slot in self.slots[: len(jobs)]
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(jobs)
            while left:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                left -= isinstance(event, Outcome)
                yield event
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _serve(
    slot: Slot,
    waiting: queue.SimpleQueue[Job],
    events: queue.SimpleQueue[Started | Outcome | BaseException],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        events.put(Started(job, slot.name))
        try:
            events.put(run_job(job, slot.environment, stop.is_set))
        except BaseException as error:  # an error of ours, which must not leave the main thread waiting
            events.put(error)
            return


def local_engine(spec: EngineSpec) -> LocalEngine:
    """The slots of this machine: its visible GPUs in groups as large as a job needs, or `workers` shares of its cores.

    Raises:
        StudyConfigError: jobs need more GPUs than there are.
    """
    gpus = visible_gpus()
    wanted = spec.resources.gpus
    per_job = spec.processes if wanted is None else int(wanted) if wanted == int(wanted) else 0
    if wanted and not gpus:
        raise StudyConfigError(f"engine.resources.gpus is {wanted:g}, but no GPU is visible here")
    if not gpus or wanted == 0:
        return LocalEngine(_cpu_slots(spec.workers or 1, hide=bool(gpus)))
    if not per_job:
        raise StudyConfigError("the local engine gives whole GPUs: engine.resources.gpus must be a whole number")
    groups = [gpus[start : start + per_job] for start in range(0, len(gpus) - per_job + 1, per_job)]
    if not groups:
        raise StudyConfigError(f"a process needs {per_job} GPUs, but {len(gpus)} are visible")
    if spec.workers is not None and spec.workers > len(groups):
        raise StudyConfigError(f"engine.workers is {spec.workers}, but the visible GPUs are enough for {len(groups)}")
    return LocalEngine(
        [
            Slot(f"GPU {','.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)})
            for group in groups[: spec.workers or len(groups)]
        ]
    )


def _cpu_slots(count: int, hide: bool) -> list[Slot]:
    """Several processes that each use all cores are slower than one: each gets its share, unless the user says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"ACCELERATE_USE_CPU": "1", **({"CUDA_VISIBLE_DEVICES": ""} if hide else {})}
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, cores // count))
    return [Slot(f"CPU {number}", environment) for number in range(1, count + 1)]


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or else the numbers of all GPUs; asks nvidia-smi, since torch takes seconds."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
