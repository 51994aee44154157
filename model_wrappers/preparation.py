"""Making the inputs of the next batches while the model answers one.

Reading a document, decoding and perturbing its images, and what the processor does with them take time on the CPU that
a GPU would wait for. Threads are enough: nearly all of it runs outside Python's lock. Order and results do not depend
on their number.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lmms_eval_stability.model_wrappers.families import Prompt

B = TypeVar("B")
T = TypeVar("T")

#: Batches made ahead, per worker: enough to bridge one slow batch, few enough to keep their images in memory.
_DEPTH = 2


@dataclass(frozen=True)
class Prepared:
    """The inputs of one batch, before they go to the model's device.

    Attributes:
        documents: as the task has them.
        prompts: as the family built them.
        inputs: what the processor returned.
    """

    documents: Sequence[Any]
    prompts: Sequence[Prompt]
    inputs: Any


class Ahead(Generic[B, T]):
    """Runs a function on items of a sequence before they are asked for.

    Args:
        prepare: called in worker threads; an exception is raised to whoever asks for that item's result.
        workers: number of threads; with 0 nothing is run ahead.
    """

    def __init__(self, prepare: Callable[[B], T], workers: int) -> None:
        self._prepare, self._workers = prepare, workers

    def __call__(self, items: Iterable[B]) -> Iterator[tuple[B, Callable[[], T]]]:
        """Yield each item, in order, with a function that returns what ``prepare`` made of it."""
        if not self._workers:
            for item in items:
                yield item, lambda item=item: self._prepare(item)  # type: ignore[misc]
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="prepare")
        waiting: deque[tuple[B, Future[T]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(self._prepare, item)))
                if len(waiting) > self._workers * _DEPTH:
                    first, future = waiting.popleft()
                    yield first, future.result
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class OwnCopy:
    """A processor for every thread: tokenizers change their own state while they pad, and are not to be shared."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._owner = threading.get_ident()
        self._local = threading.local()

    def get(self) -> Any:
        """Return the processor itself to the thread that made this object, and a copy to each other thread."""
        if threading.get_ident() == self._owner:
            return self._processor
        if not hasattr(self._local, "processor"):
            self._local.processor = copy.deepcopy(self._processor)
        return self._local.processor
