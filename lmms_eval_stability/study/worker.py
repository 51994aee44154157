"""One lmms-eval process, from its command to its stored logs: what every engine runs, on whatever machine.

`run_job` takes a `Job` and returns an `Outcome`; both are small and can be pickled, and nothing else passes between an
engine and its workers. Answers go straight from the worker to the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import IncompleteLogError
from .logs import CompleteLog, complete_log
from .plan import Call
from .store import LOG, RESULTS, SAMPLES, Finished, Span, Store

#: Seconds between two looks at a running process, and those that it has to end when told to.
_POLL, _GRACE = 0.1, 5.0
_TAIL = 15
#: Starts a command that ends when its parent does, however that ended (Linux): "exec" keeps what prctl arranged.
_ORPHAN_GUARD = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('the study has ended')\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True)
class JobTask:
    """A task of a job: lmms-eval's name, the key under which it is stored, and the cell for people."""

    task: str
    key: str
    cell: str


@dataclass(frozen=True)
class Resources:
    """What one job occupies; None is the engine's choice."""

    gpus: float | None = None
    cpus: float | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Job:
    """One lmms-eval process.

    Attributes:
        name: unique within the study, fit for a file name. title: for people.
        call, span, tasks: the model, the documents, and what is asked about them.
        documents: how many answers are expected; None when nobody knows.
        store: URL of the store that gets the logs.
        scratch: folder for the running process, on the worker's machine; None for a temporary one.
        attempt: 1, and more for what is run again.
        timeout: seconds after which it has failed.
    """

    name: str
    title: str
    call: Call
    span: Span
    tasks: tuple[JobTask, ...]
    documents: int | None
    store: str
    scratch: str | None = None
    attempt: int = 1
    timeout: float | None = None
    resources: Resources = Resources()


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        problem: why it does not count, or not all of its tasks; empty when all logs are complete and stored.
        cancelled: stopped from outside; neither done nor failed.
        shards: what was stored.
        tail: the end of what lmms-eval printed, where it failed. log: where all of it lies.
    """

    job: Job
    problem: str = ""
    cancelled: bool = False
    shards: tuple[Finished, ...] = ()
    seconds: float = 0.0
    host: str = ""
    tail: str = ""
    log: str = ""

    @property
    def documents(self) -> int:
        """How many answers were stored."""
        return sum(shard.documents for shard in self.shards)

    @property
    def ok(self) -> bool:
        """Whether its logs are complete and stored."""
        return not self.problem and not self.cancelled


@dataclass
class _Process:
    """What is known of the process while it runs."""

    folder: Path
    problem: str = ""
    cancelled: bool = False
    seconds: float = 0.0
    logs: dict[str, CompleteLog] = field(default_factory=dict)


def run_job(
    job: Job, environment: Mapping[str, str] | None = None, stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run one lmms-eval process, check its logs, and store them when they are complete. Raises nothing but interrupts.

    Args:
        job: what to run.
        environment: variables for the process beside those of this one, such as CUDA_VISIBLE_DEVICES.
        stop: asked several times a second; the process and its children are killed when it says True, or when this
            function is left by an exception.
    """
    host = socket.gethostname()
    folder: Path | None = None
    try:
        if job.scratch is not None:
            Path(job.scratch).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{job.name}-", dir=job.scratch))
        state = _Process(folder)
        shards = _run(job, environment or {}, stop, state)
        if not state.problem or state.cancelled:
            return Outcome(job, cancelled=state.cancelled, shards=shards, seconds=state.seconds, host=host)
        tail, log = _kept(job, folder / LOG)
        return Outcome(job, state.problem, shards=shards, seconds=state.seconds, host=host, tail=tail, log=log)
    except OSError as error:
        return Outcome(job, f"cannot write or read: {error}", host=host)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _run(job: Job, environment: Mapping[str, str], stop: Callable[[], bool], state: _Process) -> tuple[Finished, ...]:
    """Fill in `state`; returns what was stored."""
    begun = time.monotonic()
    code = _execute(job, environment, stop, state)
    state.seconds = time.monotonic() - begun
    if state.problem or state.cancelled:
        return ()
    problems = []
    for task in job.tasks:
        try:
            state.logs[task.task] = complete_log(state.folder / "output", task.task, job.span)
        except IncompleteLogError as error:
            problems.append(str(error))
    state.problem = _exit(code) + "; ".join(dict.fromkeys(problems)) if problems else ""
    try:
        return _store(job, state)
    except OSError as error:
        state.problem = f"the logs cannot be stored: {error}"
        return ()


def _exit(code: int) -> str:
    if not code:
        return ""
    if code > 0:
        return f"exit code {code}; "
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}; "
    return f"killed by signal {-code}; "


def _execute(job: Job, environment: Mapping[str, str], stop: Callable[[], bool], state: _Process) -> int:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if job.call.offline else {}
    guard = [sys.executable, "-c", _ORPHAN_GUARD, str(os.getpid())]
    begun = time.monotonic()
    with (state.folder / LOG).open("wb") as output:
        process = subprocess.Popen(
            [*guard, *command(job, state.folder / "output")],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **offline, **environment},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if stop():
                    state.cancelled = True
                    break
                if job.timeout is not None and time.monotonic() - begun > job.timeout:
                    state.problem = f"still running after {job.timeout:.0f} s (engine.timeout_minutes)"
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
        finally:
            _kill(process)
    return process.returncode


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything that it started: they are one session. Also what outlived its parent."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def command(job: Job, output: Path) -> list[str]:
    """The command line of a job, absolute paths and all."""
    call, span = job.call, job.span
    arguments = ["--model", call.model, "--model_args", call.model_args_text, "--tasks"]
    arguments += [",".join(task.task for task in job.tasks), *call.arguments]
    arguments += ["--offset", str(span.first)] if span.first else []
    arguments += ["--limit", str(span.count)] if span.count is not None else []
    arguments += ["--log_samples", "--output_path", str(output)]
    return [*_launch(call), *arguments]


def _launch(call: Call) -> list[str]:
    python, count = sys.executable, str(call.processes)
    if call.processes == 1:
        return [python, "-m", "lmms_eval"]
    if call.launcher == "accelerate":
        return [python, "-m", "accelerate.commands.launch", "--num_processes", count, "-m", "lmms_eval"]
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m", "lmms_eval"]


def _store(job: Job, state: _Process) -> tuple[Finished, ...]:
    """Store each complete task as a shard of its own; seconds are shared out by documents."""
    store = Store(job.store)
    total = sum(log.stop - job.span.first for log in state.logs.values())
    shards = []
    for task in (task for task in job.tasks if task.task in state.logs):
        log = state.logs[task.task]
        share = (log.stop - job.span.first) / total
        folder = state.folder / task.key
        folder.mkdir()
        log.samples.replace(folder / SAMPLES)
        (folder / RESULTS).write_text(json.dumps(of_task(log.results, task.task), indent=2), encoding="utf-8")
        shutil.copyfile(state.folder / LOG, folder / LOG)
        startup = _startup(log.results, state.seconds)
        shard = Finished(
            key=task.key,
            span=job.span,
            stop=log.stop,
            total=log.total,
            seconds=round(state.seconds * share, 3),
            startup=None if startup is None else round(startup * share, 3),
            cell=task.cell,
            host=socket.gethostname(),
            sizes={name: (folder / name).stat().st_size for name in (SAMPLES, RESULTS, LOG)},
        )
        store.publish(folder, shard)
        shards.append(shard)
    return tuple(shards)


def of_task(results: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A results JSON without what it says about other tasks."""
    by_task = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    return {
        name: ({task: value[task]} if task in value else {}) if name in by_task and isinstance(value, dict) else value
        for name, value in results.items()
    }


def _startup(results: Mapping[str, Any], seconds: float) -> float | None:
    """Seconds outside of generation, of which lmms-eval logs the sum; None where it does not."""
    throughput = results.get("throughput")
    generating = throughput.get("total_elapsed_time") if isinstance(throughput, dict) else None
    if not isinstance(generating, (int, float)) or not 0 < generating <= seconds:
        return None
    return seconds - generating


def _kept(job: Job, log: Path) -> tuple[str, str]:
    """The end of the log of a failed process, and where all of it was stored."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", ""
    tail = "\n".join(lines[-_TAIL:])
    try:
        return tail, Store(job.store).keep_log(log, f"{job.name}_attempt_{job.attempt}")
    except OSError:  # on a full disk, say: the outcome has its end
        return tail, ""
