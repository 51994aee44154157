"""PyramidDrop and SparseVLM as ``lmms-eval --model`` runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lmms_eval_stability.model_wrappers import models
from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import BASELINES, make, run, texts

PYRAMIDDROP = {
    "llava": models.LlavaPyramiddrop,
    "llava_next": models.LlavaPyramiddrop,
    "qwen2_vl": models.Qwen2VlPyramiddrop,
    "qwen2_5_vl": models.Qwen25VlPyramiddrop,
}
SPARSEVLM = {
    "llava": models.LlavaSparsevlm,
    "llava_next": models.LlavaSparsevlm,
    "qwen2_vl": models.Qwen2VlSparsevlm,
    "qwen2_5_vl": models.Qwen25VlSparsevlm,
}


@pytest.mark.parametrize("kind", list(BASELINES))
@pytest.mark.parametrize(
    ("classes", "layers"), [(PYRAMIDDROP, [0, 2, 4, 6]), (SPARSEVLM, [0, 2, 3, 5])], ids=["pyramiddrop", "sparsevlm"]
)
def test_batches_answer_what_single_documents_answer(
    kind: str, classes: dict[str, Any], layers: list[int], tiny_folder: Callable[[str], str]
) -> None:
    docs = documents(12)
    base = run(make(BASELINES, kind, tiny_folder(kind)), docs)
    alone = run(make(classes, kind, tiny_folder(kind)), docs)
    together = run(make(classes, kind, tiny_folder(kind), batch_size=4, use_cache=False), docs)
    assert texts(together) == texts(alone) != texts(base)
    for before, one, other in zip(base, alone, together, strict=True):
        counts = one.token_counts
        assert counts.visual_tokens[0] == before.token_counts.visual_tokens[0]
        assert counts.visual_tokens == sorted(counts.visual_tokens, reverse=True)
        assert counts.visual_token_layers == layers
        assert counts.visual_tokens == other.token_counts.visual_tokens


@pytest.mark.parametrize(
    ("cls", "arguments", "logged"),
    [
        (
            models.LlavaPyramiddrop,
            "layers=2-4,ratios=0.5-0.25",
            {"layers": "2-4", "ratios": "0.5-0.25", "renumber": True},
        ),
        (models.LlavaPyramiddrop, "layers=3,ratios=0.5", {"layers": "3", "ratios": "0.5", "renumber": True}),
        (
            models.LlavaSparsevlm,
            "layers=2-4,tokens=200-50",
            {"layers": "2-4", "tokens": "200-50", "literal": False, "rank_rule": False, "scale": 13.5},
        ),
    ],
)
def test_lists_arrive_from_lmms_evals_string(
    cls: Any, arguments: str, logged: dict[str, Any], tiny_folder: Callable[[str], str]
) -> None:
    model = cls.create_from_arg_string(f"pretrained={tiny_folder('llava')},device=cpu,{arguments}")
    (result,) = run(model, documents(1))
    assert json.loads(json.dumps(result.token_counts.run["method_args"])) == logged
