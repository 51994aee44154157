"""The downsampling control: the size of the smaller image, its pixels, and that the base model itself answers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessor

from lmms_eval_stability.model_wrappers.token_reduction.downsample import Downsample
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedModelError
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE
from tests.tiny_models import picture

QWEN = ("qwen2_vl", "qwen2_5_vl")


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [(24, 24, (13, 14)), (36, 16, (21, 9)), (4, 6, (2, 4)), (1, 30, (1, 10)), (40, 1, (13, 1)), (1, 1, (1, 1))],
)
def test_sizes(rows: int, columns: int, size: tuple[int, int]):
    height, width = Downsample().size(rows, columns)
    assert sorted((height, width)) == sorted(size)
    assert height * width <= max(1, round(rows * columns / 3))


def test_sizes_keep_to_the_budget_and_nearly_use_it():
    for tokens in (20, 100, 192, 400, 575):
        for rows in range(1, 40):
            for columns in range(1, 40):
                height, width = Downsample(tokens=tokens).size(rows, columns)
                budget = max(1, round(rows * columns * tokens / 576))
                assert 1 <= height <= rows
                assert 1 <= width <= columns
                assert height * width <= budget
                if min(rows, columns) >= 10 and tokens >= 100:
                    assert height * width > 0.75 * budget
    assert Downsample(tokens=10, literal=True).size(3, 3) == (3, 3)
    assert Downsample(tokens=4, literal=True).size(30, 30) == (2, 2)


def pixels_of(width: int, height: int) -> dict[str, Tensor]:
    """Return a smooth picture of exactly this size as the processor cuts it."""
    image = picture(3, 6, 6).resize((width, height), 3)
    size = {"shortest_edge": 28 * 28, "longest_edge": 10**7}
    return dict(Qwen2VLImageProcessor(size=size)(images=[image], return_tensors="pt"))


def test_resized_patches_are_those_of_the_resized_picture(load: Any):
    tiny: Tiny = load("qwen2_vl")
    large, small = pixels_of(336, 224), pixels_of(168, 112)
    assert small["image_grid_thw"].tolist() == [[1, 8, 12]]
    made = tiny.family.resize_images(tiny.model, large, [(1, 8, 12)])
    assert torch.equal(made["image_grid_thw"], small["image_grid_thw"])
    assert made["pixel_values"].shape == small["pixel_values"].shape
    assert (made["pixel_values"] - small["pixel_values"]).abs().mean() < 0.05  # of values between about -2 and 2
    same = tiny.family.resize_images(tiny.model, large, [(1, 16, 24)])
    assert torch.equal(same["pixel_values"], large["pixel_values"])


@pytest.mark.parametrize("kind", QWEN)
@pytest.mark.parametrize("use_cache", [True, False])
def test_answers_are_the_base_models_on_the_smaller_images(load: Any, kind: str, use_cache: bool):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(224, 168), (112, 140)]))
    method = Downsample()
    with method.attach(tiny.model, tiny.family) as session:
        answers = tiny.generate_raw(inputs, use_cache=use_cache)
        logits = tiny.logits(inputs)
    smaller = {**inputs, **method.smaller_images(tiny.model, tiny.family, inputs)}
    counts = [layout.tokens for layout in tiny.family.image_layouts(tiny.model, smaller)]
    full = [layout.tokens for layout in tiny.family.image_layouts(tiny.model, inputs)]
    stays = ~tiny.visual(inputs)[0]
    for image, count in zip((~stays).nonzero().squeeze(1).split(full), counts, strict=True):
        stays[image[:count]] = True
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in smaller:
            smaller[name] = smaller[name][:, stays]
    base = tiny.generate_raw(smaller, use_cache=use_cache)
    assert session.rows[0].visual_tokens == (sum(full), sum(counts))
    assert all(count <= round(n / 3) for count, n in zip(counts, full, strict=True))
    length = inputs["input_ids"].shape[1]
    assert torch.equal(answers.sequences[:, length:], base.sequences[:, smaller["input_ids"].shape[1] :])
    for one, other in zip(answers.logits, base.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    torch.testing.assert_close(logits[:, stays], tiny.logits(smaller), **CLOSE)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_models_that_scale_images_themselves_are_refused(load: Any, kind: str):
    tiny: Tiny = load(kind)
    match = "scales images to sizes of its own"
    with pytest.raises(UnsupportedModelError, match=match), Downsample().attach(tiny.model, tiny.family):
        pass


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"tokens": 0}, "tokens must be"),
        ({"tokens": 577}, "more than the 576"),
        ({"tokens": True}, "tokens must be"),
        ({"literal": 1}, "literal must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        Downsample(**parameters)


def test_defaults():
    assert Downsample() == Downsample(tokens=192, literal=False)
