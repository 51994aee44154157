"""The decisions of a pruner as attention masks: in training every token goes on, but nobody sees a dropped one.

A dropped token gets the factor EPSILON in the softmax of all layers from its stage on (log(EPSILON) on its logits); a
kept one the factor 1. The derivative by a decision is then that of the exact rule "factor 0 or 1": finite, and not zero
for a token that is dropped, so that it can come back. For what is kept the forward pass is that of removal by index up
to EPSILON: positions stay, masks are causal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import Pruner
from lmms_eval_stability.model_wrappers.token_reduction.sequence import causal_mask

EPSILON = 1e-8
SAMPLING = ("gumbel", "topk")


@dataclass(frozen=True)
class Decision:
    """How a token's logit becomes a hard 0 or 1 with the gradient of something soft.

    Attributes:
        sampling: ``gumbel``: each token by itself, 1 where logit + noise is above 0 (binary Gumbel-softmax);
            ``topk``: the ``round(n * keep)`` tokens of a prompt whose logit + noise is highest.
        temperature: of the sigmoid whose gradient is passed through.
        keep: share of the prompt's visual tokens to keep at each stage.
    """

    sampling: str
    temperature: float
    keep: tuple[float, ...]

    def __call__(self, stage: int, logits: Tensor, noise: Tensor, candidates: Tensor, total: Tensor) -> Tensor:
        """Return straight-through decisions (B, L); only those of ``candidates`` mean something.

        Args:
            stage: index of the stage.
            logits: (B, L).
            noise: (B, L), difference of two Gumbel variables: logistic.
            candidates: (B, L) bool, visual tokens that are left.
            total: (B,) visual tokens of the prompts.
        """
        noisy = logits + noise
        if self.sampling == "topk":
            noisy = noisy - self._border(noisy.detach(), candidates, (total * self.keep[stage]).round().clamp(min=1))
        soft = (noisy / self.temperature).sigmoid()
        return (noisy > 0).float() + soft - soft.detach()

    @staticmethod
    def _border(noisy: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
        """Return what lies halfway between the last token that stays and the first that goes, (B, 1)."""
        ranked = noisy.masked_fill(~candidates, float("-inf")).sort(dim=1, descending=True).values
        last = counts.long().clamp(max=noisy.shape[1] - 1)[:, None]
        stays, goes = ranked.gather(1, last - 1), ranked.gather(1, last)
        return torch.where(goes.isfinite(), (stays + goes) / 2, stays - 1)


class Masking:
    """The hooks of one forward pass of the decoder and what they noted.

    Attributes:
        shares: per stage (B,), share of the prompt's visual tokens that is left.
    """

    def __init__(self, pruner: Pruner, decide: Decision, visual: Tensor, text: Tensor, noise: Sequence[Tensor]) -> None:
        """Prepare a pass over B rows of L columns: ``visual`` and ``text`` (B, L) bool, ``noise`` per stage (B, L)."""
        self._pruner, self._decide = pruner, decide
        self._visual, self._text, self._noise = visual, text, noise
        self._total = visual.sum(dim=1)
        self._alive = torch.ones_like(visual, dtype=torch.float32)
        self._mask: Tensor | None = None
        self.shares: list[Tensor] = []

    @contextmanager
    def attached(self, decoder: Any, real: Tensor | None) -> Iterator[Masking]:
        """Hook a decoder's layers; ``real`` (B, L) is False on padding, or None."""
        self._real = real
        first = self._pruner.design.layers[0]
        handles = [
            layer.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)
            for index, layer in enumerate(decoder.layers)
            if index >= first
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, index: int, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if index in self._pruner.design.layers:
            self._stage(self._pruner.design.layers.index(index), hidden)
        return args, {**kwargs, "attention_mask": self._mask}

    def _stage(self, stage: int, hidden: Tensor) -> None:
        # Every column is a query: with prompts of different lengths that is simpler than gathering the visual ones.
        logits = self._pruner.stages[stage](hidden, hidden, self._text)
        candidates = self._visual & (self._alive > 0.5)
        decisions = self._decide(stage, logits, self._noise[stage], candidates, self._total)
        self._alive = self._alive * torch.where(self._visual, decisions, 1.0)
        self.shares.append((self._alive * self._visual).sum(dim=1) / self._total)
        causal = causal_mask(self._real, hidden.shape[1], "eager", hidden)
        assert causal is not None
        factor = self._alive * (1 - EPSILON) + EPSILON
        self._mask = causal + factor.clamp(min=EPSILON).log()[:, None, None].to(hidden.dtype)
