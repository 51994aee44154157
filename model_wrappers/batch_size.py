"""How many rows a batch has, and what happens when they do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from loguru import logger

from lmms_eval_stability.model_wrappers.errors import AnswerError
from lmms_eval_stability.model_wrappers.geometry import decoder_geometry
from lmms_eval_stability.model_wrappers.reading import R, Read

T = TypeVar("T")

#: Rows of an automatic batch where memory says nothing: on a CPU larger ones are hardly faster.
ON_CPU = 8
MOST = 64
_SHARE_OF_FREE_MEMORY = 0.6


class BatchSize:
    """Rows of a batch.

    Attributes:
        asked: what the user asked for: a number, or ``auto``.
        most: the largest number that an automatic size may reach.
        rows: rows of a batch now; 0 while an automatic size is not chosen yet.
    """

    def __init__(self, asked: int | str, most: int | None = None) -> None:
        self.asked = asked
        self.most = most or MOST
        self.rows = 0 if isinstance(asked, str) else asked

    def choose(self, model: Any, device: torch.device, tokens: int) -> None:
        """Choose an automatic size, once, for prompts of about ``tokens`` tokens."""
        if self.rows:
            return
        rows = ON_CPU if device.type != "cuda" else rows_that_fit(model, torch.cuda.mem_get_info(device)[0], tokens)
        self.rows = max(1, min(rows, self.most))
        logger.info(f"batch_size=auto: {self.rows} rows, for prompts of about {tokens} tokens")

    def shrink(self, failed: int) -> None:
        """Note that ``failed`` rows do not fit: from now on batches have at most half of them."""
        self.rows = max(1, min(self.rows or failed, failed // 2))


def rows_that_fit(model: Any, free: int, tokens: int) -> int:
    """Return a power of two of rows that should fit into ``free`` bytes.

    Per token of a row: keys and values of all layers twice (a growing cache is copied), and the widest activations of
    one layer. An estimate to start from: what does not fit is answered in smaller batches.
    """
    sizes = decoder_geometry(model)
    element = sizes["bytes_per_element"]
    cache = 2 * 2 * sizes["layers"] * sizes["kv_heads"] * sizes["head_dim"] * element
    activations = (8 * sizes["hidden"] + 4 * sizes["intermediate"]) * element
    rows = int(_SHARE_OF_FREE_MEMORY * free / (max(tokens, 1) * (cache + activations)))
    return int(2 ** (max(rows, 1).bit_length() - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the device's memory is full."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def answer_batch(
    batch: Sequence[Read[R]],
    answer: Callable[[Sequence[Read[R]]], list[T]],
    failed: Callable[[R, Exception], T],
    size: BatchSize,
) -> list[T]:
    """Answer one batch, in smaller ones if it does not fit; if it fails, find the request that cannot be answered.

    Args:
        batch: at least one request.
        answer: answers some requests together.
        failed: what to return for a request that cannot be answered alone; may raise.
        size: the limit that batches have now; lowered for the rest of the run when memory is full.

    Raises:
        AnswerError: the batch fails, not for want of memory, though each of its requests can be answered alone.
    """
    if len(batch) > size.rows:
        parts = [batch[start : start + size.rows] for start in range(0, len(batch), size.rows)]
        return [one for part in parts for one in answer_batch(part, answer, failed, size)]
    try:
        return answer(batch)
    except Exception as error:
        if len(batch) == 1:
            return [failed(batch[0].request, error)]
        full, reason = is_out_of_memory(error), f"{type(error).__name__}: {error}"
    # Outside the handler, whose traceback holds on to the failed batch's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if full:
        size.shrink(len(batch))
        logger.warning(f"{len(batch)} documents at once do not fit into memory; from now on at most {size.rows}")
        return answer_batch(batch, answer, failed, size)
    logger.warning(f"a batch of {len(batch)} documents failed ({reason}); answering them one by one")
    failures: list[R] = []

    def note(request: R, error: Exception) -> T:
        failures.append(request)
        return failed(request, error)

    alone = [answer_batch([one], answer, note, size)[0] for one in batch]
    if failures:
        return alone
    raise AnswerError(
        f"a batch of {len(batch)} documents ({batch[0].request.name} and others) failed, though each can be answered"
        f" alone: {reason}. Lower --batch_size"
    )
