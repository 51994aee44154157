"""The entry point that lmms-eval calls: registers the models and makes the task folder visible.

lmms-eval loads entry points of the group ``lmms_eval.models`` while it imports ``lmms_eval.models``, and one exception
in any of them disables every later one. So nothing here is heavy and nothing escapes: a failure is logged, and
lmms-eval goes on without this package's models.

Tasks have no entry point. ``TaskManager.initialize_tasks`` is wrapped to search one folder more; a folder that the
user names with ``--include_path`` wins over ours. The same wrapper fixes the model name by which tasks choose their
arguments (`task_model_name` in the registry). The loading of one task is wrapped too: YAMLs that name a ``base_task``
and a ``perturbation`` become tasks of ``tasks.perturbed``. If ``lmms_eval.tasks`` is not imported yet, the wrapping
waits for its import, since that import takes seconds that, for example, ``lmms-eval models`` need not spend.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_TASKS_MODULE = "lmms_eval.tasks"
_WRAPPED = "_lmms_eval_stability_wrapped"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredModel:
    """A model that this package adds to lmms-eval: its names, what it serves and what it takes."""

    name: str
    checkpoints: tuple[str, ...]
    method: str
    kind: str
    parameters: dict[str, Any]
    summary: str
    example: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class RegisteredTask:
    """A task, or a group of tasks, that this package adds to lmms-eval; without metrics where its base task's apply."""

    name: str
    description: str
    metrics: tuple[str, ...]
    file: Path


def registered_models() -> list[RegisteredModel]:
    """Return the models, in the order of the registry; imports no torch."""
    from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS, MODELS

    return [
        RegisteredModel(
            name=entry.name,
            checkpoints=FAMILIES[entry.family].model_types,
            method=entry.method,
            kind=METHODS[entry.method].kind,
            parameters=dict(METHODS[entry.method].parameters),
            summary=METHODS[entry.method].summary,
            example=FAMILIES[entry.family].example,
            aliases=entry.aliases,
        )
        for entry in MODELS.values()
    ]


def registered_tasks() -> list[RegisteredTask]:
    """Return the tasks of the package's YAMLs, by name; reads the YAMLs and imports nothing that they refer to."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads lmms-eval's ``!function`` entries as text."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]
    found = []
    for file in sorted(task_dir().rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        config = yaml.load(text, Loader)
        name = config["task"] if isinstance(config["task"], str) else config["group"]
        metrics = tuple(metric["metric"] for metric in config.get("metric_list") or ())
        comment = [line.lstrip("# ") for line in text.splitlines()[:1] if line.startswith("#")]
        found.append(RegisteredTask(name, " ".join(comment), metrics, file))
    return sorted(found, key=lambda task: task.name)


def task_dir() -> Path:
    """Return the folder of this package's task YAMLs, to give to ``--include_path`` where plug-ins are not loaded."""
    import lmms_eval_stability.tasks

    return Path(next(iter(lmms_eval_stability.tasks.__path__)))


def manifests() -> list[Any]:
    """Return one ``ModelManifest`` per model and arrange for the tasks; never raises."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest

        from lmms_eval_stability.model_wrappers.registry import MODELS

        _wrap_tasks_when_imported()
        return [
            ModelManifest(model_id=entry.name, chat_class_path=entry.class_path, aliases=entry.aliases)
            for entry in MODELS.values()
        ]
    except Exception:  # one broken entry point must not disable the others
        _log.exception("lmms-eval-stability could not register its models and tasks")
        return []


def _wrap_tasks_when_imported() -> None:
    module = sys.modules.get(_TASKS_MODULE)
    if module is not None and hasattr(module, "TaskManager"):
        wrap_task_manager(module)
    elif not any(isinstance(finder, _TasksFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TasksFinder())


def wrap_task_manager(module: ModuleType) -> None:
    """Make ``module.TaskManager`` search our folder too and choose task arguments by base model; once only."""
    manager = module.TaskManager
    original: Callable[..., Any] = manager.initialize_tasks
    if getattr(original, _WRAPPED, False):
        return

    @functools.wraps(original)
    def initialize_tasks(
        self: Any, include_path: str | Sequence[str] | None = None, include_defaults: bool = True
    ) -> Any:
        from lmms_eval_stability.model_wrappers.registry import task_model_name

        self.model_name = task_model_name(getattr(self, "model_name", None))
        if include_defaults:
            asked = [include_path] if isinstance(include_path, str) else list(include_path or [])
            include_path = [*asked, str(task_dir())]
        return original(self, include_path=include_path, include_defaults=include_defaults)

    setattr(initialize_tasks, _WRAPPED, True)
    manager.initialize_tasks = initialize_tasks
    _wrap_loading(manager)


def _wrap_loading(manager: Any) -> None:
    """Have tasks whose YAML names a ``base_task`` and a ``perturbation`` made by ``tasks.perturbed``."""
    load: Callable[..., Any] | None = getattr(manager, "_load_individual_task_or_group", None)
    if load is None:
        _log.warning("this lmms-eval loads tasks in a way that perturbed tasks do not know; they will not work")
        return

    @functools.wraps(load)
    def _load_individual_task_or_group(
        self: Any, name_or_config: Any = None, task_type: str = "simple", *args: Any, **kwargs: Any
    ) -> Any:
        named = name_or_config if isinstance(name_or_config, dict) else {"task": name_or_config}
        name = named.get("task")
        if isinstance(name, str) and self._name_is_task(name):
            from lmms_eval.utils import load_yaml_config

            # As the index reads YAMLs: the modules of a task's functions are imported when it is loaded, not twice.
            keys = load_yaml_config(self._get_yaml_path(name), mode="simple")
            if "base_task" in keys and "perturbation" in keys:
                from lmms_eval_stability.tasks.perturbed import make_task

                override = kwargs.get("update_config") or {}
                config = {**self._get_config(name), **named, **override}
                return {name: make_task(self, name, config, task_type)}
        return load(self, name_or_config, task_type, *args, **kwargs)

    manager._load_individual_task_or_group = _load_individual_task_or_group


class _TasksFinder(importlib.abc.MetaPathFinder):
    """Finds ``lmms_eval.tasks`` as Python would, and wraps its task manager once the module has run."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname != _TASKS_MODULE or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            _wrap_after_exec(spec.loader)
        return spec


def _wrap_after_exec(loader: Any) -> None:
    exec_module = loader.exec_module

    def exec_and_wrap(module: ModuleType) -> None:
        exec_module(module)
        try:
            wrap_task_manager(module)
        except Exception:
            _log.exception("lmms-eval-stability could not make its tasks visible; use --include_path %s", task_dir())

    loader.exec_module = exec_and_wrap
