"""What can go wrong with a quantised model, one class per kind; the message names the checkpoint and the remedy."""

from __future__ import annotations

from lmms_eval_stability.model_wrappers.errors import WrapperError


class QuantizationError(WrapperError):
    """Base of everything that loading a quantised model raises on purpose."""


class InvalidSchemeArgumentError(QuantizationError, ValueError):
    """A scheme, or a parameter of one, that does not exist or cannot be used."""


class SchemeMismatchError(QuantizationError, ValueError):
    """The checkpoint is quantised otherwise than the model name or ``quantization=`` says."""


class LayoutError(QuantizationError, ValueError):
    """A quantised checkpoint in a layout that transformers cannot read."""


class MissingPackageError(QuantizationError, ImportError):
    """A package that the scheme needs is not installed, or not in a version that works."""


class BackendError(QuantizationError, ValueError):
    """A kernel that does not exist or does not run on this device."""


class QuantizedModulesError(QuantizationError, RuntimeError):
    """The loaded model is quantised in the wrong places: nowhere in the language model, or in the vision tower."""
