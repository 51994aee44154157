"""What is known of one prefill while its stages drop tokens, and of the decoding steps that follow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.ipr import ratios
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept
from lmms_eval_stability.model_wrappers.token_reduction.trace import Trail


@dataclass
class Prefill:
    """One prefill, and what the decoding steps that follow it must know.

    Attributes:
        start: The sequence as it enters the language model.
        query: (B,) column of the prompt's last token.
        raters: (B, R) columns of the tokens that rank the visual ones. Rows with fewer repeat their last one.
        raters_of_row: How many of them each row really has.
        visual: (B, L) bool, the visual tokens of the prompt.
        counts: Visual tokens of each row: those of the prompt, then after each stage.
        kept: The latest shortened sequence and the layer where it begins, for each stage that dropped something.
        trails: What traces are made of, per row; empty unless the session traces.
        scores: What the latest stage said of the tokens that it left, by row; before any, the method's first scores.
        entered: (B, L, d) what entered the first layer that dropped anything, until the prefill's end, if wanted.
        cache: The KV cache that this prefill filled; not kept alive.
    """

    start: Kept
    query: Tensor
    raters: Tensor
    raters_of_row: list[int]
    visual: Tensor
    counts: list[list[int]]
    kept: list[tuple[int, Kept]] = field(default_factory=list)
    trails: list[Trail] = field(default_factory=list)
    scores: dict[int, Tensor | None] = field(default_factory=dict)
    entered: Tensor | None = None
    cache: Callable[[], Any] = lambda: None

    @property
    def now(self) -> Kept:
        """The sequence after the stages so far."""
        return self.kept[-1][1] if self.kept else self.start

    def at(self, layer: int) -> Kept | None:
        """Return the shortened sequence that enters ``layer``, or None if nothing has been dropped before it."""
        return next((kept for first, kept in reversed(self.kept) if first <= layer), None)

    def left(self) -> Tensor:
        """Return which slots of the sequence hold visual tokens now, (B, S) bool."""
        left = self.visual.gather(1, self.now.columns)
        if self.now.valid is not None:
            left &= self.now.valid
        return left

    def rating(self) -> tuple[Tensor, Tensor]:
        """Return the rows (B, R) of attention that rank the tokens that are left, and what each sees (B, R, S)."""
        now = self.now
        rows = now.slot_of(self.raters)
        seen = torch.arange(now.columns.shape[1], device=rows.device) <= rows[..., None]
        return rows, seen if now.valid is None else seen & now.valid[:, None]

    def text(self, index: int, hidden: Tensor) -> tuple[Tensor, int]:
        """Return the text tokens (T, d) of one row's prompt, and how many of them stand behind its last visual token.

        Args:
            index: The row.
            hidden: (B, S, d) hidden states of the sequence as it is now.
        """
        now, visual = self.now, self.visual[index]
        columns = now.columns[index]
        text = ~visual[columns] & (columns <= self.query[index])
        if now.valid is not None:
            text &= now.valid[index]
        after = text & (columns > visual.nonzero().max())
        return hidden[index, text.to(hidden.device)], int(after.sum())

    @torch.no_grad()
    def ratios(self) -> list[dict[str, tuple[float | None, ...]]]:
        """Return each row's inverse participation ratios, see ``ipr``; nothing for rows that lost no token.

        What entered the first layer that dropped anything is forgotten.
        """
        states, self.entered = self.entered, None
        found: list[dict[str, tuple[float | None, ...]]] = [{} for _ in self.counts]
        if states is None:
            return found
        left = self.left()
        for index, row in enumerate(self.counts):
            if row[-1] == row[0]:
                continue
            kept = self.now.columns[index, left[index]].to(states.device)
            both = ratios(states[index, self.visual[index].to(states.device)], states[index, kept])
            found[index] = {name: (ratio if math.isfinite(ratio) else None,) for name, ratio in both.items()}
        return found


@dataclass
class Continuation:
    """Tokens after a prefill: ``new`` of them in this pass, (B, appended) real or not altogether; None if all are."""

    new: int
    appended: int
    real: Tensor | None

    def all_keys(self, kept: Kept) -> Tensor | None:
        """Return which of all keys of a shortened layer are real, (B, S + appended), or None if no mask is needed."""
        if kept.valid is None and self.real is None and self.new == 1:
            return None
        prompt = torch.ones_like(kept.columns, dtype=torch.bool) if kept.valid is None else kept.valid
        after = prompt.new_ones(len(prompt), self.appended) if self.real is None else self.real
        return torch.cat([prompt, after], dim=1)
