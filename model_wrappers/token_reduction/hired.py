"""HiRED: a fixed budget of visual tokens, shared out among the tiles of an image by what they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM, Compressed
from lmms_eval_stability.model_wrappers.token_reduction.budget import check_flag, check_share
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView, Wanted


@dataclass(frozen=True)
class HiRED(BeforeLLM):
    """Keep the share ``budget`` of visual tokens: the patches that the CLS token attends to most, tile by tile.

    Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language
    Models", AAAI 2025 (arXiv 2408.10945); official code https://github.com/hasanar1f/HiRED. Patches are ranked in the
    layer whose output the projector reads; how much a tile shows is read from the first layer's attention on the whole
    image. LLaVA-NeXT's newlines are dropped.

    Departs from the official code in that the part of the image that belongs to a tile is the tile's own rectangle,
    where that code takes a strip of raster rows (``official_quirks=True``), in that tiles that do not form a square are
    packed in the right order, and in that every image of a batch gets a selection of its own. On Qwen, which has
    neither a CLS token nor tiles, this is a port of ours and not the authors': the most attended tokens are kept.

    Args:
        budget: Share of the visual tokens that are kept, 0 < budget <= 1; of tiles with all their padding.
        alpha: Share of the budget that the whole image gets, 0 <= alpha < 1; the tiles share the rest. Matters for
            images with tiles only (LLaVA-NeXT).
        official_quirks: Count a tile's contents in a strip of raster rows, as the official code does.
    """

    budget: float = 0.2
    alpha: float = 0.5
    official_quirks: bool = False

    def __post_init__(self) -> None:
        check_share("hired", "budget", self.budget)
        check_share("hired", "alpha", self.alpha, zero=True)
        if self.alpha == 1:
            raise InvalidParameterError("hired: alpha must be below 1, or the tiles would get nothing")
        check_flag("hired", "official_quirks", self.official_quirks)

    @property
    def drops_tokens(self) -> bool:
        return self.budget < 1

    def check_model(self, model: Any, family: Family) -> None:
        family.feature_layer(model)

    def wanted(self, model: Any, family: Family) -> Wanted:
        last = family.feature_layer(model)
        return Wanted(attention=tuple(dict.fromkeys((0, last))) if family.model_type == "llava_next" else (last,))

    def compress(self, image: ImageView) -> Compressed | None:
        layers = list(image.attention)
        first, last = image.importance(layers[0]), image.importance(layers[-1])
        if image.layout.tiles is None:
            mask = self.select(last[0], self.keep_count(len(last[0])))
        else:
            mask = self.select_tiles(first[0], last, image.layout.tiles).flatten()
        source = image.layout.source.to(mask.device)
        stays = (source >= 0) & mask[source.clamp(min=0)]
        if not bool(stays.any()):  # everything chosen is padding of the tiles
            stays[0] = True
        kept = stays.nonzero().squeeze(1)
        return Compressed(image.tokens[kept.to(image.tokens.device)], kept)

    def keep_count(self, available: int) -> int:
        """Return the budget in tokens: at least one."""
        return max(1, int(available * self.budget))

    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return which tokens are the ``n`` best: (N,) -> (N,) bool. Of equal scores the first wins."""
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[scores.argsort(descending=True, stable=True)[:n]] = True
        return mask

    def select_tiles(self, first: Tensor, last: Tensor, tiles: tuple[int, int]) -> Tensor:
        """Share out the budget among the whole image and its tiles, and choose.

        Args:
            first: (n,) attention of the whole image's patches in the first layer.
            last: (P, n) attention of all partitions' patches in the last layer.
            tiles: (rows, columns); P is rows * columns + 1.

        Returns:
            (P, n) bool.
        """
        partitions, patches = last.shape
        total = self.keep_count(partitions * patches)
        whole = min(int(total * self.alpha), patches)
        for_tiles = min(total - whole, (partitions - 1) * patches)
        shown = self.contents(first, tiles)
        counts = [min(int(part / sum(shown) * for_tiles), patches) for part in shown]
        return torch.stack([self.select(*pair) for pair in zip(last, [whole, *counts], strict=True)])

    def contents(self, first: Tensor, tiles: tuple[int, int]) -> list[int]:
        """Return how many of the most attended patches of the whole image belong to each tile: (n,) -> rows * columns.

        The tile is the rectangle at its place in the grid of patches, or with ``official_quirks`` a strip of it.
        """
        rows, columns = tiles
        best = self.select(first, max(1, int(len(first) * (1 - self.alpha))))
        if self.official_quirks:
            if len(first) % (rows * columns):
                raise UnsupportedCallError(
                    f"hired: the official code cannot cut {len(first)} patches into {rows * columns} equal strips"
                )
            return [int(count) for count in best.view(rows * columns, -1).sum(dim=1)]
        side = round(len(first) ** 0.5)
        place = torch.arange(side, device=first.device)
        owner = (place * rows // side)[:, None] * columns + place * columns // side  # (side, side)
        return [int(count) for count in owner.flatten()[best].bincount(minlength=rows * columns)]
