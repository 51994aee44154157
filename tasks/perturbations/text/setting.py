"""What one application of a method is given besides the text."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lmms_eval_stability.tasks.perturbations.text.resources import Resources

#: Share of characters or words that severities 1 to 5 change, for every method that has severities.
RATES = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Setting:
    """One application of a method.

    Attributes:
        rng: the only source of randomness.
        severity: from 1.
        official_quirks: reproduce the official output rather than the corrected one.
        resources: what the method may use.
    """

    rng: Random
    severity: int
    official_quirks: bool
    resources: Resources

    @property
    def rate(self) -> float:
        return RATES[self.severity - 1]
