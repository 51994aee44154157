"""LVPruning with modules that nobody trained, for any of the tiny models: weights drawn so that the choice depends on
picture and question."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lmms_eval_stability.model_wrappers.token_reduction import lvpruning
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import Pruner, PrunerCard, PrunerDesign

DESIGN = PrunerDesign(layers=(2, 4, 5), keep=(0.6, 0.4, 0.2), hidden=64, width=32, heads=4)


def draw(design: PrunerDesign = DESIGN, seed: int = 0) -> Pruner:
    """Return a pruner with random weights, large enough that its logits differ."""
    generator = torch.Generator().manual_seed(seed)
    pruner = Pruner(design)
    with torch.no_grad():
        for name, parameter in pruner.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):
                parameter.zero_()
    return pruner.eval().requires_grad_(False)


@dataclass(frozen=True)
class LVPruning(lvpruning.LVPruning):
    """The method itself; only where its modules come from is another place."""

    text: str = "all"

    @cached_property
    def card(self) -> PrunerCard:
        return PrunerCard(PrunerDesign(**{**vars(DESIGN), "text": self.text}), {}, {})

    @cached_property
    def modules(self) -> Pruner:
        return draw(self.card.design)

    def _require_base(self, model: Any) -> None:
        """Serve every base."""
