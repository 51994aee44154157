"""What a study's YAML may say: pydantic models, read with the line of every mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from .errors import StudyConfigError
from .yaml_lines import LinedYaml, Location, read_yaml

#: Labels become folders: nothing may lead out of the study's.
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Label = Annotated[str, Field(pattern=LABEL, max_length=100)]
Count = Annotated[int, Field(ge=1, strict=True)]


def _scalar(value: Any) -> Any:
    numbers = isinstance(value, list) and value and all(type(item) in (int, float) for item in value)
    if value is None or numbers or (isinstance(value, (bool, int, float, str)) and not re.search(r"[,\n]", str(value))):
        return value
    raise ValueError("must be text without commas, a number, true, false, null or a list of numbers")


#: What an argument may be; a list of numbers is spelled with hyphens on lmms-eval's command line, which cuts at commas.
_SCALAR_SCHEMA = {
    "anyOf": [{"type": ["string", "number", "boolean", "null"]}, {"type": "array", "items": {"type": "number"}}]
}
ArgumentValue = Annotated[Any, BeforeValidator(_scalar), WithJsonSchema(_SCALAR_SCHEMA)]
Arguments = dict[Label, ArgumentValue]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TaskSpec(_Strict):
    """One task of lmms-eval, on which every run answers."""

    task: Annotated[str, Field(min_length=1, description="name of the task; groups are named by their tasks")]
    samples: Annotated[
        Count | None, Field(description="documents of the task: for the plan, and needed for shards")
    ] = None
    shard: Annotated[Count | None, Field(description="documents per process, instead of the engine's")] = None


class BaseSpec(_Strict):
    """A base model: an architecture and a checkpoint."""

    family: Annotated[str, Field(description="architecture, see `lmms-eval-stability models`")]
    model_args: Annotated[Arguments, Field(description="for --model_args, `pretrained` among them")]
    batch_size: Annotated[
        Count | None, Field(description="instead of lmms_eval.batch_size, for all runs of this base")
    ] = None


class BaselineSpec(_Strict):
    """The model as it is, through the same code path."""

    model_args: Annotated[Arguments, Field(description="in addition to the base's")] = {}


class MethodSpec(_Strict):
    """An accelerated run of every base."""

    method: Annotated[str, Field(description="method of the registry; the model is FAMILY_METHOD")]
    model_args: Annotated[Arguments, Field(description="in addition to the base's; null takes one of those away")] = {}
    pretrained: Annotated[dict[Label, str], Field(description="another checkpoint, by base: the quantised one")] = {}
    bases: Annotated[list[Label] | None, Field(min_length=1, description="only these bases; all by default")] = None
    tasks: Annotated[list[str] | None, Field(min_length=1, description="only these tasks; all by default")] = None


class LmmsEvalSpec(_Strict):
    """How lmms-eval is called."""

    batch_size: Count = 1
    gen_kwargs: Annotated[str | dict[str, ArgumentValue] | None, Field(description="for --gen_kwargs")] = None
    seed: Annotated[int | str | None, Field(description="for --seed")] = None
    include_path: Annotated[str | None, Field(description="folder with more task YAMLs, relative to the study's")] = (
        None
    )
    extra: Annotated[list[str], Field(description="further arguments, as on its command line")] = []


class Resources(_Strict):
    """What one process needs."""

    gpus: Annotated[float | None, Field(ge=0, description="1 where there are any, by default")] = None
    cpus: Annotated[float | None, Field(gt=0)] = None
    memory_gb: Annotated[float | None, Field(gt=0)] = None


class EngineSpec(_Strict):
    """Where the processes run."""

    kind: Literal["local", "ray"] = "local"
    workers: Annotated[Count | None, Field(description="processes at a time; local: one per visible GPU, or 1")] = None
    shard: Annotated[Count | None, Field(description="documents per process; by default a task is not split")] = None
    retries: Annotated[int, Field(ge=0, le=20, strict=True, description="how often what failed is run again")] = 1
    processes: Annotated[Count, Field(description="data-parallel processes within one run of lmms-eval")] = 1
    launcher: Annotated[Literal["torchrun", "accelerate"], Field(description="what starts those processes")] = (
        "torchrun"
    )
    timeout_minutes: Annotated[float | None, Field(gt=0, description="a process that takes longer has failed")] = None
    resources: Resources = Resources()
    address: Annotated[str, Field(description="ray: address of the head, or auto")] = "auto"


class CompareSpec(_Strict):
    """Options of `compare`, which runs at the end."""

    accept: list[str] = []
    correct_at: float = 0.9
    prediction: str = "scored"
    metric: list[str] = []
    reliability: Annotated[bool, Field(description="how far confidence can be relied on; which samples flip")] = False
    ood: Annotated[
        list[str], Field(description="pairs of tasks ID:OOD, see docs/reliability.md; with reliability")
    ] = []
    html: Annotated[bool, Field(description="write report.html, too")] = False
    images: Annotated[str | None, Field(description="pictures for the page: a folder, or `dataset`")] = None


class PublishedSpec(_Strict):
    """The published numbers that `paper compare` puts beside the study's."""

    table: int | str | None = None
    figure: int | str | None = None


def _task_entry(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


class Study(_Strict):
    """A grid of lmms-eval runs: base models x (baseline, its re-runs, methods) x tasks."""

    name: Label
    description: str = ""
    tasks: Annotated[
        list[Annotated[TaskSpec, BeforeValidator(_task_entry, json_schema_input_type=str | TaskSpec)]],
        Field(min_length=1),
    ]
    perturbations: Annotated[
        list[Literal["none", "image", "text", "text_87"]],
        Field(min_length=1, description="every task as it is (none) and as its perturbed twins"),
    ] = ["none"]
    limit: Annotated[Count | None, Field(description="documents per task; all by default")] = None
    bases: Annotated[dict[Label, BaseSpec], Field(min_length=1, description="base models by label")]
    baseline: BaselineSpec = BaselineSpec()
    reruns: Annotated[int, Field(ge=0, le=20, strict=True, description="re-runs of the baseline: the noise floor")] = 0
    methods: Annotated[dict[Label, MethodSpec], Field(description="runs by label, for every base")] = {}
    tasks_per_process: Annotated[
        Count | None, Field(description="tasks of one run that share a process where nothing is split; all by default")
    ] = None
    lmms_eval: LmmsEvalSpec = LmmsEvalSpec()
    engine: EngineSpec = EngineSpec()
    offline: Annotated[bool, Field(strict=True, description="forbid the network to every process")] = False
    compare: CompareSpec = CompareSpec()
    published: PublishedSpec | None = None


#: Names of the twins that `perturbations` adds to a task.
_TWINS = {"none": "{}", "image": "{}_image_perturbed", "text": "{}_text_perturbed", "text_87": "{}_text_perturbed_87"}


def twins(study: Study, task: TaskSpec) -> list[TaskSpec]:
    """A task under every perturbation of the study: the same documents under other names."""
    return [task.model_copy(update={"task": _TWINS[name].format(task.task)}) for name in study.perturbations]


def json_schema() -> dict[str, Any]:
    """The schema of a study's YAML as JSON Schema (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema(mode="validation")}


def load_study(path: str | Path) -> Study:
    """Read a study's YAML.

    Raises:
        StudyConfigError: every mistake with file and line: unknown or missing keys, values of the wrong kind, models,
            tasks, methods and arguments that do not exist, and combinations that cannot be run.
    """
    from .checks import mistakes

    source = read_yaml(Path(path))
    if not isinstance(source.value, dict):
        known = ", ".join(Study.model_fields)
        raise StudyConfigError(f"{source.at(())}: a study must be a mapping; its keys are {known}")
    try:
        study = Study.model_validate(source.value)
    except ValidationError as error:
        raise StudyConfigError(_listed(source, [_in_words(problem) for problem in error.errors()])) from error
    if found := mistakes(study, source.path.parent):
        raise StudyConfigError(_listed(source, found))
    return _resolved(study, source.path.parent)


def _resolved(study: Study, folder: Path) -> Study:
    """The study with its perturbed twins as tasks and its folder as an absolute path: processes run elsewhere."""
    changes: dict[str, Any] = {"tasks": [twin for task in study.tasks for twin in twins(study, task)]}
    if study.lmms_eval.include_path is not None:
        path = str((folder / study.lmms_eval.include_path).resolve())
        changes["lmms_eval"] = study.lmms_eval.model_copy(update={"include_path": path})
    return study.model_copy(update={**changes, "perturbations": ["none"]})


def _listed(source: LinedYaml, problems: list[tuple[Location, str]]) -> str:
    unique = dict.fromkeys((source.line(location), text) for location, text in problems)
    return "\n".join(f"{source.path}:{line}: {text}" for line, text in sorted(unique))


def _in_words(problem: Any) -> tuple[Location, str]:
    """One of pydantic's errors: where, and what to do about it."""
    location: Location = tuple(part for part in problem["loc"] if part != "[key]")
    name = ".".join(str(part) for part in location)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return (
            location,
            f"{_parent(location)} does not know '{location[-1]}'; its keys are {', '.join(_keys(location[:-1]))}",
        )
    if problem["type"] == "missing":
        return location, f"{_parent(location)} lacks '{location[-1]}'"
    if problem["type"] == "string_pattern_mismatch" and LABEL in str(problem["ctx"]):
        return location, f"'{location[-1]}' cannot name a run; use letters, digits, '.', '_' and '-'"
    return location, f"'{name}': {message[:1].lower()}{message[1:]}"


def _parent(location: Location) -> str:
    return f"'{'.'.join(map(str, location[:-1]))}'" if location[:-1] else "a study"


def _keys(location: Location) -> list[str]:
    """The keys that the schema has at a place; labels and list positions stay within the model of their field."""
    if not location:
        return list(Study.model_fields)
    named = location[-1] if location[-1] == "resources" else location[0]
    return list(_INNER[str(named)].model_fields)


_INNER: dict[str, type[BaseModel]] = {
    "tasks": TaskSpec,
    "bases": BaseSpec,
    "baseline": BaselineSpec,
    "methods": MethodSpec,
    "lmms_eval": LmmsEvalSpec,
    "engine": EngineSpec,
    "resources": Resources,
    "compare": CompareSpec,
    "published": PublishedSpec,
}
