"""Prompts whose beginning the layers before the first drop have seen already: what joins it to the rest.

No token is dropped in these layers, and what they make of a prompt's beginning does not depend on what follows. So they
are given the question alone, on a cache that holds the beginning; at the input of the first layer that may drop
something the hidden states of both become one sequence again, and all layers from there on compute what they always do.

Notation: B batch rows, P columns of the beginnings, padded on the left, L columns of the whole prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Reached:
    """One prompt's beginning of p tokens at the first layer that may drop some.

    Attributes:
        states: (p, d) what enters that layer.
        embedded: (p, d) what entered the first layer of all.
        rotary: (cos, sin) of the tokens as layers take them, (..., 1, p, r).
    """

    states: Tensor
    embedded: Tensor
    rotary: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.states, self.embedded, *self.rotary))


@dataclass(frozen=True)
class Beginning:
    """The beginnings of a batch.

    Attributes:
        layer: the first layer that may drop tokens.
        input_ids: (B, L) whole prompts: [padding, beginning, padding, rest], the beginning ending with an image.
        rows: of each prompt.
    """

    layer: int
    input_ids: Tensor
    rows: Sequence[Reached]

    @property
    def length(self) -> int:
        """P."""
        return max(len(row.states) for row in self.rows)

    def join(self, rest: Tensor) -> Tensor:
        """Put what enters ``layer`` before the same of the rest: (B, L - P, d) -> (B, L, d), zeros for padding."""
        return self._before([row.states[None] for row in self.rows], rest)

    def join_embedded(self, rest: Tensor) -> Tensor:
        """Put what enters the first layer before the same of the rest: (B, L - P, d) -> (B, L, d)."""
        return self._before([row.embedded[None] for row in self.rows], rest)

    def join_rotary(self, rest: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Put rotary embeddings before those of the rest: (..., B or 1, L - P, r) -> (..., B, L, r)."""
        parts = zip(*(row.rotary for row in self.rows), strict=True)
        return tuple(self._before(list(own), after) for own, after in zip(parts, rest, strict=True))

    def _before(self, rows: list[Tensor], rest: Tensor) -> Tensor:
        aligned = torch.cat([pad(row, (0, 0, self.length - row.shape[-2], 0)) for row in rows], dim=-3)
        rest = rest.expand(*aligned.shape[:-2], *rest.shape[-2:])
        return torch.cat([aligned.to(rest.device), rest], dim=-2)
