"""A KV cache that begins with prefixes computed before, and has room for what follows them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens
from lmms_eval_stability.model_wrappers.token_reduction.beginning import Reached


@dataclass(frozen=True, eq=False)  # one prefix is the same as another only if it is that other
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


class PrefixMemory:
    """Memory for the caches of batches that follow one another: reserved once, and a row that stays is not copied.

    Fresh memory costs about as much as copying a prefix into it, since the system hands it out page by page.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values, (rows, heads, columns, d)
        #: Of each row, what it holds, and up to which column; what is in use nowhere else is not kept alive.
        self._held: list[tuple[weakref.ref[Prefix], int]] = []

    def begin_with(self, prefixes: Sequence[Prefix], room: int) -> DynamicCache:
        """Return a cache whose rows hold the prefixes, padded on the left, with room for ``room`` more tokens.

        It takes the place of the cache returned before, which must not be used any more.
        """
        longest = max(len(prefix.ids) for prefix in prefixes)
        self._reserve(prefixes, longest + room)
        wanted = [(weakref.ref(prefix), longest) for prefix in prefixes]
        stays = [held == want for held, want in zip(self._held, wanted, strict=False)]
        stays += [False] * (len(prefixes) - len(stays))
        self._held[: len(prefixes)] = wanted
        cache = DynamicCache()
        for number, layer in enumerate(self._layers):
            for part in (0, 1):
                for row, prefix in enumerate(prefixes):
                    if not stays[row]:
                        _fill(layer[part][row], prefix.layers[number][part], longest)
            keys, values = (part[: len(prefixes)] for part in layer)
            cache.layers.append(RoomyLayer(keys, values, longest))
        return cache

    def _reserve(self, prefixes: Sequence[Prefix], columns: int) -> None:
        """See to it that there are enough rows and columns."""
        like = prefixes[0].layers
        if self._layers:
            rows, _, width, _ = self._layers[0][0].shape
            if len(self._layers) == len(like) and rows >= len(prefixes) and width >= columns:
                return
        self.clear()  # before there is more
        for pair in like:
            shapes = [(len(prefixes), part.shape[0], columns, part.shape[2]) for part in pair]
            keys, values = (part.new_empty(shape) for part, shape in zip(pair, shapes, strict=True))
            self._layers.append((keys, values))

    def clear(self) -> None:
        """Give the memory back."""
        self._layers, self._held = [], []


def _fill(row: Tensor, part: Tensor, longest: int) -> None:
    """Write keys or values (heads, p, d) so that they end at column ``longest``; padding is zero, and never seen."""
    start = longest - part.shape[1]
    row[:, :start] = 0
    row[:, start:longest] = part
