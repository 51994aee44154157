"""Making the inputs of the next batches while the model answers one.

Reading a document, decoding and perturbing its images, and what the processor does with them take time on the CPU that
a GPU would wait for. Threads are enough: nearly all of it runs outside Python's lock. Order and results do not depend
on their number.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from lmms_eval_stability.model_wrappers.families import Family, Prompt
from lmms_eval_stability.model_wrappers.families.images import ImageInputs
from lmms_eval_stability.model_wrappers.lru import MEBIBYTE, ByteLRU

B = TypeVar("B")
T = TypeVar("T")

#: Batches made ahead, per worker: enough to bridge one slow batch, few enough to keep their images in memory.
_DEPTH = 2
#: Processed images that are kept for the next batches: questions about one image follow each other.
_PROCESSED = 256 * MEBIBYTE


@dataclass(frozen=True)
class Prepared:
    """The inputs of one batch, before they go to the model's device.

    Attributes:
        text: token ids and what goes with them, padded on the left.
        images: the processed images of each row.
    """

    text: Mapping[str, Tensor]
    images: Sequence[Sequence[ImageInputs]]

    @property
    def all_images(self) -> list[ImageInputs]:
        """The images of all rows, in the order of their placeholders."""
        return [image for row in self.images for image in row]


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


class Preparer:
    """Tokenises prompts and processes images, each distinct one once; called from several threads.

    Args:
        family: the model's architecture.
        processor: the checkpoint's.
        pin: put what goes to a GPU into pinned memory, from where it is copied while the GPU computes.
    """

    def __init__(self, family: Family, processor: Any, *, pin: bool) -> None:
        self._family, self._pin = family, pin
        self._processors = OwnCopy(processor)
        self._processed: ByteLRU[ImageInputs] = ByteLRU(_PROCESSED)

    def processor(self) -> Any:
        """Return the calling thread's processor."""
        return self._processors.get()

    def prepare(self, prompts: Sequence[Prompt], keys: Sequence[Sequence[str]]) -> Prepared:
        """Return the inputs of a batch of prompts; ``keys`` are the digests of each one's images."""
        processor = self._processors.get()

        def process(image: Any, key: str) -> ImageInputs:
            made = self._family.process_image(processor, image, key)
            return replace(made, tensors=self._pinned(made.tensors))

        images = [
            [self._processed.get(key, partial(process, image, key)) for image, key in zip(p.images, own, strict=True)]
            for p, own in zip(prompts, keys, strict=True)
        ]
        return Prepared(self._pinned(self._family.encode_text(processor, prompts, images)), images)

    def clear(self) -> None:
        """Forget processed images."""
        self._processed.clear()

    def _pinned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.pin_memory() if self._pin else tensor for name, tensor in tensors.items()}


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
