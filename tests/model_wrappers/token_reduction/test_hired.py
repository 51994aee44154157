"""HiRED: budgets of tiles, and the counts of the real geometries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.hired import HiRED
from lmms_eval_stability.model_wrappers.token_reduction.vision import encode_images
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.real_geometry import build_real_geometry
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE


def patches(*where: tuple[int, int], side: int = 24) -> Tensor:
    """Return scores (side * side,) that are highest in rectangles given by their (row, column) of a 2 x 2 grid."""
    scores = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    half = side // 2
    for row, column in where:
        scores[row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
    return scores.flatten()


def test_a_tile_counts_its_own_rectangle():
    for row in range(2):
        for column in range(2):
            scores = patches((row, column))
            shown = HiRED(alpha=0.75).contents(scores, (2, 2))  # a quarter of the patches
            assert shown == [144 if tile == 2 * row + column else 0 for tile in range(4)]
    left = patches((0, 0), (1, 0))
    assert HiRED().contents(left, (1, 2)) == [288, 0]
    assert HiRED(official_quirks=True).contents(left, (1, 2)) == [144, 144]  # top and bottom
    assert HiRED().contents(patches((0, 0), (0, 1)), (2, 1)) == [288, 0]
    assert sum(HiRED().contents(left, (3, 1))) == sum(HiRED().contents(left, (1, 3))) == 288
    assert sum(HiRED().contents(patches(side=4), (3, 1))) == 8  # rows that do not divide evenly


def test_the_budget_is_shared_between_image_and_tiles():
    last = torch.rand(5, 576, generator=torch.Generator().manual_seed(1))
    masks = HiRED().select_tiles(patches((0, 1)), last, (2, 2))
    counts = masks.sum(dim=1).tolist()
    assert counts[0] == 288
    assert counts[2] == max(counts[1:])
    assert 285 <= sum(counts[1:]) <= 288
    assert HiRED(budget=0.4).select_tiles(patches(), last, (2, 2))[0].all()  # 1152 * 0.5 is all of the image
    assert HiRED(alpha=0).select_tiles(patches(), last, (2, 2))[0].sum() == 0
    for partition, mask in zip(last, masks, strict=True):
        assert partition[mask].min() >= partition[~mask].max()


def test_strips_that_do_not_divide_are_refused():
    with pytest.raises(UnsupportedCallError, match="16 patches into 3 equal strips"):
        HiRED(official_quirks=True).contents(patches(side=4), (3, 1))


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_attention_is_that_of_the_named_layers(load: Any, kind: str):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(84, 140)]))
    layouts = tiny.family.image_layouts(tiny.model, inputs)
    wanted = HiRED().wanted(tiny.model, tiny.family)
    assert wanted.attention == ((1,) if kind == "llava" else (0, 1))
    _, (view,) = encode_images(tiny.model, tiny.family, inputs, layouts, wanted)
    tiny.model.set_attn_implementation("eager")
    try:
        pixels = view.pixels.view(-1, 3, 56, 56)
        with torch.no_grad():
            seen = tiny.model.model.vision_tower(pixels, output_attentions=True).attentions
    finally:
        tiny.model.set_attn_implementation("sdpa")
    for layer in wanted.attention:
        torch.testing.assert_close(view.importance(layer), seen[layer][:, :, 0, 1:].sum(dim=1), **CLOSE)


def test_only_chosen_patches_stay_and_no_newline(load: Any):
    tiny: Tiny = load("llava_next")
    inputs = tiny.inputs((QUESTION, [(84, 140)]))
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    method = HiRED(budget=0.5)
    wanted = method.wanted(tiny.model, tiny.family)
    _, (view,) = encode_images(tiny.model, tiny.family, inputs, [layout], wanted)
    made = method.compress(view)
    assert made is not None
    assert layout.tiles is not None
    assert (layout.source == -1).any()
    masks = method.select_tiles(view.importance(0)[0], view.importance(1), layout.tiles).flatten()
    chosen = set(masks.nonzero().squeeze(1).tolist())
    assert set(layout.source[made.kept].tolist()) == chosen & set(layout.source.tolist())
    assert torch.equal(made.features, view.tokens[made.kept])


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_keeps_the_most_attended_tokens(load: Any, kind: str):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(224, 168)]))
    layouts = tiny.family.image_layouts(tiny.model, inputs)
    wanted = HiRED().wanted(tiny.model, tiny.family)
    _, (view,) = encode_images(tiny.model, tiny.family, inputs, layouts, wanted)
    made = HiRED().compress(view)
    assert made is not None
    n = int(view.layout.tokens * 0.2)
    best = view.importance(wanted.attention[-1])[0].topk(n).indices.sort().values
    assert torch.equal(made.kept, best)
    assert torch.equal(made.features, view.tokens[best])


def test_counts_of_llava_1_5(tmp_path: Path):
    tiny = build_real_geometry("llava", tmp_path)
    for budget, kept in ((0.2, 115), (0.1, 57), (0.4, 230)):
        with HiRED(budget=budget).attach(tiny.model, tiny.family) as session:
            tiny.generate(tiny.one(640, 480), new=1)
        assert session.rows[0].visual_tokens == (576, kept)


@pytest.mark.parametrize(
    ("height", "width", "before", "budget", "whole"),
    [(672, 672, 2928, 576, 288), (333, 500, 1464, 345, 172), (900, 300, 2376, 460, 230), (300, 900, 2328, 460, 230)],
)
@pytest.mark.parametrize("official_quirks", [False, True])
def test_counts_of_llava_next(
    next_geometry: Tiny, height: int, width: int, before: int, budget: int, whole: int, official_quirks: bool
):
    inputs = next_geometry.one(width, height)
    with HiRED(official_quirks=official_quirks).attach(next_geometry.model, next_geometry.family) as session:
        next_geometry.logits(inputs, logits_to_keep=1)
    seen, kept = session.rows[0].visual_tokens
    assert seen == before
    assert whole <= kept <= budget  # less by what is padding and by rounding
    if (height, width) == (672, 672):
        assert kept >= budget - 3  # no padding


@pytest.fixture(scope="module")
def next_geometry(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_real_geometry("llava_next", tmp_path_factory.mktemp("next"))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"budget": 0}, "budget must be"),
        ({"budget": 1.1}, "budget must be"),
        ({"budget": True}, "budget must be"),
        ({"budget": float("nan")}, "budget must be"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"alpha": 1}, "alpha must be below 1"),
        ({"official_quirks": "no"}, "official_quirks must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        HiRED(**parameters)


def test_equal_scores_keep_the_first():
    assert HiRED().select(torch.ones(30), 10).tolist() == [True] * 10 + [False] * 20


def test_defaults_are_the_papers():
    assert HiRED() == HiRED(budget=0.2, alpha=0.5, official_quirks=False)
