"""What can go wrong while a quantised checkpoint is made, one class per kind; the message names the remedy."""

from __future__ import annotations

from lmms_eval_stability.model_wrappers.errors import WrapperError


class MakeError(WrapperError):
    """Base of everything that making a checkpoint raises on purpose."""


class CalibrationError(MakeError, ValueError):
    """Calibration data that does not exist or cannot be read; the message names file and line, or task and document."""


class GroupSizeError(MakeError, ValueError):
    """A group size that does not divide the input width of the layers."""


class OutputFolderError(MakeError, ValueError):
    """An output folder that must not be written to."""


class WrittenCheckpointError(MakeError, RuntimeError):
    """A checkpoint was written and does not load as it should; it is kept under another name."""
