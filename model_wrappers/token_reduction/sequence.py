"""Which tokens are left: bookkeeping on tensors, without any model.

Notation: B batch rows, L columns of ``input_ids``, S slots of the shortened sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """The tokens that a decoder layer sees, in order.

    Rows may keep different numbers of tokens; shorter ones are padded on the left, so that the newest token of every
    row is in the last slot whatever was dropped.

    Attributes:
        columns: (B, S) column of ``input_ids`` in each slot. Padding slots name some dropped or padding column. A token
            merged from several has the column of one of them, which need not be in order.
        valid: (B, S) bool, False on padding slots; None when there are none.
        columns_total: L.
    """

    columns: Tensor
    valid: Tensor | None
    columns_total: int

    @classmethod
    def everything(cls, batch: int, length: int, real: Tensor | None, device: torch.device) -> Kept:
        """Return the untouched sequence; ``real`` (B, L) is False on padding, or None."""
        columns = torch.arange(length, device=device).expand(batch, length)
        return cls(columns, real, length)

    def slot_order(self) -> Tensor:
        """Return (B, S) numbers that ascend with the slots, with room for S tokens to be moved in between."""
        slots = self.columns.shape[1]
        return torch.arange(slots, device=self.columns.device).repeat(len(self.columns), 1) * (slots + 1)

    def without(self, dropped: Tensor, order: Tensor | None = None) -> tuple[Kept, Tensor]:
        """Drop slots, and padding that is no longer needed to align the rows.

        Args:
            dropped: (B, S) bool over the slots of this sequence.
            order: (B, S) what to sort the slots by, at least 0, if some shall move; see ``slot_order``.

        Returns:
            The new sequence, and (B, S') the slot of this sequence that each new slot comes from.
        """
        keep = ~dropped if self.valid is None else ~dropped & self.valid
        longest = int(keep.sum(dim=1).max())
        # A stable sort of the flags moves what goes to the front and leaves what stays in its order behind it.
        key = keep.int() if order is None else order.masked_fill(~keep, -1)
        slots = key.argsort(dim=1, stable=True)[:, -longest:]
        valid = keep.gather(1, slots)
        columns = self.columns.gather(1, slots)
        return Kept(columns, None if bool(valid.all()) else valid, self.columns_total), slots

    def slot_of(self, columns: Tensor) -> Tensor:
        """Return the slots of kept columns of each row: (B,) -> (B,) or (B, R) -> (B, R)."""
        here = self.columns[:, None] == columns.reshape(len(columns), -1)[..., None]
        if self.valid is not None:
            here &= self.valid[:, None]
        return here.int().argmax(dim=2).view_as(columns)

    def lengths(self) -> Tensor:
        """Return how many tokens each row has, (B,)."""
        if self.valid is None:
            return torch.full(self.columns.shape[:1], self.columns.shape[1], device=self.columns.device)
        return self.valid.sum(dim=1)

    def renumbered(self, start: Kept) -> Tensor:
        """Return the columns whose positions the tokens get when they are numbered without gaps.

        Args:
            start: The sequence before anything was dropped: the r-th token that is left gets the position of the r-th
                token there, so that a row begins where it did before, whatever its padding.

        Returns:
            (B, S) columns; some column on padding slots.
        """
        if self.valid is None:
            rank = torch.arange(self.columns.shape[1], device=self.columns.device).expand_as(self.columns)
        else:
            rank = (self.valid.cumsum(dim=1) - 1).clamp(min=0)
        if start.valid is None:
            return rank
        return (~start.valid).int().argsort(dim=1, stable=True).gather(1, rank)

    def restore_length(self, hidden: Tensor) -> Tensor:
        """Put hidden states (B, S, d) back at their columns: (B, L, d), zeros where a token was dropped or padding."""
        if self.valid is not None:
            hidden = hidden * self.valid.to(hidden.device)[..., None]
        full = hidden.new_zeros(hidden.shape[0], self.columns_total, hidden.shape[2])
        index = self.columns.to(hidden.device)[..., None].expand_as(hidden)
        return full.scatter_(1, index, hidden)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather along the sequence, which is the last dimension but one: (..., B or 1, L, d), (B, S) -> (..., B, S, d)."""
    batch, slots = index.shape
    values = values.expand(*values.shape[:-3], batch, *values.shape[-2:])
    index = index.to(values.device)[..., None].expand(*values.shape[:-2], slots, values.shape[-1])
    return values.gather(-2, index)


def causal_mask(valid: Tensor | None, new: int, implementation: str, like: Tensor) -> Tensor | None:
    """Build the mask that an attention kernel needs for the newest ``new`` tokens of a sequence.

    Built from scratch, not cut out of the mask that the model made, because rows that keep different numbers of tokens
    need padding which that mask does not know.

    Args:
        valid: (B, K) bool over all keys, cached ones included, False on padding; None when all are real.
        new: Number of queries; they are the last ``new`` of the K keys.
        implementation: transformers' name of the kernel.
        like: (B, new, d) hidden states, for device and dtype. With ``valid`` None, K is ``new`` (a prefill).

    Returns:
        None where the kernel's own causal rule is right; (B, K) bool for flash kernels; (B or 1, 1, new, K) bool for
        sdpa and additive for eager. A padding query sees itself: a row without any key is NaN in some kernels.
    """
    if valid is not None:
        valid = valid.to(like.device)
    if "flash" in implementation:
        return valid
    if valid is None and (new == 1 or implementation != "eager"):
        return None
    keys = new if valid is None else valid.shape[1]
    query = torch.arange(keys - new, keys, device=like.device)[:, None]
    key = torch.arange(keys, device=like.device)[None]
    seen = (key <= query)[None, None]
    if valid is not None:
        seen = seen & valid[:, None, None] | (key == query)
    if implementation != "eager":
        return seen
    return like.new_zeros(seen.shape).masked_fill_(~seen, torch.finfo(like.dtype).min)


def visual_tokens(input_ids: Tensor, real: Tensor | None, query: Tensor, placeholders: Tensor) -> Tensor:
    """Return which columns are visual tokens that the query sees: (B, L) bool.

    Not after the query: without a cache those are generated tokens, which may have a placeholder's id by chance.

    Args:
        input_ids: (B, L).
        real: (B, L) bool, False on padding; None when there is none.
        query: (B,) column of each prompt's last token.
        placeholders: Ids that stand for one visual token each.
    """
    visual = torch.isin(input_ids, placeholders.to(input_ids.device))
    visual &= torch.arange(input_ids.shape[1], device=input_ids.device) < query[:, None]
    return visual if real is None else visual & real


def highest(scores: Tensor, n: int) -> Tensor:
    """Return the indices of the ``n`` highest scores, ascending: (N,) -> (n,). Of equal scores the first wins."""
    return scores.argsort(descending=True, stable=True)[:n].sort().values
