"""Checks of what stands in ``--model_args``, before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError, UnknownArgumentError
from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS, ModelEntry

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.token_reduction.base import TokenReducer

_ON_ERROR = ("raise", "record")


def check_arguments(
    entry: ModelEntry, pretrained: str, on_error: str, max_new_tokens: int | None, flags: dict[str, Any]
) -> None:
    """Refuse values that would fail only later, or quietly mean something else."""
    if not pretrained:
        raise InvalidArgumentError(
            f"{entry.name} needs a checkpoint: --model_args pretrained={FAMILIES[entry.family].example},"
            " or pretrained=demo for the model that comes with the package"
        )
    if on_error not in _ON_ERROR:
        raise InvalidArgumentError(f"on_error={on_error}: choose one of {', '.join(_ON_ERROR)}")
    for name, value in flags.items():
        if not isinstance(value, bool):  # "no" is a text, and a text is true
            raise InvalidArgumentError(f"{name}={value}: write True or False")
    if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
        raise InvalidArgumentError(f"max_new_tokens={max_new_tokens}: give a whole number of at least 1")


def read_batch_size(batch_size: int | str, max_batch_size: int | None) -> int:
    """Return the rows per forward pass."""
    if not str(batch_size).isdigit() or int(batch_size) < 1:
        raise InvalidArgumentError(f"batch_size={batch_size}: give a whole number of at least 1")
    if max_batch_size is not None:
        raise InvalidArgumentError("max_batch_size belongs to automatic batch sizes, which these models do not have")
    return int(batch_size)


def make_method(entry: ModelEntry, arguments: dict[str, Any], takes: Sequence[str]) -> TokenReducer | None:
    """Return the method with its parameters.

    Args:
        entry: the model.
        arguments: what was given beside the arguments of every model.
        takes: the arguments of every model, for the message.

    Raises:
        UnknownArgumentError: neither the method nor the model takes an argument.
    """
    path = METHODS[entry.method].path
    method_class: type[Any] | None = None
    if path:
        module, name = path.split(":")
        method_class = getattr(importlib.import_module(f"lmms_eval_stability.model_wrappers.{module}"), name)
    parameters = [] if method_class is None else [f.name for f in dataclasses.fields(method_class)]
    unknown = sorted(set(arguments) - set(parameters))
    if unknown:
        raise UnknownArgumentError(
            f"{entry.name} does not take {', '.join(unknown)}; it takes {', '.join([*takes, *parameters])}"
        )
    return None if method_class is None else method_class(**arguments)
