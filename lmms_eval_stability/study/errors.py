"""What can go wrong with a study."""

from __future__ import annotations

from ..errors import StabilityError


class StudyConfigError(StabilityError):
    """The YAML of a study says something that cannot be run, or its folder holds other things."""


class IncompleteLogError(StabilityError):
    """The logs of one lmms-eval process are not those of a complete run."""


class ClusterError(StabilityError):
    """The Ray cluster cannot be reached, or its nodes cannot run the study."""
