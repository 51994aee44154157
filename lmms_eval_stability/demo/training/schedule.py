"""What training does when: everything depends on one number, the share of the budget that is used up."""

from __future__ import annotations

import math
from dataclasses import dataclass

PEAK_LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 150

VISION_ONLY_UNTIL = 0.15
FEW_TOKENS_UNTIL = 0.40
FEW_TOKENS = 64
HARDEST_FROM = 0.40
"""Pictures get harder until this share of the budget is used; from then on they are as hard as they get."""

EASIEST, HARDEST = 0.15, 0.8
"""Upper end of the training pictures' difficulty at the start and from `HARDEST_FROM` on; the lower end is 0."""


@dataclass(frozen=True)
class Phase:
    """How one step is done.

    Attributes:
        name: for the log.
        n_images: pictures per step.
        answers: whether the language model is trained (8 questions per picture) or the vision tower alone.
        keep: number of patches the language model sees, None for all.
        auxiliary_weight: factor of the auxiliary losses.
    """

    name: str
    n_images: int
    answers: bool
    keep: int | None
    auxiliary_weight: float


VISION = Phase("vision", n_images=64, answers=False, keep=None, auxiliary_weight=1.0)
FEW = Phase("joint, few tokens", n_images=32, answers=True, keep=FEW_TOKENS, auxiliary_weight=0.5)
ALL = Phase("joint, all tokens", n_images=32, answers=True, keep=None, auxiliary_weight=0.3)


def phase_at(progress: float) -> Phase:
    """Return the phase for a progress in [0, 1]."""
    if progress < VISION_ONLY_UNTIL:
        return VISION
    return FEW if progress < FEW_TOKENS_UNTIL else ALL


def difficulty_at(progress: float) -> tuple[float, float]:
    """Return the range of difficulty of the training pictures."""
    ramp = min(1.0, progress / HARDEST_FROM)
    return 0.0, EASIEST + (HARDEST - EASIEST) * ramp


def learning_rate_at(progress: float, step: int) -> float:
    """Return the learning rate: linear warm-up in steps, then half a cosine down to zero over the budget."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
