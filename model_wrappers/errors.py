"""Everything that can go wrong in an accelerated model, one class per kind of failure."""

from __future__ import annotations


class WrapperError(Exception):
    """Base class of the errors of this package's models; its message names the thing and the remedy."""


class UnknownArgumentError(WrapperError, TypeError):
    """A model argument that the model does not take."""


class InvalidArgumentError(WrapperError, ValueError):
    """A model argument with a value that cannot be used."""


class WrongFamilyError(WrapperError, ValueError):
    """A checkpoint of an architecture that the chosen model name does not serve."""


class CheckpointError(WrapperError, RuntimeError):
    """A checkpoint whose weights do not fill the model exactly."""


class UnsupportedInputError(WrapperError, ValueError):
    """A document with media or a request of a kind that the model does not answer."""


class AnswerError(WrapperError, RuntimeError):
    """A document could not be answered; the message names task and document."""


class DoesNotFitError(AnswerError):
    """A document for which the device's memory is too small even if it is answered alone."""
