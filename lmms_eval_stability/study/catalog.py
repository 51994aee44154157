"""What a study may name: models, their arguments and lmms-eval's tasks. Imports neither torch nor lmms_eval."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: Of lmms-eval's command line, not of --model_args.
_NO_MODEL_ARGUMENTS = ("self", "batch_size", "max_batch_size")
_KINDS: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
#: Methods that load a checkpoint which was quantised before: the base's own will not do.
NEEDS_CHECKPOINT = ("gptq", "awq")
#: Methods of some families only, and why.
FAMILIES_OF: Mapping[str, tuple[tuple[str, ...], str]] = {
    "downsample": (
        ("qwen2_vl", "qwen2_5_vl"),
        "LLaVA's processors scale every image to sizes of their own, so a smaller image has no fewer tokens",
    ),
}


def families() -> list[str]:
    """Prefixes of the models' names."""
    from lmms_eval_stability.model_wrappers.registry import FAMILIES

    return list(FAMILIES)


def methods() -> list[str]:
    """Suffixes of the models' names, "baseline" among them."""
    from lmms_eval_stability.model_wrappers.registry import METHODS

    return list(METHODS)


def method_arguments(method: str, quantization: Any = None) -> dict[str, tuple[type, ...]]:
    """Arguments of a method, and of a quantisation scheme on top of it, with the types of their defaults."""
    from lmms_eval_stability.model_wrappers.registry import METHODS

    defaults = dict(METHODS[method].parameters)
    if isinstance(quantization, str) and quantization in METHODS:
        defaults |= METHODS[quantization].parameters
    return {name: _types(value) for name, value in defaults.items()}


@functools.lru_cache(maxsize=1)
def model_arguments() -> dict[str, tuple[type, ...]]:
    """Arguments of every model of this package with their types, from the source of its class: no import of torch."""
    spec = importlib.util.find_spec("lmms_eval_stability.model_wrappers.wrapper")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    model = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "AcceleratedVLM")
    init = next(node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    found = {}
    for argument in (*init.args.args, *init.args.kwonlyargs):
        if argument.arg not in _NO_MODEL_ARGUMENTS:
            names = ast.unparse(argument.annotation).split(" | ") if argument.annotation else []
            kinds = [_KINDS.get(name, (object,)) for name in names if name != "None"] or [(object,)]
            found[argument.arg] = tuple(dict.fromkeys(kind for kind_list in kinds for kind in kind_list))
    return found


def schemes() -> tuple[str, ...]:
    """Values of `quantization`."""
    from lmms_eval_stability.model_wrappers.registry import SCHEMES

    return tuple(SCHEMES)


def _types(default: Any) -> tuple[type, ...]:
    if isinstance(default, bool):
        return (bool,)
    if isinstance(default, int):
        return (int,)
    if isinstance(default, float):
        return (int, float)
    return (str, int, float, list)  # lists are spelled as text, and one number is a list


@dataclass(frozen=True)
class TaskNames:
    """Names of lmms-eval's tasks, and of groups and tags with what is known of their tasks."""

    tasks: frozenset[str]
    groups: Mapping[str, tuple[str, ...]]


_NAME = re.compile(r"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*["']?([\w.+-]*)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads any YAML tag, such as lmms-eval's `!function`, as nothing."""


_Loader.add_multi_constructor("", lambda *_: None)


@functools.lru_cache(maxsize=4)
def task_names(include_path: str | None = None) -> TaskNames:
    """Index the task YAMLs of lmms-eval, of this package and of `include_path`, as lmms-eval would.

    lmms-eval's own index costs seconds and its import more, so only the names are searched for in the text.
    """
    tasks: set[str] = set()
    groups: dict[str, set[str]] = {}
    for folder in _folders(include_path):
        for root, inner, files in os.walk(folder):
            inner[:] = [name for name in inner if name not in ("__pycache__", ".ipynb_checkpoints")]
            for name in files:
                if name.endswith(".yaml"):
                    _index(_keys(Path(root) / name), tasks, groups)
    return TaskNames(frozenset(tasks), {name: tuple(sorted(found)) for name, found in groups.items()})


def _folders(include_path: str | None) -> list[Path]:
    from ..plugin import task_dir

    spec = importlib.util.find_spec("lmms_eval")
    own = [Path(place) / "tasks" for place in (spec.submodule_search_locations or ())] if spec is not None else []
    return [*own, task_dir(), *([Path(include_path)] if include_path else [])]


def _index(keys: Mapping[str, Any], tasks: set[str], groups: dict[str, set[str]]) -> None:
    task = keys.get("task")
    if isinstance(task, str):
        tasks.add(task)
    for label in (*_names(keys.get("tag")), *_names(keys.get("group"))):
        groups.setdefault(label, set()).update(_names(task))


def _keys(path: Path, depth: int = 3) -> dict[str, Any]:
    """What a YAML says of the names: from its lines where each is one word, else from the parsed YAML."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = dict(_NAME.findall(text))
    if found.get("task") and all(found.values()):
        return found
    try:
        parsed = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return {}
    keys = parsed if isinstance(parsed, dict) else {}
    if "task" not in keys and isinstance(keys.get("include"), str) and depth:
        return {**_keys(path.parent / keys["include"], depth - 1), **keys}
    return keys


def _names(value: Any) -> list[str]:
    """A name, or a list of names and of mappings with a `task`."""
    entries = value if isinstance(value, list) else [value]
    named = (entry.get("task") if isinstance(entry, dict) else entry for entry in entries)
    return [name for name in named if isinstance(name, str) and name]
