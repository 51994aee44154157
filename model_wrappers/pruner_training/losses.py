"""What a pruner is taught by: the answer, how many tokens it may keep, and what the unpruned model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss, and the temperature at which the two models' distributions are compared."""

    answer: float = 1.0
    ratio: float = 2.0
    distill: float = 0.5
    temperature: float = 1.0


@dataclass(frozen=True)
class Losses:
    """The parts of the loss, each the mean over rows.

    Attributes:
        answer: cross-entropy of the answer's tokens.
        ratio: squared difference between the share of tokens kept and that wanted, mean over stages.
        distill: Kullback-Leibler divergence of the pruned model's distribution from the unpruned one's, at the answer's
            tokens: KL(unpruned || pruned) of the logits divided by a temperature, times its square. A high one teaches
            from answers, too, of which both models are sure.
        agreement: share of rows whose most probable first token is the unpruned model's; not part of the loss.
    """

    answer: Tensor
    ratio: Tensor
    distill: Tensor
    agreement: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """Return the weighted sum."""
        return weights.answer * self.answer + weights.ratio * self.ratio + weights.distill * self.distill


def answer_losses(
    pruned: Tensor,
    unpruned: Tensor,
    targets: Tensor,
    lengths: Sequence[int],
    shares: Sequence[Tensor],
    keep: Sequence[float],
    temperature: float = 1.0,
) -> Losses:
    """Return the losses of B rows with M answer tokens altogether.

    Args:
        pruned: (M, vocabulary) logits at the places that predict the answers' tokens, row after row.
        unpruned: (M, vocabulary) likewise, of the model without the pruner.
        targets: (M,) the answers' tokens.
        lengths: tokens of each row's answer; they sum to M.
        shares: per stage (B,), share of the row's visual tokens that is kept.
        keep: per stage, the share that is wanted.
        temperature: of the distillation.
    """
    log_pruned, log_unpruned = ((logits.float() / temperature).log_softmax(-1) for logits in (pruned, unpruned))
    divergence = (log_unpruned.exp() * (log_unpruned - log_pruned)).sum(-1) * temperature**2
    surprise = -pruned.float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    per_token = torch.stack([surprise, divergence])
    rows = torch.stack([part.mean(dim=1) for part in per_token.split(list(lengths), dim=1)], dim=1)  # (2, B)
    first = [sum(lengths[:row]) for row in range(len(lengths))]
    same = pruned[first].argmax(-1) == unpruned[first].argmax(-1)
    wanted = [(share - goal).square().mean() for share, goal in zip(shares, keep, strict=True)]
    return Losses(rows[0].mean(), torch.stack(wanted).mean(), rows[1].mean(), same.float().mean())
