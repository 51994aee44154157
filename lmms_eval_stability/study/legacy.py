"""A study: a baseline, its re-run and accelerated runs from a YAML, each a real lmms-eval process, then compared.

lmms-eval ends with exit code 0 even when a run failed, so a run counts as done when its logs are complete, and what it
printed is kept in `lmms_eval.log` beside them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StabilityError

BASELINE, RERUN = "baseline", "baseline_again"
LOG = "lmms_eval.log"
_MARKER = "study.json"


class StudyConfigError(StabilityError):
    """The YAML of a study says something that cannot be run."""


class StudyRunError(StabilityError):
    """A run of a study did not produce complete logs."""


@dataclass(frozen=True)
class StudyRun:
    """One lmms-eval run of a study.

    Attributes:
        name: its folder below the study's.
        model: for `--model`. model_args: for `--model_args`.
    """

    name: str
    model: str
    model_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        limit: documents per task; None for all.
        rerun: run the baseline twice, for the noise floor.
        offline: forbid the network to every run.
    """

    tasks: tuple[str, ...]
    baseline: StudyRun
    runs: tuple[StudyRun, ...]
    rerun: bool = False
    limit: int | None = None
    batch_size: int = 1
    offline: bool = False

    @property
    def all_runs(self) -> tuple[StudyRun, ...]:
        """Every run in order: the baseline, its re-run, the others."""
        again = [StudyRun(RERUN, self.baseline.model, self.baseline.model_args)] if self.rerun else []
        return (self.baseline, *again, *self.runs)


def demo_config() -> Path:
    """Return the YAML of the demo study."""
    import lmms_eval_stability.configs

    return Path(next(iter(lmms_eval_stability.configs.__path__))) / "demo.yaml"


def load_study(path: Path) -> Study:
    """Read a study's YAML.

    Raises:
        StudyConfigError: the file cannot be read, a key is unknown or missing, or a value has the wrong type.
    """
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyConfigError(f"{path}: cannot be read as YAML: {error}") from error
    known = {"tasks", "limit", "batch_size", "offline", "baseline", "rerun", "runs"}
    _check_keys(path, "the study", config, known, {"tasks", "baseline", "runs"})
    if not isinstance(config["runs"], dict) or not config["runs"]:
        raise StudyConfigError(f"{path}: 'runs' must map at least one name to a run")
    _check_values(path, config)
    taken = {BASELINE, RERUN, "report"} & set(config["runs"])
    if taken:
        raise StudyConfigError(f"{path}: a run cannot be called {', '.join(sorted(taken))}: the study uses that folder")
    return Study(
        tasks=tuple(config["tasks"]),
        baseline=_run(path, BASELINE, config["baseline"]),
        runs=tuple(_run(path, str(name), run) for name, run in config["runs"].items()),
        rerun=config.get("rerun", False),
        limit=config.get("limit"),
        batch_size=config.get("batch_size", 1),
        offline=config.get("offline", False),
    )


def _check_values(path: Path, config: Mapping[str, Any]) -> None:
    def positive(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    tasks, limit = config["tasks"], config.get("limit")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise StudyConfigError(f"{path}: 'tasks' must be a list of task names, not {tasks!r}")
    if limit is not None and not positive(limit):
        raise StudyConfigError(f"{path}: 'limit' must be a whole number of at least 1, not {limit!r}")
    if not positive(config.get("batch_size", 1)):
        raise StudyConfigError(f"{path}: 'batch_size' must be a whole number of at least 1")
    for flag in ("rerun", "offline"):
        if not isinstance(config.get(flag, False), bool):
            raise StudyConfigError(f"{path}: '{flag}' must be true or false, not {config[flag]!r}")
    for name in config["runs"]:
        # Names become folders that are emptied before a run: nothing may lead out of the study's.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)):
            raise StudyConfigError(f"{path}: {name!r} cannot name a run; use letters, digits, '.', '_' and '-'")


def _run(path: Path, name: str, run: Any) -> StudyRun:
    _check_keys(path, f"run '{name}'", run, {"model", "model_args"}, {"model"})
    arguments = run.get("model_args") or {}
    if not isinstance(run["model"], str) or not isinstance(arguments, dict):
        raise StudyConfigError(f"{path}: run '{name}': 'model' must be a name and 'model_args' a mapping")
    return StudyRun(name, run["model"], arguments)


def _check_keys(path: Path, what: str, value: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(value, dict):
        raise StudyConfigError(f"{path}: {what} must be a mapping with the keys {', '.join(sorted(known))}")
    for problem, keys in (("does not know", set(value) - known), ("lacks", needed - set(value))):
        if keys:
            shown = ", ".join(sorted(map(str, keys)))
            raise StudyConfigError(f"{path}: {what} {problem} {shown}; its keys are {', '.join(sorted(known))}")


def open_folder(folder: Path) -> None:
    """Make `folder` ready for a study; refuse one that holds other things.

    Raises:
        StudyConfigError: the folder is not empty and no study was run there.
    """
    if folder.exists() and not folder.is_dir():
        raise StudyConfigError(f"{folder} is a file; name a folder for the study")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise StudyConfigError(f"{folder} is not empty and holds no study; name an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def run_study(study: Study, folder: Path, on_start: Callable[[StudyRun], None] | None = None) -> None:
    """Run everything anew, one run after the other, into `folder/<name of the run>`.

    Args:
        on_start: called with each run before it starts.

    Raises:
        StudyConfigError: `folder` holds something else.
        StudyRunError: a run did not log every document.
    """
    open_folder(folder)
    planned = {run.name: _command(study, run, folder / run.name) for run in study.all_runs}
    (folder / _MARKER).write_text(json.dumps({"commands": planned}, indent=2) + "\n", encoding="utf-8")
    for run in study.all_runs:
        if on_start is not None:
            on_start(run)
        _run_one(study, run, folder / run.name, planned[run.name])


def _command(study: Study, run: StudyRun, folder: Path) -> list[str]:
    arguments = ",".join(f"{name}={value}" for name, value in run.model_args.items())
    command = [sys.executable, "-m", "lmms_eval", "--model", run.model]
    command += ["--model_args", arguments] if arguments else []
    command += ["--tasks", ",".join(study.tasks), "--batch_size", str(study.batch_size)]
    command += ["--limit", str(study.limit)] if study.limit else []
    return [*command, "--log_samples", "--output_path", str(folder)]


def _run_one(study: Study, run: StudyRun, folder: Path, command: list[str]) -> None:
    if folder.exists():
        shutil.rmtree(folder)  # an earlier run of this study: open_folder() made sure of that
    folder.mkdir(parents=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if study.offline else {}
    log = folder / LOG
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **offline},
            check=False,
        )
    problem = f"exit code {done.returncode}" if done.returncode else _incomplete(study, folder)
    if problem:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise StudyRunError(f"run '{run.name}' ({run.model}) is not complete: {problem}. The end of {log}:\n{tail}")


def _incomplete(study: Study, folder: Path) -> str:
    """Say what is missing from the logs of a finished run; empty when nothing is."""
    results = sorted(folder.glob("*/*_results.json"))
    if not results:
        return "lmms-eval wrote no results"
    counts = json.loads(results[-1].read_text(encoding="utf-8")).get("n-samples", {})
    stamp = results[-1].name.removesuffix("_results.json")
    for task in study.tasks:
        expected = counts.get(task, {}).get("effective")
        samples = results[-1].with_name(f"{stamp}_samples_{task}.jsonl")
        if not samples.is_file():
            return f"task {task} has no logged samples"
        with samples.open("rb") as file:
            logged = sum(1 for line in file if line.endswith(b"\n"))
        if logged != expected:
            return f"task {task} has {logged} logged samples of {expected}"
    return ""
