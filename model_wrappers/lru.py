"""A bounded memory: the least recently used entries go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from torch import Tensor


class Sized(Protocol):
    """Something that knows its size in bytes."""

    @property
    def nbytes(self) -> int: ...


V = TypeVar("V", bound=Sized)

MEBIBYTE = 2**20


class ByteLRU(Generic[V]):
    """Entries of at most ``limit`` bytes together; may be used from several threads.

    An entry that is larger by itself is returned to whoever asks for it and not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the entry of ``key``, made and kept if there is none."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self.hits += 1
                self._entries.move_to_end(key)
                return found
            self.misses += 1
        made = make()  # without the lock: two threads may make the same entry, one of which is dropped
        with self._lock:
            if key not in self._entries and made.nbytes <= self.limit:
                self._entries[key] = made
                self.nbytes += made.nbytes
                while self.nbytes > self.limit:
                    _, oldest = self._entries.popitem(last=False)
                    self.nbytes -= oldest.nbytes
        return made

    def clear(self) -> None:
        """Forget all entries."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0


def storage_bytes(*tensors: Tensor | None) -> int:
    """Return the bytes that tensors keep alive: those of a view are its whole storage."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(seen.values())
