"""SparseVLM: text tokens rate the visual ones; what is dropped is merged into a few tokens instead of lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM, Reduction, Stage
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest
from lmms_eval_stability.model_wrappers.token_reduction.spelling import (
    AUTO,
    Numbers,
    require_ascending,
    scaled,
    spelled,
    whole_numbers,
)

_LAYERS = (2, 6, 15)  # of 32
_LAYERS_BY_RANK = (2, 6, 15, 19)
_TOKENS = "300-200-110"
_SCALE = 13.5
_REFERENCE = 576  # visual tokens of the LLaVA-1.5 image for which the lists of the paper are made
_RECYCLED = 0.3  # share of the pruned tokens that is merged
_TOKENS_PER_CLUSTER = 10


@dataclass(frozen=True)
class SparseVLM(InsideLLM):
    """After each of ``layers`` keep the visual tokens that the text looks at, and merge the best of the others.

    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025
    (arXiv 2410.04417), section 3; official code https://github.com/Gumpest/SparseVLMs, the main branch in its V1 mode.

    Follows the official code where it departs from the paper: fixed numbers of tokens instead of the adaptive rule
    (``rank_rule`` is that of its version 1.0), and attention as the layer computes it. Departs from the official code
    in that the text that rates ends with the prompt, all images of a prompt are rated together, the numbers of tokens
    follow the size of the images, any batch size works, densities carry no random noise, and grid positions (Qwen) stay
    as they are.

    Args:
        layers: Decoder layers (from 0) whose attention ranks and after which tokens are dropped, e.g. ``2-6-15``;
            layer + 1 < number of layers, ascending. ``auto`` is 2-6-15 (with ``rank_rule`` 2-6-15-19) of 32 layers,
            scaled to the depth of the model.
        tokens: Visual tokens kept after each of them, besides the merged ones, for 576 visual tokens in the prompt;
            ``n * tokens // 576`` of n, and always at least one less than there are. 576 leaves a layer out.
        literal: Take ``tokens`` as they are, however many visual tokens there are.
        rank_rule: Keep ``int(rank * scale)`` instead, with the rank of the matrix of attention from raters to tokens.
        scale: Factor of the rank.
    """

    layers: Numbers = AUTO
    tokens: Numbers = _TOKENS
    literal: bool = False
    rank_rule: bool = False
    scale: float = _SCALE

    has_raters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("literal", "rank_rule"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParameterError(f"SparseVLM: {name} must be True or False, not {getattr(self, name)!r}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 < self.scale < float("inf"):
            raise InvalidParameterError(f"SparseVLM: scale must be a number above 0, not {self.scale!r}")
        tokens = whole_numbers("SparseVLM: tokens", self.tokens)
        if self.rank_rule and (self.literal or spelled(tokens) != _TOKENS):
            raise InvalidParameterError("SparseVLM: with rank_rule the rank decides, so tokens and literal have no use")
        if not self.rank_rule and self.scale != _SCALE:
            raise InvalidParameterError("SparseVLM: scale belongs to rank_rule, which is off")
        if not self.literal and max(tokens) > _REFERENCE:
            raise InvalidParameterError(
                f"SparseVLM: tokens are counted for {_REFERENCE} visual tokens, so {max(tokens)} are too many"
                " (literal=True takes them as they are)"
            )
        layers = self._default_layers if self.layers == AUTO else whole_numbers("SparseVLM: layers", self.layers)
        if not self.rank_rule and len(layers) != len(tokens):
            raise InvalidParameterError(
                f"SparseVLM: layers and tokens must be equally many, not {spelled(layers)} and {spelled(tokens)}"
            )
        # One spelling, whatever was given: it is logged, and compared between runs.
        object.__setattr__(self, "tokens", spelled(tokens))
        object.__setattr__(self, "layers", AUTO if self.layers == AUTO else spelled(layers))

    @property
    def _default_layers(self) -> tuple[int, ...]:
        return _LAYERS_BY_RANK if self.rank_rule else _LAYERS

    @property
    def drops_tokens(self) -> bool:
        return self.literal or self.rank_rule or min(whole_numbers("tokens", self.tokens)) < _REFERENCE

    @property
    def renumbers(self) -> bool:
        return True

    def stages(self, depth: int) -> tuple[Stage, ...]:
        layers = scaled(self._default_layers, depth) if self.layers == AUTO else whole_numbers("layers", self.layers)
        require_ascending(str(self), layers, depth)
        return tuple(Stage(layer=layer + 1, attention_layer=layer) for layer in layers)

    def acts(self, stage: int, entered: int, now: int) -> bool:  # noqa: ARG002
        if self.literal or self.rank_rule:
            return now > 0
        return now > 0 and whole_numbers("tokens", self.tokens)[stage] < _REFERENCE

    def keep_count(self, stage: int, entered: int, now: int) -> int:
        """Return how many tokens stay besides the merged ones, by the list."""
        goal = whole_numbers("tokens", self.tokens)[stage]
        return min(goal if self.literal else entered * goal // _REFERENCE, now - 1)

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        """Return the text tokens that are more like the visual ones than the average: (N, d), (T, d) -> (R,).

        If none is, as with a single text token, the last one.
        """
        scores = rater_scores(visual, text)
        above = (scores > scores.mean()).nonzero().squeeze(1)
        return above if len(above) else torch.tensor([len(text) - 1], device=text.device)

    def score(self, attention: Tensor) -> Tensor:
        """Mean over heads and raters: (H, R, N) -> (N,)."""
        return attention.mean(dim=0).mean(dim=0)

    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the ``n`` highest scores' indices in ascending order: (N,) -> (n,). Of equal scores the first wins."""
        return highest(scores, n)

    def reduce(self, stage: int, entered: int, attention: Tensor, hidden: Tensor) -> Reduction:
        """Keep the best tokens, and merge the best of the rest into a few."""
        now = len(hidden)
        n = rank_count(attention, self.scale) if self.rank_rule else self.keep_count(stage, entered, now)
        scores = self.score(attention)
        stays = self.select(scores, n)
        recycled = self.recycle(scores, stays).to(hidden.device)
        tokens = hidden[recycled]
        centres, member = cluster(tokens, cluster_count(len(recycled)))
        return Reduction(stays, average(tokens, member, len(centres)), recycled[centres], recycled, member)

    def recycle(self, scores: Tensor, stays: Tensor) -> Tensor:
        """Return the indices of the pruned tokens to merge, best first: (N,), (n,) -> (M,)."""
        gone = torch.ones_like(scores, dtype=torch.bool)
        gone[stays] = False
        pruned = gone.nonzero().squeeze(1)
        count = int(len(pruned) * _RECYCLED) + 1
        return pruned[scores[pruned].argsort(descending=True, stable=True)[:count]]


def rater_scores(visual: Tensor, text: Tensor) -> Tensor:
    """How much each text token is like the visual ones: (N, d), (T, d) -> (T,), summing to one.

    A visual token's raw dot products with all text tokens go through a softmax over the text; then the mean over the
    visual tokens. In fp32.
    """
    return (visual.float() @ text.float().T).softmax(dim=1).mean(dim=0)


def rank_count(attention: Tensor, scale: float, bias: float = 0.0) -> int:
    """Return how many tokens version 1.0 keeps of N: attention (H, R, N) of the raters -> ``int(rank * scale + bias)``.

    At least one less than N.
    """
    rank = int(torch.linalg.matrix_rank(attention.float().mean(dim=0)))
    return min(int(rank * scale + bias), attention.shape[-1] - 1)


def cluster_count(recycled: int) -> int:
    """Return into how many tokens ``recycled`` tokens are merged."""
    return recycled // _TOKENS_PER_CLUSTER + 1


def merge(tokens: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Merge tokens around density peaks: each cluster becomes its members' average.

    Args:
        tokens: (M, d).
        clusters: At most M.

    Returns:
        (clusters, d) in the dtype of ``tokens``, strongest centre first, and (clusters,) indices of the centres.
    """
    centres, member = cluster(tokens, clusters)
    return average(tokens, member, clusters), centres


def cluster(tokens: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Find density peaks among tokens (DPC-KNN), and the cluster of each token.

    A token is dense if its ``clusters`` nearest tokens, itself included, are near; a centre is dense and far from any
    denser token. Every token joins the nearest centre.

    Args:
        tokens: (M, d).
        clusters: At most M.

    Returns:
        (clusters,) indices of the centres, strongest first, and (M,) the cluster of each token.
    """
    points = tokens.float()
    # Not by matrix products: those lose digits where points are close, and differ between batch sizes.
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[1] ** 0.5
    nearest = distance.topk(clusters, dim=1, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    denser = density[None] > density[:, None]
    isolation = distance.masked_fill(~denser, float(distance.max())).min(dim=1).values
    # Two tokens that are each other's nearest are equally dense, so ties are common. The vectors of the official code
    # have them in the order of topk on the CPU, which is therefore used on every device.
    centres = (density * isolation).cpu().topk(clusters).indices.to(tokens.device)
    member = distance[:, centres].argmin(dim=1)
    member[centres] = torch.arange(clusters, device=member.device)  # also where two centres are the same point
    return centres, member


def average(tokens: Tensor, member: Tensor, clusters: int) -> Tensor:
    """Return the average of each cluster's tokens: (M, d), (M,) -> (clusters, d) in the dtype of ``tokens``."""
    belongs = torch.nn.functional.one_hot(member, clusters).float()  # (M, clusters)
    weights = belongs / (belongs.sum(dim=0) + 1e-6)
    return (weights.T @ tokens.float()).to(tokens.dtype)
