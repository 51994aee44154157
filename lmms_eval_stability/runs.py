"""A folder of lmms-eval output as a `Run`: what was run and how, and where each task's samples lie.

lmms-eval writes `OUT/<model>/<timestamp>_results.json` and `OUT/<model>/<timestamp>_samples_<task>.jsonl`. A run is
named by OUT, by the model's folder or by the results file. A folder that holds several runs stands for the newest;
`FOLDER@TIMESTAMP` names another one (the beginning of the timestamp is enough when it is unique).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from .errors import RunFormatError, RunNotFoundError
from .harness_logs import SAMPLES as HARNESS_SAMPLES
from .harness_logs import task_files
from .log_lines import is_deep, logged_lines, python_json
from .samples import Labeller, SampleTable, as_number, read_samples, results_name, samples_name
from .verdicts import Adapter, adapter_for

#: Where tasks of lmms-eval put files for the benchmarks' servers, and MMBench an `mmbench_en_dev_results.json`: no run.
_SUBMISSIONS = "submissions"


@dataclass(frozen=True)
class TaskInfo:
    """What the results JSON says about one task.

    Attributes:
        version: as text; empty when not stated.
        metrics: names in the order of the task's metric list, then its `score_key` if it has one.
        native: the benchmark's own score by metric name, on its own scale (the first filter's where there are several).
        filters: the filters whose scores were reported, normally ("none",).
        lower_is_better: metrics of which less is better.
        n_samples: how many documents lmms-eval says it evaluated; None when not stated.
        settings: generation arguments and prompt arguments of the task, for the list of confounders.
        exact_match: options of lmms-eval's own exact match where that scored the answers; None where it did not.
        base_task: the task that this one perturbs; empty for others.
    """

    version: str = ""
    metrics: tuple[str, ...] = ()
    native: Mapping[str, float] = field(default_factory=dict)
    filters: tuple[str, ...] = ()
    lower_is_better: frozenset[str] = frozenset()
    n_samples: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact_match: Mapping[str, Any] | None = None
    base_task: str = ""


@dataclass(frozen=True)
class Run:
    """One lmms-eval run. Samples are not in memory: `samples()` reads one task's file each time it is called.

    Attributes:
        name: the path as the user gave it.
        folder: the folder that holds the files.
        run_id: the timestamp in the file names.
        sample_files: samples file of each task.
        results_file: the results JSON; None when it is missing, and then all below but `facts` is empty.
        model: name given to `--model`. `model_args`: its arguments as text, in their order.
        config: the `config` section of the results JSON (batch_size, limit, gen_kwargs, seeds, ...).
        lmms_eval_version, date: as the results JSON has them.
        facts: what the model wrote about the run (method, versions, dtype, kernel, device) in the results JSON or
            beside its first answer.
        tasks: per task, what the results JSON says.
        other_run_ids: further runs in the same folder, which were not chosen.
        results_error: why the results JSON that is there was not read, where that was allowed.
    """

    name: str
    folder: Path
    run_id: str
    sample_files: Mapping[str, Path]
    results_file: Path | None = None
    model: str = ""
    model_args: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    lmms_eval_version: str = ""
    date: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, TaskInfo] = field(default_factory=dict)
    other_run_ids: tuple[str, ...] = ()
    results_error: str = ""

    def task(self, task: str) -> TaskInfo:
        """What is known about a task; an empty `TaskInfo` when the results JSON does not name it."""
        return self.tasks.get(task, TaskInfo())

    def samples(
        self,
        task: str,
        metric: str | None = None,
        pool: Mapping[str, str] | None = None,
        adapter: Adapter | None = None,
        labeller: Labeller | None = None,
        logprobs: bool = False,
    ) -> SampleTable:
        """Read the samples of one task.

        Args:
            task: one of `sample_files`.
            metric: which logged number is the score; by default the first of the task's metric list that the log has,
                and without a results JSON a usual name or the only number there is.
            pool: texts to share with other tables, see `read_samples`.
            adapter: the benchmark's rules; by default those of the task, or of the task that it perturbs.
            labeller: finds the categories of a line, see `read_samples`.
            logprobs: read how sure the model was, see `read_samples`.
        """
        if task not in self.sample_files:
            known = ", ".join(self.sample_files)
            raise RunNotFoundError(f"{self.name}: no samples of task {task}; it has {known}")
        path = self.sample_files[task]
        adapter = adapter or adapter_for(self.task(task).base_task or task)
        stated = self.task(task).metrics
        if metric or stated:
            # the adapter of just any task guesses: what the results JSON states counts before that
            names = (metric,) if metric else (*stated, *(adapter.metrics if adapter.tasks else ()))
            return read_samples(path, task, adapter, names, pool, True, labeller, logprobs)
        return read_samples(path, task, adapter, adapter.metrics, pool, False, labeller, logprobs)


def load_run(path: str | Path, broken_results: bool = False) -> Run:
    """Find and describe the run at `path`: a folder, `FOLDER@TIMESTAMP`, or a results JSON file.

    Args:
        path: the run.
        broken_results: take a results JSON that cannot be read for a missing one instead of raising RunFormatError.

    Raises RunNotFoundError when there is no run, no logged samples, or more than one model's folder below `path`.
    """
    name = str(path)
    folder, wanted = _split_run_id(name)
    if folder.is_file():
        match = results_name(folder.name)
        if match is None:
            raise RunNotFoundError(f"{name}: not a results file; expected a name like 20251120_140128_results.json")
        folder, wanted = folder.parent, match["run_id"]
    elif not folder.is_dir():
        raise RunNotFoundError(f"{name}: no such file or folder")
    home, run_ids = _run_ids(folder, name)
    run_id = _choose(run_ids, wanted, name)
    files = sorted(home.iterdir())
    samples: dict[str, Path] = {}
    for file in files:
        if (match := samples_name(file.name)) and match["run_id"] == run_id:
            samples |= _files_of(match["task"], file)
    if not samples:
        with_samples = sorted({m["run_id"] for file in files if (m := samples_name(file.name))})
        other = f"; {home}@{with_samples[-1]} has samples" if with_samples else ""
        raise RunNotFoundError(f"{name}: run {run_id} has no samples: run lmms-eval with --log_samples{other}")
    stated = (file for file in files if (match := results_name(file.name)) and match["run_id"] == run_id)
    results = next(stated, home / f"{run_id}_results.json")
    others = tuple(other for other in run_ids if other != run_id)
    known: dict[str, Any] = {}
    try:
        known = _describe(results) if results.is_file() else {}
    except RunFormatError as error:
        if not broken_results:
            raise RunFormatError(f"{error} (--accept results compares without it)") from error
        known["results_error"] = str(error).removeprefix(f"{results}: ")
    known["facts"] = known.get("facts") or _first_facts(samples.values())
    return Run(name=name, folder=home, run_id=run_id, sample_files=samples, other_run_ids=others, **known)


def _files_of(task: str, file: Path) -> dict[str, Path]:
    """The samples file by task; one of lm-evaluation-harness with several filters is a task for each."""
    if not file.is_file():  # reading a pipe would wait for ever, and a device never end
        raise RunFormatError(f"{file}: not a file, or a link that leads to none; remove it or put the log in its place")
    return task_files(task, file, logged_lines(file)) if HARNESS_SAMPLES.match(file.name) else {task: file}


def _split_run_id(name: str) -> tuple[Path, str]:
    """FOLDER@TIMESTAMP in its parts; a folder whose own name has an "@" wins over that reading."""
    folder, at, run_id = name.rpartition("@")
    if at and folder and not Path(name).exists():
        return Path(folder), run_id
    return Path(name), ""


def _run_ids(folder: Path, name: str) -> tuple[Path, list[str]]:
    """The one folder at or below `folder` with lmms-eval's files, and its runs, oldest first."""
    found: dict[Path, set[str]] = {}
    seen: set[str] = set()
    for parent, below, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up, or a second way to the same folder
            below.clear()
            continue
        seen.add(real)
        if Path(parent).name == _SUBMISSIONS and not any(map(samples_name, files)):
            continue
        for name_in_folder in files:
            match = samples_name(name_in_folder) or results_name(name_in_folder)
            if match and Path(parent, name_in_folder).is_file():
                found.setdefault(Path(parent), set()).add(match["run_id"])
    if not found:
        raise RunNotFoundError(f"{name}: no lmms-eval output here (*_results.json, *_samples_<task>.jsonl)")
    if len(found) > 1:
        homes = ", ".join(str(home) for home in sorted(found))
        raise RunNotFoundError(f"{name}: holds the runs of {len(found)} folders; name one of: {homes}")
    home, run_ids = next(iter(found.items()))
    return home, sorted(run_ids)


def _choose(run_ids: list[str], wanted: str, name: str) -> str:
    matching = [run_id for run_id in run_ids if run_id.startswith(wanted)]
    if wanted in run_ids:
        return wanted
    if not matching:
        raise RunNotFoundError(f"{name}: no run {wanted} here; there are {', '.join(run_ids)}")
    if wanted and len(matching) > 1:
        raise RunNotFoundError(f"{name}: {wanted} fits several runs: {', '.join(matching)}")
    return matching[-1]


def _describe(path: Path) -> dict[str, Any]:
    """The fields of a `Run` that come from the results JSON."""
    results = _read_json(path)
    config = _section(results, "config")
    described = {**_section(results, "results"), **_section(results, "configs")}
    tasks = {task: _task_info(results, task) for task in described}
    if "lm_eval_version" in results:
        several = [(task, name) for task, info in tasks.items() for name in info.filters if len(info.filters) > 1]
        tasks |= {f"{task},{name}": _task_info(results, task, name) for task, name in several}
    facts: dict[str, Any] = next(
        (section["run"] for section in (results, config) if isinstance(section.get("run"), dict)),
        _harness_facts(results),
    )
    return {
        "results_file": path,
        "model": str(config.get("model") or results.get("model_source") or ""),
        "model_args": parse_model_args(config.get("model_args")),
        "config": config,
        "lmms_eval_version": str(results.get("lmms_eval_version") or ""),
        "date": str(results.get("date") or ""),
        "facts": facts,
        "tasks": tasks,
    }


def _first_facts(sample_files: Iterable[Path]) -> dict[str, Any]:
    """What the model wrote about the run beside one of its first answers; empty when it wrote nothing.

    Batches and several processes put it into any line. Only lines that can hold it are parsed.
    """
    for path in sample_files:
        try:
            with path.open("rb", buffering=1 << 20) as stream:
                for line in stream:
                    if b'"run"' in line and (facts := _facts(line)):
                        return facts
        except OSError:
            continue  # named when the file is read
    return {}


def _facts(line: bytes) -> dict[str, Any]:
    try:
        facts = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))["token_counts"][0]["run"]
    except (ValueError, LookupError, TypeError):
        return {}  # whatever is wrong with this line is found, and named, when the file is read
    return facts if isinstance(facts, dict) and not is_deep(facts) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        try:
            parsed = orjson.loads(raw)
        except ValueError:
            parsed = python_json(raw)
    except OSError as error:
        raise RunFormatError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFormatError(f"{path}: not a results JSON ({error}); was the run interrupted?") from error
    if not isinstance(parsed, dict):
        raise RunFormatError(f"{path}: not a results JSON (no object at its top)")
    if is_deep(parsed):
        raise RunFormatError(f"{path}: not a results JSON (nested too deeply)")
    return parsed


def _section(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A sub-dict, or an empty one when it is missing or something else."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _harness_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-evaluation-harness states where models of this package have their facts."""
    if "lm_eval_version" not in results:
        return {}
    versions = {"lm-eval": results["lm_eval_version"], "transformers": results.get("transformers_version")}
    return {"versions": versions, "dtype": _section(results, "config").get("model_dtype")}


def _task_info(results: Mapping[str, Any], task: str, filter_name: str = "") -> TaskInfo:
    """`filter_name`: take the native scores of this filter only."""
    config = _section(_section(results, "configs"), task)
    listed = config.get("metric_list")
    entries: Iterable[Any] = listed if isinstance(listed, list) else ()
    names = [str(entry["metric"]) for entry in entries if isinstance(entry, dict) and entry.get("metric")]
    if config.get("score_key"):
        names.append(str(config["score_key"]))
    # a task with its own scoring may report an exact match of its own
    own_scoring = bool(config.get("process_results"))
    exact = [e for e in entries if isinstance(e, dict) and e.get("metric") == "exact_match" and not own_scoring]
    native: dict[str, float] = {}
    filters: dict[str, None] = {}
    for key, value in _section(_section(results, "results"), task).items():
        metric, comma, label = key.partition(",")
        if comma and filter_name in ("", label) and "_stderr" not in metric and isinstance(value, (int, float)):
            native.setdefault(metric, as_number(value))
            filters.setdefault(label)
    better = _section(_section(results, "higher_is_better"), task)
    version = _section(results, "versions").get(task)
    evaluated = _section(_section(results, "n-samples"), task).get("effective")
    return TaskInfo(
        version="" if version is None else str(version),
        metrics=tuple(dict.fromkeys(names)),
        native=native,
        filters=tuple(filters),
        lower_is_better=frozenset(metric for metric, higher in better.items() if higher is False),
        n_samples=evaluated if isinstance(evaluated, int) else None,
        settings={key: config[key] for key in ("generation_kwargs", "lmms_eval_specific_kwargs") if key in config},
        exact_match=exact[0] if exact else None,
        base_task=_base_task(config.get("metadata")),
    )


def _base_task(metadata: Any) -> str:
    """The task that a perturbed one is made of, from its metadata: a dict, or a list of dicts."""
    entries = metadata if isinstance(metadata, list) else [metadata]
    named = (entry.get("base_task") for entry in entries if isinstance(entry, dict) and "perturbation" in entry)
    return next((name for name in named if isinstance(name, str)), "")


def parse_model_args(value: Any) -> dict[str, str]:
    """`--model_args` as lmms-eval logs them ("a=1,b=2" or a dict) as texts by name.

    A comma inside a value ("layers=8,16,24") leaves parts without "=": they belong to the argument before them.
    """
    if isinstance(value, dict):
        return {str(name): str(item) for name, item in value.items()}
    args: dict[str, str] = {}
    last = ""
    for part in str(value or "").split(","):
        name, equals, item = part.partition("=")
        if equals:
            last = name.strip()
            args[last] = item.strip()
        elif last and part:
            args[last] += f",{part}"
    return args
