"""A batch of prompts whose images have fewer tokens: what takes the place of the model's inputs, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept

#: Inputs that have one entry per token of the prompt, beside ``input_ids`` and ``attention_mask``.
_PER_TOKEN = ("mm_token_type_ids", "token_type_ids")


@dataclass
class ShortPrompt:
    """A batch of prompts after the method."""

    inputs: dict[str, Any]  # what replaces the caller's
    kept: Kept
    images: list[int]  # images of each row
    output: Any  # what get_image_features returns, with shortened features; None: the model encodes smaller images
    positions: Tensor | None = None  # Qwen: (3, B, L') of the kept tokens in the full prompt
    next_position: Tensor | None = None  # Qwen: (B,) of the first generated token
    deltas: Tensor | None = None  # Qwen: (B, 1) what transformers adds to a count of tokens to get that
    cache: Any = None  # weak reference to the cache that a plain forward pass filled


def images_per_row(tokens: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return how many images each row has: placeholders per row, and per image, in order."""
    counts, image = [], 0
    for total in tokens:
        start, found = image, 0
        while found < total and image < len(sizes):
            found += sizes[image]
            image += 1
        if found != total:
            break
        counts.append(image - start)
    if len(counts) < len(tokens) or image < len(sizes):
        raise UnsupportedCallError(
            f"the images make {list(sizes)} visual tokens, but the prompts have {list(tokens)} placeholders"
        )
    return counts


def gathered(given: dict[str, Any], kept: Kept, slots: Tensor) -> dict[str, Any]:
    """Return the inputs that have one entry per token, shortened."""
    ids = given["input_ids"]
    changed: dict[str, Any] = {"input_ids": ids.gather(1, slots)}
    mask = torch.ones_like(slots) if kept.valid is None else kept.valid
    changed["attention_mask"] = mask.to(torch.long)
    if kept.valid is not None and given.get("attention_mask") is not None:
        # A padding slot may name the column of a dropped placeholder, which would be counted as one.
        pad = ids.masked_select(~given["attention_mask"].bool())
        changed["input_ids"] = changed["input_ids"].masked_fill(~kept.valid, int(pad[0]) if len(pad) else 0)
    elif kept.valid is not None:
        changed["input_ids"] = changed["input_ids"].masked_fill(~kept.valid, 0)
    for name in _PER_TOKEN:
        if given.get(name) is not None:
            values = given[name].gather(1, slots)
            changed[name] = values if kept.valid is None else values.masked_fill(~kept.valid, 0)
    return changed


def per_beam(short: ShortPrompt, rows: int | None) -> list[Tensor]:
    """Return the features, each prompt's as often as it has rows in the running pass."""
    times = 1 if rows is None else rows // len(short.images)
    features: list[Tensor] = []
    start = 0
    for count in short.images:
        features += list(short.output.pooler_output[start : start + count]) * times
        start += count
    return features


def positions_of(short: ShortPrompt, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return positions (3, rows, length) of prompts and what was generated after them, and the deltas (rows, 1)."""
    assert short.positions is not None
    assert short.next_position is not None
    assert short.deltas is not None
    more = torch.arange(length - short.positions.shape[2], device=short.positions.device)
    after = (short.next_position[:, None] + more).expand(3, -1, -1)
    times = rows // short.positions.shape[1]
    positions = torch.cat([short.positions, after], dim=2)
    return positions.repeat_interleave(times, dim=1), short.deltas.repeat_interleave(times, dim=0)


def with_prompt(result: Any, input_ids: Tensor, shortened: int) -> Any:
    """Put the caller's prompt before the answers: sequences (rows, L' + n) -> (rows, L + n)."""
    sequences = result if isinstance(result, Tensor) else result.sequences
    prompts = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    full = torch.cat([prompts, sequences[:, shortened:]], dim=1)
    if isinstance(result, Tensor):
        return full
    result.sequences = full
    return result
