"""Checks of what stands in ``--model_args``, before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_stability.model_wrappers.answering import REUSE
from lmms_eval_stability.model_wrappers.batch_size import BatchSize
from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError, UnknownArgumentError
from lmms_eval_stability.model_wrappers.quantization.errors import InvalidSchemeArgumentError
from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS, SCHEMES, ModelEntry

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.quantization.base import Quantizer
    from lmms_eval_stability.model_wrappers.token_reduction.base import TokenReducer

_ON_ERROR = ("raise", "record")


def check_arguments(
    entry: ModelEntry,
    pretrained: str,
    on_error: str,
    max_new_tokens: int | None,
    flags: dict[str, Any],
    workers: int | None,
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
    if workers is not None and (type(workers) is not int or workers < 0):
        raise InvalidArgumentError(f"workers={workers}: give a number of threads, or 0 for none")


def read_batch_size(batch_size: int | str, max_batch_size: int | str | None) -> BatchSize:
    """Return the rows per forward pass: a number, or ``auto`` with a limit."""
    if batch_size == "auto":
        if max_batch_size is not None and (not str(max_batch_size).isdigit() or int(max_batch_size) < 1):
            raise InvalidArgumentError(f"max_batch_size={max_batch_size}: give a whole number of at least 1")
        return BatchSize("auto", None if max_batch_size is None else int(max_batch_size))
    if not str(batch_size).isdigit() or int(batch_size) < 1:
        raise InvalidArgumentError(f"batch_size={batch_size}: give a whole number of at least 1, or auto")
    if max_batch_size is not None:
        raise InvalidArgumentError(f"max_batch_size belongs to batch_size=auto, but batch_size={batch_size}")
    return BatchSize(int(batch_size))


def read_reuse(reuse: str, reuse_memory: int, use_cache: bool) -> None:
    """Refuse values of ``reuse`` and ``reuse_memory`` that cannot be used."""
    if reuse not in REUSE:
        raise InvalidArgumentError(f"reuse={reuse}: choose one of {', '.join(REUSE)}")
    if type(reuse_memory) is not int or reuse_memory < 0:
        raise InvalidArgumentError(f"reuse_memory={reuse_memory}: give a number of MiB, or 0 to keep nothing")
    if reuse == "prefix" and not use_cache:
        raise InvalidArgumentError("reuse=prefix keeps keys and values: it does not go with use_cache=False")


def make_methods(
    entry: ModelEntry, quantization: str | None, arguments: dict[str, Any], takes: Sequence[str]
) -> tuple[TokenReducer | None, Quantizer | None]:
    """Return the token reduction and the quantisation scheme with their parameters.

    Args:
        entry: the model.
        quantization: a scheme on top of what the model's name says.
        arguments: what was given beside the arguments of every model.
        takes: the arguments of every model, for the message.

    Raises:
        UnknownArgumentError: neither the method, nor the scheme, nor the model takes an argument.
        InvalidSchemeArgumentError: there is no such scheme, or the model's name says another one.
    """
    by_name = METHODS[entry.method].kind == "quantization"
    scheme = _scheme(entry, quantization)
    method_class = None if by_name else _class_of(entry.method)
    quantizer_class = None if scheme is None else _class_of(scheme)
    own = [[] if cls is None else [f.name for f in dataclasses.fields(cls)] for cls in (method_class, quantizer_class)]
    unknown = sorted(set(arguments) - {name for names in own for name in names})
    if unknown:
        raise UnknownArgumentError(
            f"{entry.name} does not take {', '.join(unknown)}; it takes {', '.join([*takes, *own[0], *own[1]])}"
        )
    made = [
        None if cls is None else cls(**{name: arguments[name] for name in names if name in arguments})
        for cls, names in zip((method_class, quantizer_class), own, strict=True)
    ]
    return made[0], made[1]


def _scheme(entry: ModelEntry, quantization: str | None) -> str | None:
    """Return the quantisation scheme that name and argument agree on."""
    if quantization is not None and quantization not in SCHEMES:
        raise InvalidSchemeArgumentError(f"quantization={quantization}: choose one of {', '.join(SCHEMES)}")
    if METHODS[entry.method].kind != "quantization":
        return quantization
    if quantization not in (None, entry.method):
        raise InvalidSchemeArgumentError(
            f"{entry.name} is quantised by {entry.method}, but quantization={quantization}; leave quantization out, or"
            f" use --model {entry.family}_{quantization}"
        )
    return entry.method


def _class_of(method: str) -> type[Any] | None:
    path = METHODS[method].path
    if not path:
        return None
    module, name = path.split(":")
    found: type[Any] = getattr(importlib.import_module(f"lmms_eval_stability.model_wrappers.{module}"), name)
    return found
