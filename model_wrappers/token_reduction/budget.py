"""Budgets in visual tokens: given for the 576 tokens of a LLaVA-1.5 image, in proportion for images with others."""

from __future__ import annotations

from typing import Any

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError

#: Visual tokens of a LLaVA-1.5 image, to which the budgets in papers refer.
REFERENCE = 576


def check_budget(method: str, name: str, value: Any, *, literal: bool, least: int = 1) -> None:
    """Refuse what cannot be a number of tokens."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidParameterError(f"{method}: {name} must be a whole number of at least {least}, not {value!r}")
    if not literal and value > REFERENCE:
        raise InvalidParameterError(
            f"{method}: {name}={value} is more than the {REFERENCE} tokens that budgets refer to; literal=True takes"
            " it as a number of tokens"
        )


def check_flag(method: str, name: str, value: Any) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        raise InvalidParameterError(f"{method}: {name} must be True or False, not {value!r}")


def check_share(method: str, name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is not a share: 0 < value <= 1, or with ``zero`` also 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (value == 0 and not zero):
        low = "0 <=" if zero else "0 <"
        raise InvalidParameterError(f"{method}: {name} must be a number with {low} {name} <= 1, not {value!r}")


def check_budget_fits(method: Any, tokens: int, available: int | None, *, literal: bool) -> None:
    """Refuse a literal budget larger than the tokens that every image has."""
    if literal and available is not None and tokens > available:
        raise InvalidParameterError(f"{method}: a budget of {tokens} tokens is more than the {available} there are")


def keeps_everything(tokens: int, *, literal: bool) -> bool:
    """Return whether a budget keeps everything whatever the image."""
    return not literal and tokens == REFERENCE


def scaled(tokens: int, available: int, *, literal: bool, least: int = 1) -> int:
    """Return the budget of an image (or partition) with ``available`` tokens: at least ``least``."""
    if literal:
        return tokens
    return max(least, round(available * tokens / REFERENCE))
