"""Generation ends with the answers: no step after the last row has ended, none beyond ``max_new_tokens``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import BASELINES, make, run

TinyFolder = Callable[[str], str]


def steps_of(model: Any) -> list[int]:
    """Return a list that notes the rows of every pass that yields logits."""
    noted: list[int] = []
    model.model.lm_head.register_forward_hook(lambda _module, _args, output: noted.append(len(output)))
    return noted


@pytest.mark.parametrize("reuse", ["none", "vision", "prefix"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_new_tokens_is_respected_exactly(reuse: str, limit: int, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(5) if len(doc["images"]) == 1]
    model = make(BASELINES, "llava", tiny_folder("llava"), reuse=reuse, batch_size=8)
    noted = steps_of(model)
    results = run(model, docs, {"max_new_tokens": limit})
    assert {r.token_counts.output_tokens for r in results} == {limit}  # the tiny model does not end by itself
    assert noted.count(len(docs)) == limit


@pytest.mark.parametrize("reuse", ["vision", "prefix"])
def test_generation_ends_with_the_longest_answer(reuse: str, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(5) if len(doc["images"]) == 1]
    model = make(BASELINES, "llava", tiny_folder("llava"), reuse=reuse, batch_size=8)
    first = {r.token_counts.first_token_logprobs[0][0] for r in run(model, docs, {"max_new_tokens": 1})}
    # Every answer now ends as soon as it begins, as a word that the model says with its end does.
    tokens = model.tokenizer.convert_ids_to_tokens(sorted(first))
    for token in tokens:
        model.tokenizer.eos_token = token
        noted = steps_of(model)
        results = run(model, docs, {"max_new_tokens": 40})
        longest = max(r.token_counts.output_tokens for r in results)
        assert noted.count(len(docs)) == longest
        assert min(r.token_counts.output_tokens for r in results) == 1
        for hook in list(model.model.lm_head._forward_hooks):
            del model.model.lm_head._forward_hooks[hook]


def test_beam_search_shares_no_prefixes_and_is_answered(tiny_folder: TinyFolder) -> None:
    docs = documents(3)
    settings = {"max_new_tokens": 3, "num_beams": 2}
    plain = run(make(BASELINES, "llava", tiny_folder("llava"), reuse="none"), docs, settings)
    shared = run(make(BASELINES, "llava", tiny_folder("llava"), reuse="prefix"), docs, settings)
    assert [r.text for r in shared] == [r.text for r in plain]
