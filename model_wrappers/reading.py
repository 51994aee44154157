"""From requests to batches: documents are read in windows, inside which questions about one image are put together.

A window is as many requests as their distinct images fit into memory, so that every document is read (decoded,
perturbed) once, and images are told apart by their pixels and not by what a task calls them. The next window is read in
a thread while the model answers the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from lmms_eval_stability.model_wrappers.families import Prompt
from lmms_eval_stability.model_wrappers.lru import MEBIBYTE
from lmms_eval_stability.model_wrappers.measurements import Fingerprints
from lmms_eval_stability.model_wrappers.preparation import Ahead
from lmms_eval_stability.model_wrappers.requests import Request

R = TypeVar("R", bound=Request)
T = TypeVar("T")

#: Pixels of the distinct images of a window, in bytes.
WINDOW_BYTES = 512 * MEBIBYTE
#: Requests of a window: what their prompts take is little.
WINDOW_REQUESTS = 16384
_NOTHING = Prompt("", ())
_NO_PRINTS = Fingerprints("", None)


@dataclass(frozen=True)
class Read(Generic[R]):
    """A request with its document as the model reads it.

    Attributes:
        request: the request.
        prompt: rendered prompt and images; without meaning if there is an error.
        prints: digests of prompt, answer to score and images.
        answer: the text to score; empty where an answer is generated.
        visual_tokens: about how many the images make.
        text_tokens: of prompt and answer.
        error: why the document cannot be read.
    """

    request: R
    prompt: Prompt = _NOTHING
    prints: Fingerprints = _NO_PRINTS
    answer: str = ""
    visual_tokens: int = 0
    text_tokens: int = 0
    error: Exception | None = None

    @property
    def length(self) -> int:
        """About how many tokens the prompt has; among questions about one image, exactly how many more or fewer."""
        return self.visual_tokens + self.text_tokens


def windows(
    requests: Sequence[R], read: Callable[[R], Read[R]], workers: int, limit: int = WINDOW_BYTES
) -> Iterator[list[Read[R]]]:
    """Read requests, in order, a window at a time; equal images of a window are one object.

    Args:
        requests: what to read.
        read: called in worker threads; what it raises becomes the ``error`` of its request.
        workers: number of threads; with 0 nothing is read before it is asked for.
        limit: bytes of pixels at which a window ends.
    """
    reading = _windows(requests, read, workers, limit)
    if not workers:
        yield from reading
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prepare-window") as pool:
        try:
            future = pool.submit(next, reading, None)
            while (window := future.result()) is not None:
                future = pool.submit(next, reading, None)
                yield window
        finally:
            future.cancel()
            pool.shutdown(wait=True)
            reading.close()


def _windows(requests: Sequence[R], read: Callable[[R], Read[R]], workers: int, limit: int) -> Iterator[list[Read[R]]]:
    def safely(request: R) -> Read[R]:
        try:
            return read(request)
        except Exception as error:
            return Read(request, error=error)

    window: list[Read[R]] = []
    images: dict[str, Any] = {}
    held = 0
    for _, result in Ahead(safely, workers)(requests):
        one = result()
        shared = []
        for digest, image in zip(one.prints.images, one.prompt.images, strict=True):
            if digest not in images:
                images[digest] = image
                held += 3 * image.width * image.height
            shared.append(images[digest])
        window.append(replace(one, prompt=replace(one.prompt, images=tuple(shared))))
        if held >= limit or len(window) >= WINDOW_REQUESTS:
            yield window
            window, images, held = [], {}, 0
    if window:
        yield window


def in_order(window: Sequence[Read[R]], *, by_image: bool, batched: bool) -> list[list[Read[R]]]:
    """Return the requests of a window in groups that may share batches, each in the order in which it is answered.

    Args:
        window: requests that have been read.
        by_image: put requests about the same images next to each other, those with images apart from those without.
        batched: whether batches have more than one row, and should be of similar length.
    """
    groups: dict[tuple[str, bool], list[Read[R]]] = {}
    for one in window:
        apart = by_image and batched and bool(one.prompt.images)
        groups.setdefault((one.request.group, apart), []).append(one)
    return [_by_image(group, batched) if by_image else _by_length(group, batched) for group in groups.values()]


def _by_length(group: list[Read[R]], batched: bool) -> list[Read[R]]:
    return sorted(group, key=lambda one: -one.length) if batched else group


def _by_image(group: list[Read[R]], batched: bool) -> list[Read[R]]:
    images: dict[tuple[str, ...] | int, list[Read[R]]] = {}
    for one in group:
        images.setdefault(one.prints.images or one.request.index, []).append(one)
    together = [_by_length(same, batched) for same in images.values()]
    if batched:
        together.sort(key=lambda same: -same[0].length)
    return [one for same in together for one in same]


def batches(ordered: Sequence[Read[R]], size: Callable[[], int]) -> Iterator[list[Read[R]]]:
    """Cut requests into batches of what ``size`` says when each is asked for; what cannot be read is on its own."""
    batch: list[Read[R]] = []
    for one in ordered:
        if one.error is not None:
            yield [one]
            continue
        batch.append(one)
        if len(batch) >= size():
            yield batch
            batch = []
    if batch:
        yield batch
