"""What can go wrong in token reduction, one class per kind, so that callers can tell user errors from failed runs."""

from __future__ import annotations

from lmms_eval_stability.model_wrappers.errors import WrapperError


class TokenReductionError(WrapperError):
    """Base of everything that token reduction raises on purpose."""


class InvalidParameterError(TokenReductionError, ValueError):
    """A parameter of a method is out of range, by itself or for the model it is attached to."""


class UnsupportedModelError(TokenReductionError, ValueError):
    """The model has a property under which the method would be wrong."""


class UnsupportedCallError(TokenReductionError, ValueError):
    """A call of the model uses something (static cache, assisted decoding) under which the method would be wrong."""


class AlreadyAttachedError(TokenReductionError, RuntimeError):
    """A second method was attached to a model that already carries one."""


class NothingPrunedError(TokenReductionError, RuntimeError):
    """A whole run dropped no visual token although its parameters ask for it: its results are the base model's."""
