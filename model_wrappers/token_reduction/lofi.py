"""Leverage-score pruning in the manner of LoFi: keep the tokens that span the dominant directions of an image."""

from __future__ import annotations

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
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.ipr import gram, inverse_participation_ratio, ratios
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView, Wanted

__all__ = ["LoFi", "inverse_participation_ratio", "leverage"]

_FEATURES = ("projected", "vision")


@dataclass(frozen=True)
class LoFi(BeforeLLM):
    """Keep the visual tokens with the highest rank-``rank`` leverage scores.

    After LoFi (arXiv 2503.06794), whose abstract names the singular value decomposition of visual representations and
    leverage scores. **Not verified against the paper's details**: no code is public, and the feature, the rank, the
    budget and the handling of tiles are choices made here. Do not report results as LoFi's.

    With X = U S W^T the features of one partition (LLaVA: the image or a tile; Qwen: the image), token i has the score
    U_i1^2 + ... + U_ir^2. All tokens of an image are ranked together; LLaVA-NeXT's newlines are dropped.

    Args:
        tokens: Visual tokens kept of an image that has 576 (newlines not counted); in proportion for other images.
        rank: Singular directions that count, from the largest. It must be less than the tokens of a partition: with all
            directions every score is 1. For images with few tokens it is reduced to one less than they have.
        feature: ``projected`` (what the language model sees) or ``vision`` (what the projector reads; LLaVA only).
        literal: Keep ``tokens`` of every image whatever it has; images with no more than that are left as they are.
    """

    tokens: int = 192
    rank: int = 64
    feature: str = "projected"
    literal: bool = False

    def __post_init__(self) -> None:
        check_flag("lofi", "literal", self.literal)
        check_budget("lofi", "tokens", self.tokens, literal=self.literal)
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidParameterError(f"lofi: rank must be a whole number of at least 1, not {self.rank!r}")
        if self.feature not in _FEATURES:
            raise InvalidParameterError(f"lofi: feature must be one of {', '.join(_FEATURES)}, not {self.feature!r}")

    @property
    def drops_tokens(self) -> bool:
        return not keeps_everything(self.tokens, literal=self.literal)

    def check_model(self, model: Any, family: Family) -> None:
        positions = family.fixed_positions(model)
        if positions is not None and self.rank >= positions:
            raise InvalidParameterError(
                f"{self}: rank must be less than the {positions} tokens of a partition, or every token scores the same"
            )
        if self.feature == "vision":
            if not family.has_cls:
                raise UnsupportedModelError(
                    f"{self}: this model merges tokens before its language model, so features of the vision tower do"
                    " not belong to one visual token each; use feature=projected"
                )
            family.feature_layer(model)
        if family.model_type == "llava":
            check_budget_fits(self, self.tokens, positions, literal=self.literal)

    def wanted(self, model: Any, family: Family) -> Wanted:
        return Wanted(hidden=family.feature_layer(model)) if self.feature == "vision" else Wanted()

    def compress(self, image: ImageView) -> Compressed | None:
        source = image.layout.source.to(image.tokens.device)
        places = (source >= 0).nonzero().squeeze(1)  # of patches among the placeholders
        n = scaled(self.tokens, len(places), literal=self.literal)
        if n >= len(places):
            return None
        if image.hidden is None:
            features = image.tokens[places]
        else:
            patches = image.hidden[:, image.hidden.shape[1] - image.layout.positions :]
            features = patches.flatten(0, 1)[source[places]]
        scores = features.new_zeros(len(places), dtype=torch.float64)
        partition = source[places] // image.layout.positions
        for number in range(image.layout.partitions):
            own = partition == number
            if bool(own.any()):
                scores[own] = leverage(features[own], self.rank)
        chosen = self.select(scores, n)
        kept = places[chosen]
        return Compressed(image.tokens[kept], kept, diagnostics=ratios(features, features[chosen]))

    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the ``n`` highest scores' indices in ascending order: (N,) -> (n,). Of equal scores the first wins."""
        return highest(scores, n)


def leverage(features: Tensor, rank: int) -> Tensor:
    """Return each row's leverage on the ``rank`` largest singular directions.

    Args:
        features: (N, d).
        rank: r; reduced to N - 1 (but at least 1), and to the directions that are not zero.

    Returns:
        (N,) float64, between 0 and 1, sums to the number of directions.
    """
    values, vectors = _spectrum(features)
    count = min(max(1, min(rank, len(features) - 1)), int((values > values[0] * 1e-12).sum()))
    vectors = vectors[:, :count]
    if len(vectors) != len(features):  # right singular vectors: project, and divide by the singular values
        vectors = features.double() @ vectors / values[:count].sqrt()
    return vectors.square().sum(dim=1)


def _spectrum(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared singular values, descending, and the singular vectors of the shorter side: (m,), (m, m)."""
    values, vectors = torch.linalg.eigh(gram(features.double()))
    return values.flip(0).clamp(min=0), vectors.flip(1)
