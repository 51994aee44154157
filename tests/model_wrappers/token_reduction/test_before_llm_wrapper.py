"""Methods before the language model, as lmms-eval runs them: answers and logged counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.registry import FAMILIES
from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import run, texts
from tests.tiny_models import KINDS

TinyFolder = Callable[[str], str]
METHODS: dict[str, dict[str, Any]] = {
    "Random": {"tokens": 200},
    "Visionzip": {"dominant": 150, "contextual": 60},
    "Hired": {"budget": 0.3},
    "Lofi": {"rank": 4},
    "Downsample": {"tokens": 250},
}
CASES = [(kind, name) for name in METHODS for kind in KINDS if name != "Downsample" or "qwen" in kind]


def make(kind: str, name: str, folder: str, **arguments: Any) -> Any:
    prefix = next(key for key, entry in FAMILIES.items() if kind in entry.model_types)
    cls = getattr(models, "".join(part.capitalize() for part in prefix.split("_")) + name)
    pixels = {} if kind.startswith("llava") else {"min_pixels": 3136, "max_pixels": 12544}
    return cls(pretrained=folder, device="cpu", **pixels, **arguments)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_batches_answer_what_single_documents_answer(kind: str, name: str, tiny_folder: TinyFolder) -> None:
    docs, folder, parameters = documents(14), tiny_folder(kind), METHODS[name]
    base = run(make(kind, "Baseline", folder), docs)
    alone = run(make(kind, name, folder, **parameters), docs)
    together = run(make(kind, name, folder, batch_size=4, **parameters), docs)
    assert texts(together) == texts(alone) != texts(base)
    for plain, one, batched in zip(base, alone, together, strict=True):
        counts = one.token_counts
        assert counts.visual_tokens == batched.token_counts.visual_tokens
        assert counts.visual_token_layers == [0, 0]
        (before,) = plain.token_counts.visual_tokens
        assert counts.visual_tokens[0] == before
        assert counts.visual_tokens[1] < before or before == 0
        assert counts.input_tokens == plain.token_counts.input_tokens  # of the prompt as the task wrote it
        assert counts.input_fingerprint == plain.token_counts.input_fingerprint
        assert counts.answer_logprob == pytest.approx(batched.token_counts.answer_logprob, abs=1e-3)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_half_precision_runs(kind: str, name: str, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(4) if doc["images"]]
    model = make(kind, name, tiny_folder(kind), dtype="bfloat16", batch_size=4, **METHODS[name])
    for result in run(model, docs):
        before, after = result.token_counts.visual_tokens
        assert 0 < after < before
