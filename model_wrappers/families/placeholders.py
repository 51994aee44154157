"""Token ids of prompts whose images are processed already: one placeholder is tokenised, and repeated in the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError


def tokenize(processor: Any, texts: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return what a processor makes of texts whose placeholders stand for so many visual tokens each.

    A processor repeats the placeholder in the text and lets the tokenizer find thousands of them; the ids are the same,
    as a special token is cut out before anything else is done with a text.

    Args:
        processor: has the tokenizer, and the placeholder as ``image_token`` and ``image_token_id``.
        texts: B prompts with one placeholder per image.
        counts: of each prompt, the visual tokens of each image.

    Returns:
        ``input_ids``, ``attention_mask`` and what else the tokenizer returns, (B, length), padded on the left.

    Raises:
        UnsupportedInputError: a prompt has more or fewer placeholders than images.
    """
    for text, own in zip(texts, counts, strict=True):
        if (found := text.count(processor.image_token)) != len(own):
            raise UnsupportedInputError(
                f"the prompt holds {found} image placeholders for {len(own)} images; the text of the document must not"
                f" contain '{processor.image_token}'"
            )
    tokenizer = processor.tokenizer
    made = tokenizer(list(texts))
    repeats = [_repeats(ids, processor.image_token_id, own) for ids, own in zip(made["input_ids"], counts, strict=True)]
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row).repeat_interleave(times) for row, times in zip(rows, repeats, strict=True)],
            batch_first=True,
            padding_value=fill.get(name, 0),
            padding_side="left",
        )
        for name, rows in made.items()
    }


def _repeats(ids: Sequence[int], placeholder: int, counts: Sequence[int]) -> Tensor:
    """Return how often each id of a prompt is to stand there."""
    times = torch.ones(len(ids), dtype=torch.long)
    times[torch.tensor(ids) == placeholder] = torch.tensor(counts, dtype=torch.long)
    return times
