"""A KV cache that begins with prefixes computed before, and has room for what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens
from lmms_eval_stability.model_wrappers.token_reduction.beginning import Reached


@dataclass(frozen=True)
class Prefix:
    """The shared beginning of prompts, as the language model sees it: P tokens, fewer than given if some were dropped.

    Attributes:
        ids: (P,) token ids.
        layers: keys and values of each decoder layer that may be shared, (heads, P, d) each.
        next_position: position of the token that follows.
        row: visual tokens on their way through the model, where a method acts before it.
        reached: what enters the first layer that may drop tokens, where a method acts inside the model; ``layers`` are
            those before it.
    """

    ids: Tensor
    layers: Sequence[tuple[Tensor, Tensor]]
    next_position: int
    row: RowTokens | None = None
    reached: Reached | None = None

    @property
    def nbytes(self) -> int:
        own = 0 if self.reached is None else self.reached.nbytes
        return own + sum(part.nbytes for layer in self.layers for part in layer)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in memory that was reserved for all of them: nothing is copied as they grow."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Begin with the first ``length`` columns of ``keys`` and ``values``, (B, heads, columns, d)."""
        super().__init__()
        self.all_keys, self.all_values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.rewind(length)

    def rewind(self, length: int) -> None:
        """Forget all columns but the first ``length``."""
        self.keys, self.values = self.all_keys[:, :, :length], self.all_values[:, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self.all_keys.shape[2]:  # more than was asked for: grow like any other
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            self.all_keys, self.all_values = grown
            return grown
        self.all_keys[:, :, start:end] = key_states
        self.all_values[:, :, start:end] = value_states
        self.rewind(end)
        return self.keys, self.values


def begin_with(prefixes: Sequence[Prefix], room: int) -> DynamicCache:
    """Return a cache whose rows hold the prefixes, padded on the left, with room for ``room`` more tokens."""
    longest = max(len(prefix.ids) for prefix in prefixes)
    cache = DynamicCache()
    for number in range(len(prefixes[0].layers)):
        filled = [_rows([prefix.layers[number][part] for prefix in prefixes], longest, room) for part in (0, 1)]
        cache.layers.append(RoomyLayer(*filled, longest))
    return cache


def _rows(parts: Sequence[Tensor], longest: int, room: int) -> Tensor:
    """Return (rows, heads, longest + room, d); padding, which no token attends to, is zero."""
    heads, _, size = parts[0].shape
    made = parts[0].new_empty(len(parts), heads, longest + room, size)
    for row, part in enumerate(parts):
        start = longest - part.shape[1]
        made[row, :, :start] = 0
        made[row, :, start:longest] = part
    return made
