"""The control of methods inside the language model: at their layers as many tokens, at random or evenly spaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.budget import check_flag
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM, Reduction, Stage
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import spread_noise
from lmms_eval_stability.model_wrappers.token_reduction.random import check_seed, drawn_order
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest
from lmms_eval_stability.model_wrappers.token_reduction.spelling import (
    AUTO,
    Numbers,
    require_ascending,
    scaled,
    shares,
    spelled,
    whole_numbers,
)

_LAYERS = (8, 16, 24)  # of 32, as PyramidDrop's
_GOLDEN = 0.6180339887498949  # its multiples fill the unit interval evenly


@dataclass(frozen=True)
class RandomInside(InsideLLM):
    """Keep random visual tokens from each of ``layers`` on: the share ``keep`` of the prompt's.

    A control, not a published method: what a method inside the language model has to beat at its own layers and numbers
    of tokens. Every set of a stage's size has equal probability, and is part of that of the stage before. The draw
    depends on the pixels of the prompt's images and ``seed`` only: not on the question, the batch, the order of samples
    or any global generator. For one image it is that of ``random``. What is left keeps its original positions.

    Args:
        layers: Decoder layers (from 0) before which tokens are dropped, e.g. ``2-3-4``; 1 <= layer < number of layers,
            ascending. ``auto`` is 8-16-24 of 32 layers (PyramidDrop's), scaled to the depth of the model.
        keep: Share of the prompt's visual tokens left after each stage, above 0 and not increasing, e.g.
            ``0.5-0.25-0.1``: ``round(n * share)``, at least 1. One number serves all stages. 1 drops nothing.
        seed: Seed of the draw.
        spread: Instead of drawing, space the tokens evenly over the image, by the R2 sequence of LVPruning's spread
            noise (its rows are as long as the square root of the prompt's visual tokens); another seed shifts them.
    """

    layers: Numbers = AUTO
    keep: Numbers = "0.5-0.25-0.125"
    seed: int = 0
    spread: bool = False

    has_first_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        keep = shares("random_inside: keep", self.keep)
        if not all(keep) or any(later > earlier for earlier, later in pairwise(keep)):
            raise InvalidParameterError(f"random_inside: keep must be above 0 and not increase, which {self.keep!r} do")
        layers = _LAYERS if self.layers == AUTO else whole_numbers("random_inside: layers", self.layers)
        if len(keep) not in (1, len(layers)):
            raise InvalidParameterError(
                f"random_inside: keep must give one share per layer or one for all, not {spelled(keep)} for layers"
                f" {spelled(layers)}"
            )
        check_seed("random_inside", self.seed)
        check_flag("random_inside", "spread", self.spread)
        # One spelling, whatever was given: it is logged, and compared between runs.
        object.__setattr__(self, "keep", spelled(keep))
        object.__setattr__(self, "layers", AUTO if self.layers == AUTO else spelled(layers))

    @property
    def drops_tokens(self) -> bool:
        return min(shares("keep", self.keep)) < 1

    def stages(self, depth: int) -> tuple[Stage, ...]:
        layers = scaled(_LAYERS, depth) if self.layers == AUTO else whole_numbers("layers", self.layers)
        require_ascending(str(self), layers, depth)
        return tuple(Stage(layer=layer, attention_layer=None) for layer in layers)

    def keep_count(self, stage: int, entered: int, now: int) -> int:
        keep = shares("keep", self.keep)
        return min(now, max(1, round(entered * keep[min(stage, len(keep) - 1)])))

    def first_scores(self, n: int, pixels: Sequence[Tensor]) -> Tensor:
        """Return a number (n,) for every visual token of a prompt: those with the highest stay longest."""
        if self.spread:
            return spread_noise(n, 0, self.seed * _GOLDEN % 1)
        scores = torch.empty(n)
        scores[drawn_order(n, self.seed, pixels)] = torch.arange(n, 0, -1, dtype=torch.float32)
        return scores

    def score(self, attention: Tensor) -> Tensor:
        """Not asked: no attention of the base ranks the tokens."""
        raise NotImplementedError

    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the ``n`` highest scores' indices in ascending order: (N,) -> (n,). Of equal scores the first wins."""
        return highest(scores, n)

    def reduce_by_text(
        self,
        stage: int,
        entered: int,
        visual: Tensor,
        text: Tensor,  # noqa: ARG002
        after: int,  # noqa: ARG002
        scores: Tensor | None,
    ) -> Reduction:
        """Keep the tokens that the draw lets stay longest, whatever text and tokens are."""
        if scores is None:
            raise RuntimeError("random_inside: a stage was reached without the scores made before the first layer")
        stays = self.select(scores, self.keep_count(stage, entered, len(visual)))
        return Reduction(stays, scores=scores[stays])
