"""What a study may name: models, their arguments and lmms-eval's tasks. Imports neither torch nor lmms_eval."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Arguments of every model of this package with the type that YAML has to give (a test compares the names with the
#: class, which would import torch).
MODEL_ARGUMENTS: Mapping[str, tuple[type, ...]] = {
    "pretrained": (str,),
    "revision": (str,),
    "dtype": (str,),
    "device": (str,),
    "device_map": (str,),
    "attn_implementation": (str,),
    "use_cache": (bool,),
    "max_new_tokens": (int,),
    "min_pixels": (int,),
    "max_pixels": (int,),
    "trust_remote_code": (bool,),
    "use_safetensors": (bool,),
    "on_error": (str,),
    "workers": (int,),
    "quantization": (str,),
    "quantize_vision": (bool,),
}

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


_NAME = re.compile(r"""^["']?(task|group|tag|class)["']?[ \t]*:[ \t]*["']?([^\s"'#\[\]{}&*!|>,]*)""", re.MULTILINE)
_ITEM = re.compile(r"""^[ \t]*-[ \t]+(?:task:[ \t]*)?["']?([^\s"'#:{}\[\]]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


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
                    _index((Path(root) / name).read_text(encoding="utf-8", errors="replace"), tasks, groups)
    return TaskNames(frozenset(tasks), {name: tuple(sorted(found)) for name, found in groups.items()})


def _folders(include_path: str | None) -> list[Path]:
    from ..plugin import task_dir

    spec = importlib.util.find_spec("lmms_eval")
    own = [Path(place) / "tasks" for place in (spec.submodule_search_locations or ())] if spec is not None else []
    return [*own, task_dir(), *([Path(include_path)] if include_path else [])]


def _index(text: str, tasks: set[str], groups: dict[str, set[str]]) -> None:
    keys: dict[str, str] = {}
    for key, value in _NAME.findall(text):
        keys.setdefault(key, value)
    if keys.get("task"):
        tasks.add(keys["task"])
        for label in ("tag", "group"):
            if keys.get(label):
                groups.setdefault(keys[label], set()).add(keys["task"])
    elif "task" in keys and keys.get("group"):
        listed = text[re.search(r"^[\"']?task", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
        groups.setdefault(keys["group"], set()).update(_ITEM.findall(listed))
