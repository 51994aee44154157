"""Processes on the nodes of a Ray cluster: one Ray task per job, wherever its GPUs, CPUs and memory are free.

Ray finds the place and says when it is gone. What failed is planned again by the runner; Ray runs nothing twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ClusterError
from ..plan import PACKAGES, QUANTIZERS, installed_versions
from ..schema import EngineSpec
from ..worker import Job, Outcome, run_job
from .base import Started
from .watchdog import watched

#: Seconds to find out whether a cluster answers; Ray itself takes two minutes, and then ends the process.
_CONNECT, _ANSWER = 5.0, 20.0
#: Seconds between two looks at the cluster while nothing happens, and until a study that no node can run is given up.
_POLL, _HOMELESS = 1.0, 300.0
#: Seconds that tasks have to end when they are cancelled: more than `worker` gives their processes.
_GRACE = 15.0
#: Seconds until a folder made here must be seen on a node: network file systems remember what was not there.
_VISIBLE = 60.0
#: Tasks that Ray knows of at a time, and how often a job is handed to it when its node is lost before it began.
_IN_FLIGHT, _SUBMISSIONS = 1000, 5


@dataclass(frozen=True)
class Needs:
    """What one task occupies. memory: bytes."""

    gpus: float
    cpus: float
    memory: float

    def __str__(self) -> str:
        parts = [f"{self.gpus:g} GPU"] if self.gpus else []
        parts += [f"{self.cpus:g} CPU"] if self.cpus else []
        parts += [f"{self.memory / 1e9:g} GB of memory"] if self.memory else []
        return ", ".join(parts)

    def room(self, node: Mapping[str, float]) -> int:
        """How many of these a node has place for, when nothing else runs on it."""
        wanted = {"GPU": self.gpus, "CPU": self.cpus, "memory": self.memory}
        return min(int(node.get(name, 0.0) / amount) for name, amount in wanted.items() if amount)


@dataclass(frozen=True)
class Refused:
    """A node cannot run jobs of this study at all; the study ends, for such a node would fail one job after another."""

    problem: str


class RayEngine:
    """Hands jobs to a cluster that this process is connected to."""

    def __init__(self, needs: Needs, limit: int | None) -> None:
        """`needs`: of one job; `limit`: jobs at a time, None for as many as there is place for."""
        self._needs, self._limit = needs, limit

    @property
    def workers(self) -> int:
        """How many jobs run at a time, as the cluster is now."""
        return max(1, min(self._room(), self._limit or _IN_FLIGHT))

    @property
    def description(self) -> str:
        """Nodes and room in a few words."""
        nodes, workers = len(_nodes()), self.workers
        return f"Ray, {nodes} node{'s' if nodes > 1 else ''}: {workers} worker{'s' if workers > 1 else ''}"

    def scratch(self, folder: Path) -> str | None:
        """In the study's folder, which all nodes share."""
        return str(folder.resolve())

    def run(self, jobs: Sequence[Job]) -> Generator[Started | Outcome, None, None]:
        """See `Engine.run`.

        Raises:
            ClusterError: a node does not see the study's folder, or lacks packages or their versions.
        """
        # What belongs to the driver's disk is of no use to nodes that store their logs behind a URL.
        jobs = [replace(job, scratch=None) if "://" in job.store else job for job in jobs]
        with _beacon(jobs) as name:
            flight = _Flight(self._needs, name, deque(jobs), min(self._limit or _IN_FLIGHT, _IN_FLIGHT))
            homeless: float | None = None
            try:
                while flight.jobs:
                    yield from flight.events()
                    if flight.begun or self._room():
                        homeless = None
                    elif time.monotonic() - (homeless := homeless or time.monotonic()) > _HOMELESS:
                        problem = f"no node of the Ray cluster has {self._needs}, for {_HOMELESS / 60:.0f} minutes now"
                        yield from flight.give_up(problem)
            finally:
                flight.cancel()

    def _room(self) -> int:
        return sum(self._needs.room(node) for node in _nodes())


class _Flight:
    """Jobs that Ray has, or that wait for it."""

    def __init__(self, needs: Needs, beacon: str, waiting: deque[Job], limit: int) -> None:
        import ray

        self.waiting, self.limit = waiting, limit
        self.begun: dict[str, str] = {}  # where the jobs run that have begun, by name
        self.running: dict[Any, Job] = {}  # by the generator of their events
        self._submissions: dict[str, int] = {}
        environment = _environment(needs)
        # Small values come back in the answer to the call itself: nothing waits in the memory of a node that is lost.
        task = ray.remote(num_returns="streaming", max_retries=0, retry_exceptions=False)(work)
        options = task.options(num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory or None)
        versions = installed_versions((*PACKAGES, *QUANTIZERS))
        self._submit: Callable[[Job], Any] = lambda job: options.remote(job, environment, versions, beacon)

    @property
    def jobs(self) -> bool:
        """Whether any is left."""
        return bool(self.waiting or self.running)

    def events(self) -> Iterator[Started | Outcome]:
        """What has happened, after a second at the latest."""
        import ray

        while self.waiting and len(self.running) < self.limit:
            job = self.waiting.popleft()
            self._submissions[job.name] = self._submissions.get(job.name, 0) + 1
            self.running[self._submit(job)] = job
        ready, _ = ray.wait(list(self.running), num_returns=1, timeout=_POLL)
        for generator in ready:
            event = self._event(generator)
            if event is None:
                continue
            if isinstance(event, Started):
                self.begun[event.job.name] = event.where
            else:
                self.begun.pop(event.job.name, None)
                del self.running[generator]
            yield event

    def _event(self, generator: Any) -> Started | Outcome | None:
        """The next event of a task, whatever became of it; None when it is handed to Ray again."""
        import ray

        job = self.running[generator]
        try:
            event = ray.get(next(generator))
        except StopIteration:
            return Outcome(job, "its Ray task ended without a result")
        except ray.exceptions.RayTaskError as error:
            if job.name not in self.begun:  # the node lacks this package, say
                raise ClusterError(f"a node of the Ray cluster cannot run the study: {_last_line(error)}") from error
            return Outcome(job, f"its Ray task failed: {_last_line(error)}", host=self.begun.get(job.name, ""))
        except ray.exceptions.RayError as error:
            if job.name not in self.begun and self._submissions[job.name] < _SUBMISSIONS:
                del self.running[generator]
                self.waiting.append(job)  # nothing of it ran: that is no attempt
                return None
            return Outcome(job, _lost(error, self.begun.get(job.name, "")), host=self.begun.get(job.name, ""))
        if isinstance(event, Refused):
            raise ClusterError(event.problem)
        return event if isinstance(event, (Started, Outcome)) else None

    def give_up(self, problem: str) -> Iterator[Outcome]:
        """Fail all that is left."""
        jobs = [*self.running.values(), *self.waiting]
        self.cancel()
        self.waiting.clear()
        yield from (Outcome(job, problem) for job in jobs)

    def cancel(self) -> None:
        """End what still runs: the tasks are interrupted and kill their processes; those that do not are killed."""
        import ray

        left, self.running = self.running, {}
        for generator in left:
            ray.cancel(generator)
        ends = {generator.completed(): generator for generator in left}
        if ends:
            _, alive = ray.wait(list(ends), num_returns=len(ends), timeout=_GRACE)
            for end in alive:  # their processes end with them: see `watchdog`
                ray.cancel(ends[end], force=True)


def work(
    job: Job, environment: Mapping[str, str], versions: Mapping[str, str], beacon: str
) -> Iterator[Started | Outcome | Refused]:
    """What a Ray task does, on some node: yields `Started`, then how it went."""
    if problem := _unfit(job, versions, beacon):
        yield Refused(problem)
        return
    yield Started(job, _where())
    with watched() as mark:
        outcome = run_job(job, {**environment, **mark})
    yield outcome


def _unfit(job: Job, versions: Mapping[str, str], beacon: str) -> str:
    """Why this node cannot run the job: other versions would be stored under a key that does not name them."""
    host = socket.gethostname()
    here = installed_versions(tuple(versions))
    for package, version in versions.items():
        unknown = package in QUANTIZERS and "-" in (version, here[package])  # may not be needed
        if here[package] != version and not unknown:
            return (
                f"node {host} has {package} {here[package]}, but the study was planned with {version}; "
                "install the same versions on all nodes of the cluster"
            )
    end = time.monotonic() + _VISIBLE
    while job.scratch is not None and beacon not in _listed(Path(job.scratch)):
        if time.monotonic() > end:
            return (
                f"node {host} does not see {Path(job.scratch).parent}; name a folder on a file system that all "
                "nodes share, at the same path, or an fsspec URL, with -o"
            )
        time.sleep(_POLL)
    return ""


def _listed(folder: Path) -> list[str]:
    """Names in a folder; asking for a single file may be answered from what a network file system remembers."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _where() -> str:
    """This node for people; several nodes may be on one machine."""
    import ray

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    node = ray.get_runtime_context().get_node_id()[:8]
    return f"{socket.gethostname()}, node {node}" + (f", GPU {gpus}" if gpus else "")


def _environment(needs: Needs) -> dict[str, str]:
    """Beside the node's own. Ray sets CUDA_VISIBLE_DEVICES for jobs with GPUs, but does not hide them from others."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, int(needs.cpus)))
    return {"OMP_NUM_THREADS": threads} | (
        {} if needs.gpus else {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    )


@contextlib.contextmanager
def _beacon(jobs: Sequence[Job]) -> Iterator[str]:
    """Leave a file in the jobs' scratch folders, by which nodes know that they see the same ones; its name."""
    name = f"ray-{uuid.uuid4().hex}"
    files = [Path(scratch) / name for scratch in {job.scratch for job in jobs} if scratch is not None]
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    except OSError as error:
        raise ClusterError(f"{error.filename}: cannot be written: {error.strerror}") from error
    try:
        yield name
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _lost(error: Exception, where: str) -> str:
    """In words, what Ray says of a task that did not come back."""
    import ray

    at = f" ({where})" if where else ""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"Ray killed it: its node{at} ran out of memory; say engine.resources.memory_gb"
    if isinstance(error, (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError)):
        return f"its node{at} was lost"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its Ray worker{at} was killed"
    return f"Ray lost it{at}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _last_line(error: Exception) -> str:
    """Of a remote traceback, what was raised."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def ray_engine(spec: EngineSpec) -> RayEngine:
    """Connect to the cluster of `spec.address`.

    Raises:
        ClusterError: Ray is not installed, the cluster does not answer, or none of its nodes has what a job needs.
    """
    _connect(spec.address)
    nodes, wanted = _nodes(), spec.resources
    gpus = wanted.gpus
    if gpus is None:
        gpus = float(spec.processes) if any(node.get("GPU") for node in nodes) else 0.0
    cpus = 1.0 if wanted.cpus is None else wanted.cpus
    needs = Needs(gpus, cpus, float(int((wanted.memory_gb or 0.0) * 1e9)))
    if not any(needs.room(node) for node in nodes):
        most = Needs(*(max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("GPU", "CPU", "memory")))
        raise ClusterError(
            f"no node of the Ray cluster has {needs}, which a process needs (engine.resources); "
            f"the most that nodes have is {most}; where nodes are started on demand, keep one"
        )
    return RayEngine(needs, spec.workers)


def _nodes() -> list[Mapping[str, float]]:
    """The resources of every node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _connect(address: str) -> None:
    with _own_signals():
        try:
            import ray
        except ImportError as error:
            raise ClusterError(
                f"engine.kind: ray needs Ray: pip install 'lmms-eval-stability[ray]' ({error})"
            ) from error
        if ray.is_initialized():
            return
        _check_that_it_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (Exception, SystemExit) as error:
            reason = str(error).strip() if isinstance(error, Exception) else "it does not answer"
            raise ClusterError(f"cannot join the Ray cluster at {address}: {reason}; {_REMEDY}") from error


_REMEDY = "`ray start --head` starts one, `ray start --address HOST:PORT` adds this machine to it (docs/cluster.md)"


def _check_that_it_answers(address: str) -> None:
    """Ray itself would try for two minutes: is there something at this address, and is it the head of a cluster?"""
    found = _resolved(address)
    if found is None:
        return  # Ray looks for a process on this machine, and says at once when there is none
    named = found if address == found else f"{found} (engine.address: {address})"
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()
        asked = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", found],
            capture_output=True,
            text=True,
            timeout=_ANSWER,
            check=False,
        )
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster at {named}: {error}; {_REMEDY}") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"what listens at {named} is no head of a Ray cluster, or too busy; {_REMEDY}") from error
    if asked.returncode:
        reason = (asked.stderr.strip() or asked.stdout.strip()).rpartition("\n")[2]
        raise ClusterError(f"the Ray cluster at {named} refuses: {reason}; {_REMEDY}")


def _resolved(address: str) -> str | None:
    """HOST:PORT behind `auto`, as Ray finds it: RAY_ADDRESS, then what the last `ray start` wrote; None without."""
    if address != "auto":
        return address
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    try:
        written = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return written.strip() or None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself and leaves without a word; here it means what it meant before."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray takes none
            signal.signal(signal.SIGTERM, before)
