"""What is to be trained, and how."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval_stability.model_wrappers.pruner_training.errors import TrainingSettingsError
from lmms_eval_stability.model_wrappers.pruner_training.losses import LossWeights
from lmms_eval_stability.model_wrappers.pruner_training.masking import SAMPLING
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import TEXTS

_MAX_WIDTH = 512


@dataclass(frozen=True)
class TrainingSettings:
    """Everything on which the result depends, besides base model and data.

    Attributes:
        layers, keep, text: see ``PrunerDesign``.
        width: of the modules; None is half the decoder's, at most 512.
        heads: of their cross-attention.
        steps: of the optimiser.
        batch_size: examples per step, on all processes together.
        learning_rate: after ``warmup`` (a share of the steps); a cosine takes it to zero.
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        weights: of the parts of the loss.
        sampling, temperature: see ``Decision``.
        noise: see ``PrunerDesign``.
        seed: of initial weights, order of examples and noise.
    """

    layers: tuple[int, ...]
    keep: tuple[float, ...]
    text: str = "all"
    width: int | None = None
    heads: int = 4
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    weights: LossWeights = field(default_factory=LossWeights)
    sampling: str = "gumbel"
    noise: str = "spread"
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingSettingsError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "temperature", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingSettingsError(f"{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        weights = asdict(self.weights)
        if not weights.pop("temperature") > 0:
            raise TrainingSettingsError(f"distill-temperature must be above 0, not {self.weights.temperature}")
        if min(weights.values()) < 0 or not any(weights.values()):
            raise TrainingSettingsError(f"weights of the loss must not be below 0, and not all 0, as {weights}")
        if self.sampling not in SAMPLING or self.text not in TEXTS:
            raise TrainingSettingsError(f"sampling is one of {SAMPLING}, text one of {TEXTS}")

    def width_for(self, hidden: int) -> int:
        """Return the width of the modules for a decoder of width ``hidden``, a multiple of the heads."""
        if self.width is not None:
            return self.width
        return max(self.heads, min(hidden // 2, _MAX_WIDTH) // self.heads * self.heads)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        ramp = max(1, round(self.warmup * self.steps))
        if step < ramp:
            return self.learning_rate * (step + 1) / ramp
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, self.steps - ramp)))

    def to_json(self) -> dict[str, Any]:
        """Return the settings ready for JSON."""
        return {**asdict(self), "layers": list(self.layers), "keep": list(self.keep)}


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Attributes:
        model: hub name, folder or ``demo``.
        data: JSONL file, name of a task, or ``shapes``.
        skip: documents of a task to leave out, from its first.
        output: folder of the pruner.
        settings: how.
        command: what makes it again, for the card.
        micro_batch: examples per forward pass on one process; None: all of a step.
        checkpoint_every: steps between checkpoints.
        resume: go on from the checkpoint in ``output``.
        overwrite: replace a pruner, or a training, that is in ``output``.
    """

    model: str
    data: str
    output: Path
    settings: TrainingSettings
    command: str
    revision: str = "main"
    skip: int = 0
    dtype: str = "auto"
    device: str | None = None
    micro_batch: int | None = None
    checkpoint_every: int = 100
    resume: bool = False
    overwrite: bool = False
