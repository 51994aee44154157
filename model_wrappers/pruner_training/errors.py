"""What can go wrong when a pruner is trained, one class per kind."""

from __future__ import annotations

from lmms_eval_stability.model_wrappers.errors import WrapperError


class PrunerTrainingError(WrapperError):
    """Base of everything that the training of a pruner raises on purpose."""


class TrainingDataError(PrunerTrainingError, ValueError):
    """There are no examples to train on, or one cannot be used."""


class TrainingSettingsError(PrunerTrainingError, ValueError):
    """A setting is out of range, by itself or for the model."""


class PrunerFolderError(PrunerTrainingError, ValueError):
    """The folder to write holds something that must not be replaced, or a training that cannot be gone on with."""


class DivergedError(PrunerTrainingError, RuntimeError):
    """The loss is not a number any more."""
