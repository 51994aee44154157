"""From a study to its cells: one task of one run each, with the key by which finished work is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .checks import BASELINE, RERUN
from .schema import MethodSpec, Study, TaskSpec

#: Packages whose version is part of every key.
PACKAGES = ("lmms-eval", "transformers", "torch", "lmms-eval-stability")
#: Those that do the arithmetic of a quantised model, in the keys of its cells.
QUANTIZERS = ("bitsandbytes", "gptqmodel", "compressed-tensors")


@dataclass(frozen=True)
class Call:
    """What lmms-eval is asked for, but for the documents: all that can change an answer.

    Attributes:
        model: for `--model`. model_args: for `--model_args`, as text, in order.
        arguments: the other arguments of the command line that change answers.
        processes: data-parallel processes; how documents are shared out changes batches.
        launcher: what starts them, where there are several.
        offline: without the network.
    """

    model: str
    model_args: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    processes: int = 1
    launcher: str = "torchrun"
    offline: bool = False

    @property
    def model_args_text(self) -> str:
        """As `--model_args` takes them."""
        return ",".join(f"{name}={value}" for name, value in self.model_args)


@dataclass(frozen=True)
class Cell:
    """One task of one run.

    Attributes:
        base: label of the base model. run: name of the run within it, which is its folder.
        method: label of the method, or "baseline", for a re-run too.
        task: lmms-eval's name.
        samples: documents to answer; None while nobody knows.
        known_size: whether `samples` says how many documents there are, rather than at most.
        shard: documents per process; None for all in one.
        repeat: 0, or which re-run of the baseline this is.
        key: digest of everything that can change an answer; equal keys are the same work.
    """

    base: str
    run: str
    method: str
    task: str
    call: Call
    samples: int | None
    known_size: bool
    shard: int | None
    repeat: int
    key: str

    @property
    def model(self) -> str:
        """For `--model`."""
        return self.call.model

    @property
    def name(self) -> str:
        """`BASE/RUN TASK`, for people."""
        return f"{self.base}/{self.run} {self.task}"

    @property
    def is_split(self) -> bool:
        """Whether several processes share the documents."""
        return self.shard is not None and self.samples is not None and self.samples > self.shard


@dataclass(frozen=True)
class Plan:
    """All cells of a study, in the order in which they run, and the versions that their keys hold."""

    study: Study
    cells: tuple[Cell, ...]
    versions: Mapping[str, str]

    @cached_property
    def samples(self) -> int | None:
        """Documents of all cells; None if one's number is not known."""
        counts = [cell.samples for cell in self.cells]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def runs(self) -> list[tuple[str, str]]:
        """(base, run) in order."""
        return list(dict.fromkeys((cell.base, cell.run) for cell in self.cells))

    def of_run(self, base: str, run: str) -> list[Cell]:
        """The cells of one run."""
        return [cell for cell in self.cells if (cell.base, cell.run) == (base, run)]


@dataclass(frozen=True)
class _RunSpec:
    name: str
    label: str
    method: MethodSpec
    repeat: int = 0


def plan_study(study: Study) -> Plan:
    """Lay out the grid: per base the baseline, its re-runs, then the methods; per run the tasks."""
    versions = installed_versions(PACKAGES)
    cells = [
        _cell(study, base, run, task, versions)
        for base in study.bases
        for run in _runs(study)
        if run.method.bases is None or base in run.method.bases
        for task in study.tasks
        if run.method.tasks is None or task.task in run.method.tasks
    ]
    return Plan(study, tuple(cells), versions)


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages without importing them; "-" for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    return found


def _runs(study: Study) -> list[_RunSpec]:
    baseline = MethodSpec(method=BASELINE, model_args=study.baseline.model_args)
    again = [_RunSpec(f"{RERUN}_{n}", BASELINE, baseline, n) for n in range(1, study.reruns + 1)]
    named = [_RunSpec(label, label, method) for label, method in study.methods.items()]
    return [_RunSpec(BASELINE, BASELINE, baseline), *again, *named]


def _cell(study: Study, base: str, run: _RunSpec, task: TaskSpec, versions: Mapping[str, str]) -> Cell:
    call = _call(study, base, run)
    counts = [count for count in (study.limit, task.samples) if count is not None]
    if _quantized(call, run.method.method):
        versions = {**versions, **installed_versions(QUANTIZERS)}
    return Cell(
        base=base,
        run=run.name,
        method=run.label,
        task=task.task,
        call=call,
        samples=min(counts, default=None),
        known_size=task.samples is not None,
        shard=task.shard or study.engine.shard,
        repeat=run.repeat,
        key=_key(call, task.task, study.limit, run.repeat, versions),
    )


def _quantized(call: Call, method: str) -> bool:
    from . import catalog

    return method in catalog.schemes() or "quantization" in dict(call.model_args)


def _call(study: Study, base: str, run: _RunSpec) -> Call:
    spec, options = study.bases[base], study.lmms_eval
    merged = {**spec.model_args, **run.method.model_args}
    if base in run.method.pretrained:
        merged["pretrained"] = run.method.pretrained[base]
    arguments = ["--batch_size", str(spec.batch_size or options.batch_size)]
    if options.gen_kwargs:
        arguments += ["--gen_kwargs", _gen_kwargs(options.gen_kwargs)]
    if options.seed is not None:
        arguments += ["--seed", str(options.seed)]
    if options.include_path is not None:
        arguments += ["--include_path", options.include_path]
    return Call(
        model=f"{spec.family}_{run.method.method}",
        model_args=tuple((name, _spelled(value)) for name, value in merged.items() if value is not None),
        arguments=(*arguments, *options.extra),
        processes=study.engine.processes,
        launcher=study.engine.launcher,
        offline=study.offline,
    )


def _spelled(value: Any) -> str:
    """A value as lmms-eval's command line takes it, which cuts at commas: lists are joined by hyphens."""
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _gen_kwargs(value: str | dict[str, Any]) -> str:
    if isinstance(value, str):
        return value
    return ",".join(f"{name}={_spelled(item)}" for name, item in value.items() if item is not None)


def _key(call: Call, task: str, limit: int | None, repeat: int, versions: Mapping[str, str]) -> str:
    """Digest of what can change an answer or which documents there are; not of how they are split or where they run."""
    identity = {
        "model": call.model,
        "model_args": dict(call.model_args),
        "arguments": call.arguments,
        "processes": call.processes,
        "task": task,
        "limit": limit,
        "repeat": repeat,
        "versions": dict(versions),
    }
    text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
