"""VisionZip: keep the patches that the CLS token looks at, and merge the others into a few contextual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.families.images import ImageLayout
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM, Compressed
from lmms_eval_stability.model_wrappers.token_reduction.budget import (
    REFERENCE,
    check_budget,
    check_budget_fits,
    check_flag,
    keeps_everything,
    scaled,
)
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest
from lmms_eval_stability.model_wrappers.token_reduction.trace import Origin
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView, Wanted


@dataclass(frozen=True)
class VisionZip(BeforeLLM):
    """Keep ``dominant`` tokens by the CLS token's attention and merge the rest into ``contextual`` ones.

    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025
    (arXiv 2412.04467); official code https://github.com/dvlab-research/VisionZip. Attention, keys and features are
    those of the vision layer whose output the projector reads; the tokens are made before the projector.

    Follows the official code in that a contextual token is its target plus the mean of the tokens merged into it, not
    the mean of all. Departs from it in its default budget (the official package's own default is 191 + 30), and in that
    images whose tokens would not become fewer are left as they are. On Qwen, which has no CLS token, this is a port of
    ours and not the authors': the attention that a token receives takes the place of the CLS token's, after merging.

    Args:
        dominant: Dominant tokens of 576 patches, the CLS token included.
        contextual: Contextual tokens of 576 patches.
        literal: Take both as numbers of tokens per partition (LLaVA: the image and each tile; Qwen: the image) instead
            of in proportion to its patches.
    """

    dominant: int = 162
    contextual: int = 30
    literal: bool = False

    def __post_init__(self) -> None:
        check_flag("visionzip", "literal", self.literal)
        check_budget("visionzip", "dominant", self.dominant, literal=self.literal)
        check_budget("visionzip", "contextual", self.contextual, literal=self.literal, least=0)
        if not self.literal and self._total > REFERENCE:
            raise InvalidParameterError(
                f"visionzip: dominant + contextual = {self._total} is more than the {REFERENCE} tokens that"
                " they refer to; literal=True takes them as numbers of tokens"
            )

    @property
    def _total(self) -> int:
        return self.dominant + self.contextual

    @property
    def drops_tokens(self) -> bool:
        return not keeps_everything(self._total, literal=self.literal)

    def check_model(self, model: Any, family: Family) -> None:
        family.feature_layer(model)
        check_budget_fits(self, self._total, family.fixed_positions(model), literal=self.literal)

    def wanted(self, model: Any, family: Family) -> Wanted:
        layer = family.feature_layer(model)
        return Wanted(attention=(layer,), keys=True, hidden=layer)

    def counts(self, positions: int) -> tuple[int, int]:
        """Return the dominant and contextual tokens of a partition with ``positions`` patches."""
        if self.literal:
            return self.dominant, self.contextual
        total = scaled(self._total, positions, literal=False)
        contextual = min(scaled(self.contextual, positions, literal=False, least=0), total - 1)
        return total - contextual, contextual

    def compress(self, image: ImageView) -> Compressed | None:
        assert image.keys is not None
        dominant, contextual = self.counts(image.layout.positions)
        if (dominant + contextual) * image.layout.partitions >= image.layout.tokens:
            return None
        (attention,) = image.attention.values()
        if image.hidden is not None and image.project is not None:
            parts = [
                self.zip_partition(attention[p], image.hidden[p], image.keys[p], dominant, contextual)
                for p in range(image.layout.partitions)
            ]
            tokens = torch.cat(_in_official_order(parts, image.layout))
            origin = partial(_origin, image, [kept for kept, _, _ in parts], contextual, offset=1)
            return Compressed(image.project(tokens), torch.arange(len(tokens)), origin)
        kept = highest(attention[0].sum(dim=0), dominant)
        rest = _others(kept, len(image.tokens))
        targets, merged = merge(image.tokens, image.keys[0], rest, contextual)
        order = torch.cat([kept, targets]).argsort()
        features = torch.cat([image.tokens[kept], merged])
        origin = partial(_origin, image, [kept], contextual, offset=0)
        return Compressed(features[order], torch.cat([kept, targets])[order], origin)

    def select(self, attention: Tensor, dominant: int) -> Tensor:
        """Return the dominant tokens: the CLS row (H, 1 + n) -> (dominant,) ascending, 0 (CLS) first."""
        scores = attention.sum(dim=0)[1:]
        best = highest(scores, dominant - 1) + 1
        return torch.cat([best.new_zeros(1), best])

    def zip_partition(
        self, attention: Tensor, hidden: Tensor, keys: Tensor, dominant: int, contextual: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shorten one partition.

        Args:
            attention: (H, 1 + n) CLS row.
            hidden: (1 + n, d) features, CLS first.
            keys: (1 + n, d_head) mean over heads.
            dominant: Tokens kept, CLS included.
            contextual: Tokens that the others are merged into.

        Returns:
            The dominant tokens' indices (dominant,), their features (dominant, d), and the contextual tokens
            (contextual, d).
        """
        kept = self.select(attention, dominant)
        _, merged = merge(hidden, keys, _others(kept, len(hidden)), contextual)
        return kept, hidden[kept], merged


def merge(hidden: Tensor, keys: Tensor, rest: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge tokens into ``count`` evenly spaced ones of them, each into the one with the most similar key.

    Args:
        hidden: (S, d).
        keys: (S, d_head).
        rest: (m,) the tokens to merge, ascending.
        count: Targets wanted; all of ``rest`` if it has no more.

    Returns:
        The targets' indices (count,) and the merged tokens (count, d): target plus mean of its members.
    """
    targets, members, owner = assign(keys, rest, count)
    if len(targets) == 0:
        return targets, hidden[:0]
    sums = torch.zeros_like(hidden[targets], dtype=torch.float32).index_add_(0, owner, hidden[members].float())
    sizes = owner.bincount(minlength=len(targets)).clamp(min=1)
    return targets, (hidden[targets].float() + sums / sizes[:, None]).to(hidden.dtype)


def assign(keys: Tensor, rest: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens that others are merged into, and for each of the others the one with the most similar key.

    Args:
        keys: (S, d_head).
        rest: (m,) the tokens to merge, ascending.
        count: Targets wanted; all of ``rest`` if it has no more.

    Returns:
        The targets' indices (count,), evenly spaced in ``rest``; those of the others (m - count,); and the number of
        the target that each of these joins. With no target, nothing is merged: all three are empty.
    """
    if count == 0 or len(rest) == 0:
        return rest[:0], rest[:0], rest[:0]
    chosen = torch.arange(0, len(rest), max(1, len(rest) // count), device=rest.device)[:count]
    members = rest[_others(chosen, len(rest))]
    targets = rest[chosen]
    similar = normalize(keys[members].float(), dim=-1) @ normalize(keys[targets].float(), dim=-1).T
    return targets, members, similar.argmax(dim=1)


def _origin(image: ImageView, dominant: list[Tensor], contextual: int, *, offset: int) -> Origin:
    """Say where the tokens of an image come from.

    Args:
        image: The image.
        dominant: Of each partition, the tokens that were kept.
        contextual: Contextual tokens of a partition.
        offset: 1 where the first token of a partition is a CLS token, else 0.
    """
    assert image.keys is not None
    kept: list[Tensor] = []
    merged: list[Tensor] = []
    for number, (best, keys) in enumerate(zip(dominant, image.keys, strict=True)):
        first = number * image.layout.positions - offset
        kept.append(best[offset:] + first)
        targets, members, owner = assign(keys, _others(best, len(keys)), contextual)
        merged += [torch.cat([target[None], members[owner == group]]) + first for group, target in enumerate(targets)]
    return Origin(torch.cat(kept), tuple(merged), offset * len(dominant))


def _others(chosen: Tensor, total: int) -> Tensor:
    """Return the indices below ``total`` that are not among ``chosen``, ascending."""
    free = torch.ones(total, dtype=torch.bool, device=chosen.device)
    free[chosen] = False
    return free.nonzero().squeeze(1)


def _in_official_order(parts: list[tuple[Tensor, Tensor, Tensor]], layout: ImageLayout) -> list[Tensor]:
    """Return the tokens of all partitions in the official code's order.

    The base image's CLS, dominant and contextual tokens; all tiles' dominant patches in the raster order of the whole
    image; the tiles' CLS tokens; the tiles' contextual tokens. No newlines.
    """
    (_, first, merged), *tiles = parts
    tokens = [first, merged]
    if not tiles or layout.tiles is None:
        return tokens
    side = round(layout.positions**0.5)
    width = layout.tiles[1] * side
    places = []
    for number, (kept, _, _) in enumerate(tiles):
        row, column = divmod(number, layout.tiles[1])
        patch = kept[1:] - 1
        places.append((row * side + patch // side) * width + column * side + patch % side)
    patches = torch.cat([features[1:] for _, features, _ in tiles])
    tokens.append(patches[torch.cat(places).argsort()])
    tokens += [features[:1] for _, features, _ in tiles]
    return tokens + [contextual for _, _, contextual in tiles]
