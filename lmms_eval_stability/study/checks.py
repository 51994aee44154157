"""What the schema cannot say: do the models, tasks and arguments of a study exist, and do they go together?"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..detection_study import tasks_of
from ..errors import OptionError
from ..problems import parse_accept
from ..verdicts.policies import POLICIES
from . import catalog
from .schema import BaseSpec, MethodSpec, Study, TaskSpec, twins
from .yaml_lines import Location

#: Names of runs that the study makes itself, and of files beside them.
BASELINE, RERUN = "baseline", "baseline_again"
#: Arguments of lmms-eval that the study gives, so `extra` may not.
_OURS = [
    "--model",
    "--model_args",
    "--tasks",
    "--limit",
    "--offset",
    "--batch_size",
    "-b",
    "--gen_kwargs",
    "--seed",
    "--include_path",
    "--output_path",
    "--log_samples",
    "--log_samples_suffix",
    "--config",
    "--verbosity",
    "--timezone",
    "--predict_only",
    "-x",
    "--launcher_args",
]

Mistake = tuple[Location, str]


def mistakes(study: Study, folder: Path) -> list[Mistake]:
    """Everything in a study that cannot be run, each with its place.

    Args:
        study: as its YAML says, which the schema has let pass.
        folder: where the YAML lies; `include_path` is relative to it.
    """
    return [
        *_tasks(study, folder),
        *(mistake for label, base in study.bases.items() for mistake in _base(label, base)),
        *_arguments(study),
        *(mistake for label, method in study.methods.items() for mistake in _method(study, label, method)),
        *_lmms_eval(study),
        *_engine(study),
        *_compare(study),
    ]


def _unknown(what: str, name: str, known: Collection[str], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"unknown {what} '{name}'" + (f"; did you mean {', '.join(near)}?" if near else f"; {where}")


def _tasks(study: Study, folder: Path) -> Iterator[Mistake]:
    include = study.lmms_eval.include_path
    if include is not None and not (folder / include).is_dir():
        yield ("lmms_eval", "include_path"), f"'include_path': {folder / include} is no folder"
        include = None
    known = catalog.task_names(str(folder / include) if include else None)
    seen: set[str] = set()
    for position, task in enumerate(study.tasks):
        place: Location = ("tasks", position)
        if task.task in seen:
            yield place, f"task '{task.task}' is listed twice"
        seen.add(task.task)
        if task.task in known.groups and task.task not in known.tasks:
            inner = ", ".join(known.groups[task.task]) or "see `lmms-eval tasks list`"
            yield place, f"'{task.task}' is a group of tasks; list its tasks: {inner}"
        elif task.task not in known.tasks:
            yield place, _unknown("task", task.task, known.tasks, "see `lmms-eval tasks list`")
        else:
            yield from _missing_twins(study, place, task, known.tasks)
        if (task.shard or study.engine.shard) and task.samples is None and study.limit is None:
            line = (*place, "shard") if task.shard else place
            yield line, f"task '{task.task}' is to be split: say how many `samples` it has, or set a `limit`"


def _missing_twins(study: Study, place: Location, task: TaskSpec, known: Collection[str]) -> Iterator[Mistake]:
    for twin in twins(study, task):
        if twin.task not in known:
            how = "write its YAML (three keys, see docs/perturbations/tasks.md) and name its folder in include_path"
            yield place, f"there is no perturbed task '{twin.task}'; {how}"


def _base(label: str, base: BaseSpec) -> Iterator[Mistake]:
    place: Location = ("bases", label)
    if base.family not in catalog.families():
        yield (*place, "family"), _unknown("family", base.family, catalog.families(), _among(catalog.families()))
    if not base.model_args.get("pretrained"):
        yield (*place, "model_args"), f"base '{label}' needs a checkpoint: model_args: {{pretrained: ...}}"
    if "batch_size" in base.model_args:
        yield (*place, "model_args", "batch_size"), "write batch_size beside model_args, or in lmms_eval"


def _among(names: Collection[str]) -> str:
    return f"there are {', '.join(names)}"


def _arguments(study: Study) -> Iterator[Mistake]:
    """Arguments that base and baseline give to every model; those of methods are checked with the method."""
    places: list[tuple[Location, dict[str, Any]]] = [
        (("bases", label, "model_args"), base.model_args) for label, base in study.bases.items()
    ]
    places.append((("baseline", "model_args"), study.baseline.model_args))
    for place, arguments in places:
        yield from _values(place, arguments, "baseline", arguments.get("quantization"))


def _values(place: Location, arguments: dict[str, Any], method: str, quantization: Any) -> Iterator[Mistake]:
    takes = {**catalog.model_arguments(), **catalog.method_arguments(method, quantization)}
    for name, value in arguments.items():
        if name == "batch_size":
            continue
        if name not in takes:
            own = catalog.method_arguments(method, quantization)
            whose = f"method '{method}' takes {', '.join(own)}" if own else f"method '{method}' takes none of its own"
            yield (
                (*place, name),
                f"unknown argument '{name}'; {whose}; every model takes {', '.join(catalog.model_arguments())}",
            )
        elif value is not None and not _is(value, takes[name]):
            kinds = " or ".join(kind.__name__ for kind in takes[name])
            yield (*place, name), f"argument '{name}' of '{method}' must be {kinds}, not {value!r}"
    if quantization is not None and quantization not in catalog.schemes():
        yield (
            (*place, "quantization"),
            _unknown("scheme", str(quantization), catalog.schemes(), _among(catalog.schemes())),
        )


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or object in kinds or not isinstance(value, bool))


def _method(study: Study, label: str, method: MethodSpec) -> Iterator[Mistake]:
    place: Location = ("methods", label)
    if label in (BASELINE, "report") or label.startswith(RERUN):
        yield place, f"a run cannot be called '{label}': the study uses that name"
    for key, named, known in (("bases", method.bases, list(study.bases)), ("tasks", method.tasks, _names(study))):
        for position, name in enumerate(named or ()):
            if name not in known:
                yield (*place, key, position), f"'{name}' is not among the study's {key}: {', '.join(known)}"
    if method.method not in catalog.methods():
        yield (*place, "method"), _unknown("method", method.method, catalog.methods(), _among(catalog.methods()))
        return
    yield from _values((*place, "model_args"), method.model_args, method.method, method.model_args.get("quantization"))
    if "pretrained" in method.model_args:
        yield (*place, "model_args", "pretrained"), "name checkpoints by base: pretrained: {BASE: CHECKPOINT}"
    yield from _combinations(study, place, method)


def _names(study: Study) -> list[str]:
    return [twin.task for task in study.tasks for twin in twins(study, task)]


def _combinations(study: Study, place: Location, method: MethodSpec) -> Iterator[Mistake]:
    bases = [label for label in method.bases or study.bases if label in study.bases]
    for label in method.pretrained:
        if label not in bases:
            yield (*place, "pretrained", label), f"'{label}' is not among the bases of this run: {', '.join(bases)}"
    only, why = catalog.FAMILIES_OF.get(method.method, ((), ""))
    scheme = method.model_args.get("quantization")
    for label in bases:
        family = study.bases[label].family
        if only and family in catalog.families() and family not in only:
            yield (*place, "method"), f"'{method.method}' cannot run on base '{label}' ({family}): {why}; use `bases:`"
        needs = next((name for name in (method.method, scheme) if name in catalog.NEEDS_CHECKPOINT), None)
        if needs and label not in method.pretrained:
            yield place, f"'{needs}' loads a checkpoint that was quantised by it; name it: pretrained: {{{label}: ...}}"
        if method.method == "lofi" and method.model_args.get("feature") == "vision" and family.startswith("qwen"):
            where = (*place, "model_args", "feature")
            yield where, f"'lofi' with feature=vision cannot run on base '{label}' ({family}): its tower merges tokens"
    if method.method in catalog.schemes() and scheme not in (None, method.method):
        yield (*place, "model_args", "quantization"), f"'{method.method}' is a quantisation itself; leave this out"


def _lmms_eval(study: Study) -> Iterator[Mistake]:
    for position, text in enumerate(study.lmms_eval.extra):
        if text.partition("=")[0] in _OURS:
            place = ("lmms_eval", "extra", position)
            yield place, f"'{text}' is given by the study itself; use the key of the study for it"


def _engine(study: Study) -> Iterator[Mistake]:
    engine = study.engine
    if engine.kind == "local" and "address" in engine.model_fields_set:
        yield ("engine", "address"), "'address' is for kind: ray"
    elif engine.kind == "ray" and (problem := address_problem(engine.address)):
        yield ("engine", "address"), f"'address' {problem}"
    gpus = engine.resources.gpus
    if gpus is not None and 0 < gpus < engine.processes:
        yield ("engine", "processes"), f"{engine.processes} processes need a GPU each, but resources.gpus is {gpus:g}"
    for label, base in study.bases.items():
        if engine.processes > 1 and base.model_args.get("device_map"):
            place = ("bases", label, "model_args", "device_map")
            yield place, "device_map spreads one model over the devices; it does not go with engine.processes"


def address_problem(address: str) -> str:
    """What is wrong with the address of a Ray cluster; empty when nothing is."""
    host, _, port = address.rpartition(":")
    named = re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host) and re.fullmatch(r"\d{1,5}", port)
    return "" if address == "auto" or named else f"must be auto or HOST:PORT of the head, not '{address}'"


def _compare(study: Study) -> Iterator[Mistake]:
    try:
        parse_accept(study.compare.accept)
    except OptionError as error:
        yield ("compare", "accept"), str(error)
    if study.compare.prediction not in POLICIES:
        yield ("compare", "prediction"), _unknown("prediction", study.compare.prediction, POLICIES, _among(POLICIES))
    if study.compare.images is not None and not study.compare.html:
        yield ("compare", "images"), "'images' are for the page: set html: true"
    if study.compare.ood and not study.compare.reliability:
        yield ("compare", "ood"), "'ood' is part of reliability: set reliability: true"
    for position, pair in enumerate(study.compare.ood):
        place: Location = ("compare", "ood", position)
        try:
            absent = sorted(tasks_of(pair) - set(_names(study)))
        except OptionError as error:
            yield place, str(error)
            continue
        if absent:
            yield place, f"'{', '.join(absent)}' is not among the study's tasks: {', '.join(_names(study))}"
