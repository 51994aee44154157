"""Placeholders repeated in the ids, against the tokenizer's ids of the text that repeats them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.families.placeholders import tokenize

TEXTS = [
    "USER: <image>\nWhat is it? ASSISTANT:",
    "USER: <image> and  <image>and<image>\n\nWhich? ASSISTANT:",
    "No image here.",
    "<image>",
]
COUNTS = [[5], [3, 1, 7], [], [2]]


def processor(prepend: str, **flags: bool) -> Any:
    """A tokenizer of single characters that marks the beginnings of words, as Llama's do, with a begin token."""
    characters = sorted(set("".join(TEXTS)) | {"▁"})
    vocabulary = {"<unk>": 0, "<s>": 1, "<pad>": 2} | {one: 3 + i for i, one in enumerate(characters)}
    own = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    if prepend == "normalizer":  # how converted SentencePiece models do it
        own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    own.decoder = decoders.Metaspace()
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", pad_token="<pad>")
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False, **flags)])
    return SimpleNamespace(
        tokenizer=tokenizer, image_token="<image>", image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}], ids=str)
@pytest.mark.parametrize("prepend", ["first", "always", "never", "normalizer"])
def test_ids_are_those_of_the_text_that_repeats_placeholders(prepend: str, flags: dict[str, bool]) -> None:
    own = processor(prepend, **flags)
    texts = []
    for text, counts in zip(TEXTS, COUNTS, strict=True):
        parts = text.split("<image>")
        texts.append("".join(p + "<image>" * n for p, n in zip(parts, counts, strict=False)) + parts[-1])
    expected = own.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    made = tokenize(own, TEXTS, COUNTS)
    assert sorted(made) == sorted(expected)
    assert all(torch.equal(made[name], expected[name]) for name in expected)
    assert (made["input_ids"] == own.image_token_id).sum(1).tolist() == [sum(counts) for counts in COUNTS]


def test_placeholders_without_images_are_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="holds 1 image placeholders for 2 images"):
        tokenize(processor("first"), TEXTS[:1], [[5, 6]])
