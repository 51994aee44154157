"""Where a prompt ends and an answer begins, in tokens."""

from __future__ import annotations

import itertools
import string
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.scoring import answer_ids, append_answers
from tests import tiny_models

CORPUS = ["ASSISTANT: yes", "What color is red", "yes no yes no red :) ::", "x ☺ y"] * 3


def llama_legacy() -> PreTrainedTokenizerFast:
    """As LLaVA-1.5's: a space goes before every text, and before what follows a special token; merges cross spaces."""
    core = Tokenizer(token_models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    letters = [*string.printable, "☺", "é", "▁"]
    specials = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=200, special_tokens=specials, initial_alphabet=letters, show_progress=False),
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "llava": tiny_models._llama_style_tokenizer(),
    "qwen": tiny_models._qwen_tokenizer(),
    "llama_legacy": llama_legacy(),
}
PROMPTS = (
    "USER: What? ASSISTANT:",
    "USER: \nWhat color",
    "user\nIs it red?\nassistant\n",
    "What colo",
    "[/INST]",
    "",
)
ANSWERS = (" yes", "yes", "r is red", "\n\nyes", " ", "  two spaces", ":)", "☺", "é", "A", " A", "no, the left", "S")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_prompts_tokens_stay_and_the_text_is_prompt_and_answer(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for prompt, answer in itertools.product(PROMPTS, ANSWERS):
        start = tokenizer(prompt)["input_ids"]
        ids = answer_ids(tokenizer, prompt, answer, ())
        assert ids
        assert tokenizer.decode(start + ids, skip_special_tokens=True) == prompt + answer, (prompt, answer)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_does_not_merge_is_tokenised_as_one_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    merged = 0
    for prompt, answer in itertools.product(PROMPTS, ANSWERS):
        start, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + answer)["input_ids"]
        if whole[: len(start)] == start:
            assert start + answer_ids(tokenizer, prompt, answer, ()) == whole
        else:
            merged += 1
    assert merged  # so the other way is tested above, too


class Merging:
    """A tokenizer that takes every text for one token."""

    eos_token = "</s>"

    def __call__(self, text: str) -> dict[str, Any]:
        return {"input_ids": [len(text)]}


def test_a_tokenizer_that_always_merges_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="' yes' cannot be tokenised apart"):
        answer_ids(Merging(), "What?", " yes", ())


@pytest.mark.parametrize(("answer", "message"), [("", "no tokens to score"), (" an <image>", "an image placeholder")])
def test_answers_without_tokens_or_with_placeholders_are_refused(answer: str, message: str) -> None:
    tokenizer = TOKENIZERS["llava"]
    with pytest.raises(UnsupportedInputError, match=message):
        answer_ids(tokenizer, "What?", answer, (tokenizer.convert_tokens_to_ids("<image>"),))


def test_rows_end_with_their_answers_and_begin_with_padding() -> None:
    pixels = torch.ones(3, 4)
    inputs = {
        "input_ids": torch.tensor([[9, 9, 1, 2], [3, 4, 5, 6]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "mm_token_type_ids": torch.tensor([[0, 0, 1, 0], [0, 1, 1, 0]]),
        "pixel_values": pixels,
    }
    whole = append_answers(inputs, [[7], [8, 10, 11]], pad=9)
    assert whole["input_ids"].tolist() == [[9, 9, 9, 9, 1, 2, 7], [3, 4, 5, 6, 8, 10, 11]]
    assert whole["attention_mask"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [1] * 7]
    assert whole["mm_token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0]]
    assert whole["pixel_values"] is pixels
    assert inputs["input_ids"].shape == (2, 4)
