"""Diagnostics of single images: the inverse participation ratio that LoFi's method logs of every sample."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.token_reduction import FastV, LoFi, Random, RowTokens
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import Compressed
from lmms_eval_stability.model_wrappers.token_reduction.lofi import inverse_participation_ratio, leverage
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView
from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import run
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.test_batches import RAGGED


def ratio_of(features: Tensor) -> float:
    """Return the same by numpy's singular value decomposition."""
    values = np.linalg.svd(features.detach().double().numpy(), compute_uv=False) ** 2
    return float(((values / values.sum()) ** 2).sum())


@pytest.mark.parametrize("shape", [(576, 128), (64, 300), (50, 50), (1, 9), (9, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_ratio_is_that_of_the_singular_values(shape: tuple[int, int], scale: float):
    features = scale * torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) ** 3
    assert inverse_participation_ratio(features) == pytest.approx(ratio_of(features), rel=1e-5)
    half = features.bfloat16()
    assert inverse_participation_ratio(half) == pytest.approx(ratio_of(half.float()), rel=1e-5)


def test_one_over_the_ratio_is_an_effective_rank():
    features = torch.zeros(20, 8)
    features[:5, :5] = 3 * torch.eye(5)
    assert 1 / inverse_participation_ratio(features) == pytest.approx(5)
    assert math.isnan(inverse_participation_ratio(torch.zeros(4, 3)))


def projected(tiny: Tiny, inputs: dict[str, Any], image: int) -> Tensor:
    """Return what the language model sees of one image of LLaVA-1.5 (N, d)."""
    with torch.no_grad():
        hidden = tiny.model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        return tiny.model.model.multi_modal_projector(hidden[:, 1:])[image]


def test_each_image_of_each_row_has_its_numbers(llava: Tiny):
    inputs = llava.inputs(*RAGGED)
    with LoFi(rank=4).attach(llava.model, llava.family) as session:
        llava.generate(inputs)
    assert [len(row.diagnostics.get("ipr_full", ())) for row in session.rows] == [1, 0, 2, 1]
    image = 0
    for row in session.rows:
        assert set(row.diagnostics) in ({"ipr_full", "ipr_kept"}, set())
        for full, kept in zip(*(row.diagnostics.get(name, ()) for name in ("ipr_full", "ipr_kept")), strict=True):
            features = projected(llava, inputs, image)
            best = leverage(features, 4).topk(round(len(features) / 3)).indices
            assert full == pytest.approx(ratio_of(features), rel=1e-4)
            assert kept == pytest.approx(ratio_of(features[best]), rel=1e-4)
            image += 1
    assert image == 4


@pytest.mark.parametrize(("feature", "same"), [("vision", False), ("projected", True)])
def test_the_ratio_is_that_of_the_features_that_rank(llava: Tiny, feature: str, same: bool):
    inputs = llava.one()
    with LoFi(rank=4, feature=feature).attach(llava.model, llava.family) as session:
        llava.logits(inputs)
    (full,) = session.rows[0].diagnostics["ipr_full"]
    assert (full == pytest.approx(ratio_of(projected(llava, inputs, 0)), rel=1e-4)) is same


def test_newlines_do_not_count(load: Any):
    tiny: Tiny = load("llava_next")
    inputs = tiny.one(56, 112)
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    with torch.no_grad():
        features = tiny.model.get_image_features(**{k: inputs[k] for k in ("pixel_values", "image_sizes")})
    patches = features.pooler_output[0][layout.source >= 0]
    assert len(patches) < layout.tokens
    with LoFi(rank=4).attach(tiny.model, tiny.family) as session:
        tiny.logits(inputs)
    assert session.rows[0].diagnostics["ipr_full"] == (pytest.approx(ratio_of(patches), rel=1e-4),)


def test_an_image_left_as_it_is_has_none(load: Any):
    tiny: Tiny = load("qwen2_vl")
    inputs = tiny.inputs((QUESTION, [(112, 112), (224, 168)]))
    small, large = (layout.tokens for layout in tiny.family.image_layouts(tiny.model, inputs))
    assert small < large
    with LoFi(tokens=small, rank=4, literal=True).attach(tiny.model, tiny.family) as session:
        tiny.logits(inputs)
    for numbers in session.rows[0].diagnostics.values():
        assert numbers[0] is None
        assert numbers[1] is not None
        assert 0 < numbers[1] <= 1


def test_what_is_no_number_is_none(llava: Tiny):
    class Odd(Random):
        def compress(self, image: ImageView) -> Compressed | None:
            kept = torch.arange(3)
            return Compressed(image.tokens[kept], kept, diagnostics={"a": math.nan, "b": math.inf, "c": 2.0})

    with Odd().attach(llava.model, llava.family) as session:
        llava.logits(llava.one())
    assert session.rows[0].diagnostics == {"a": (None,), "b": (None,), "c": (2.0,)}


def test_other_methods_have_none_and_numbers_do_not_make_rows_differ(llava: Tiny):
    for method in (FastV(), Random()):
        with method.attach(llava.model, llava.family) as session:
            llava.logits(llava.one())
        assert session.rows[0].diagnostics == {}
    assert RowTokens((0,), (5,), {"a": (1.0,)}) == RowTokens((0,), (5,), {"a": (1.5,)})


def test_they_are_logged_with_every_answer(tiny_folder: Callable[[str], str]):
    docs = documents(14)  # with one image, two, or none
    model = models.LlavaLofi(pretrained=tiny_folder("llava"), device="cpu", rank=4, batch_size=4)
    for document, result in zip(docs, run(model, docs), strict=True):
        logged = json.loads(json.dumps(result.token_counts.to_dict()))
        if not document["images"]:
            assert "diagnostics" not in logged
            continue
        assert list(logged["diagnostics"]) == ["ipr_full", "ipr_kept"]
        for numbers in logged["diagnostics"].values():
            assert len(numbers) == len(document["images"])
            assert all(1 / 16 <= number <= 1 for number in numbers)
    baseline = models.LlavaBaseline(pretrained=tiny_folder("llava"), device="cpu")
    assert all("diagnostics" not in result.token_counts.to_dict() for result in run(baseline, docs[:3]))
