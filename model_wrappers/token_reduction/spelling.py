"""Lists as parameters. lmms-eval's ``--model_args`` cuts at commas, so lists are spelled with hyphens: ``8-16-24``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError

#: Value of a ``layers`` parameter that is not set: the method's own layers, scaled to the depth of the model.
AUTO = "auto"

#: What users may give for a list: text, one number (what lmms-eval makes of ``layers=8``), or a list (YAML, Python).
Numbers = str | int | float | Sequence[int] | Sequence[float]

_REFERENCE_DEPTH = 32  # layers of the 7B models for which papers give layer numbers


def whole_numbers(name: str, value: Numbers) -> tuple[int, ...]:
    """Return a list of whole numbers, at least 0; ``name`` is for the message."""
    parts = _parts(value)
    if not parts or any(isinstance(part, bool) or not str(part).isdecimal() for part in parts):
        raise InvalidParameterError(f"{name} must be whole numbers joined by hyphens, such as 8-16-24, not {value!r}")
    return tuple(int(part) for part in parts)


def shares(name: str, value: Numbers) -> tuple[float, ...]:
    """Return a list of numbers from 0 to 1."""
    try:
        numbers = [float("nan") if isinstance(part, bool) else float(part) for part in _parts(value)]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(0 <= number <= 1 for number in numbers):
        raise InvalidParameterError(
            f"{name} must be numbers from 0 to 1 joined by hyphens, such as 0.5-0.25-0.125, not {value!r}"
        )
    return tuple(numbers)


def spelled(numbers: Sequence[float]) -> str:
    """Return the one spelling of a list, as the sample log has it."""
    return "-".join(np.format_float_positional(number, trim="-") for number in numbers)


def scaled(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return where layers of a 32-layer model are in one of ``depth`` layers: nearest, halves up."""
    return tuple((2 * layer * depth + _REFERENCE_DEPTH) // (2 * _REFERENCE_DEPTH) for layer in layers)


def require_ascending(name: str, layers: Sequence[int], depth: int) -> None:
    """Refuse layers that are not in strictly ascending order, as those scaled to a shallow model may be."""
    if list(layers) != sorted(set(layers)):
        raise InvalidParameterError(
            f"{name}: layers must ascend, which {spelled(layers)} do not; in a language model of {depth} layers give"
            " layers that fit"
        )


def _parts(value: Numbers) -> Sequence[object]:
    if isinstance(value, str):
        return value.split("-")
    return list(value) if isinstance(value, Sequence) else [value]
