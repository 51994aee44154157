"""The decisions of a pruner as attention masks: in training every token goes on, but nobody sees a dropped one.

A dropped token gets the factor 0 in the softmax of all layers from its stage on, a kept one the factor 1. For what is
kept the forward pass is that of removal by index: positions stay, masks are causal. (A small factor instead of 0 is not
the same: where a token draws nearly all attention, as some do, it still draws most of it.)

The gradient goes straight through to the probability of staying: backwards, the factor counts as that probability. It
reaches the tokens that noise let stay, and says how much less of them would hurt. (Decisions that count as numbers
between 0 and 1 would also ask the dropped ones; but the slope at 0 of a token that would draw most of the attention is
many times the difference that it makes at 1, and such tokens drowned all others when we tried.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import Pruner
from lmms_eval_stability.model_wrappers.token_reduction.sequence import causal_mask

#: Added to the logits of a dropped token: exp(-1e4) is 0 in every dtype, and -1e4 overflows in none.
_GONE = -1e4
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

    def __call__(
        self, stage: int, logits: Tensor, noise: Tensor, candidates: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return straight-through decisions (B, L), 0 or 1, and the logits (B, L) of their probabilities.

        Only those of ``candidates`` mean something.

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
        relaxed = noisy / self.temperature
        soft = relaxed.sigmoid()
        return (noisy > 0).float() + soft - soft.detach(), relaxed

    @staticmethod
    def _border(noisy: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
        """Return what lies halfway between the last token that stays and the first that goes, (B, 1)."""
        ranked = noisy.masked_fill(~candidates, float("-inf")).sort(dim=1, descending=True).values
        ranked = torch.nn.functional.pad(ranked, (0, 1), value=float("-inf"))  # something that goes, if all stay
        last = counts.long()[:, None]
        stays, goes = ranked.gather(1, last - 1), ranked.gather(1, last)
        return torch.where(goes.isfinite(), (stays + goes) / 2, stays - 1)


class Masking:
    """The hooks of one forward pass of the decoder and what they noted.

    Attributes:
        shares: per stage (B,), share of the prompt's visual tokens that is left.
    """

    def __init__(self, pruner: Pruner, decide: Decision, visual: Tensor, text: Tensor, noise: Tensor) -> None:
        """Prepare a pass over B rows of L columns: ``visual`` and ``text`` (B, L) bool, ``noise`` (B, L)."""
        self._pruner, self._decide = pruner, decide
        self._logits: Tensor | float = 0.0
        self._slope: Tensor | float = 0.0
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
        self._logits = self._logits + self._pruner.stages[stage](hidden, hidden, self._text)
        candidates = self._visual & (self._alive > 0.5)
        decisions, relaxed = self._decide(stage, self._logits, self._noise, candidates, self._total)
        log_soft = torch.where(self._visual, torch.nn.functional.logsigmoid(relaxed), 0.0)
        self._slope = self._slope + log_soft - log_soft.detach()
        self._alive = self._alive * torch.where(self._visual, decisions, 1.0)
        self.shares.append((self._alive * self._visual).sum(dim=1) / self._total)
        causal = causal_mask(self._real, hidden.shape[1], "eager", hidden)
        assert causal is not None
        gone = torch.where(self._alive.detach() > 0.5, 0.0, _GONE)
        self._mask = causal + (gone + self._slope)[:, None, None].to(hidden.dtype)
