"""The control that every ranking has to beat: as many visual tokens, chosen at random."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM, Compressed
from lmms_eval_stability.model_wrappers.token_reduction.budget import (
    check_budget,
    check_budget_fits,
    check_flag,
    keeps_everything,
    scaled,
)
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView


@dataclass(frozen=True)
class Random(BeforeLLM):
    """Keep ``tokens`` of every 576 visual tokens of an image, each set of that size with equal probability.

    A control, not a published method. The choice depends on the image's pixels and ``seed`` only: not on the batch, the
    order of samples or any global generator, so a run can be repeated and another seed gives another draw.

    Args:
        tokens: Visual tokens kept of an image that has 576; in proportion (rounded, at least 1) for other images.
        literal: Keep ``tokens`` of every image whatever it has; images with no more than that are left as they are.
        seed: Seed of the choice.
    """

    tokens: int = 192
    literal: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget("random", "tokens", self.tokens, literal=self.literal)
        check_flag("random", "literal", self.literal)
        check_seed("random", self.seed)

    @property
    def drops_tokens(self) -> bool:
        return not keeps_everything(self.tokens, literal=self.literal)

    def check_model(self, model: Any, family: Family) -> None:
        if family.model_type == "llava":
            check_budget_fits(self, self.tokens, family.fixed_positions(model), literal=self.literal)

    def compress(self, image: ImageView) -> Compressed | None:
        total = image.layout.tokens
        n = scaled(self.tokens, total, literal=self.literal)
        if n >= total:
            return None
        kept = self.select(total, n, image.pixels).to(image.tokens.device)
        return Compressed(image.tokens[kept], kept)

    def select(self, total: int, n: int, pixels: Tensor) -> Tensor:
        """Return ``n`` of ``total`` indices, ascending: (n,)."""
        return drawn_order(total, self.seed, [pixels])[:n].sort().values


def check_seed(method: str, seed: object) -> None:
    """Refuse what cannot be a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidParameterError(f"{method}: seed must be a whole number, not {seed!r}")


def drawn_order(total: int, seed: int, images: Sequence[Tensor]) -> Tensor:
    """Return ``total`` indices in an order (total,) that depends on the seed and the images' pixels only."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(seed.to_bytes(16, "big", signed=True))
    for pixels in images:
        digest.update(pixels.detach().float().cpu().contiguous().numpy().tobytes())
    key = int.from_bytes(digest.digest(), "big") >> 1  # a generator takes 63 bits
    return torch.randperm(total, generator=torch.Generator().manual_seed(key))
