"""Counts of tokens and layers of dropping, in models with the depth and image tokens of the real ones."""

from __future__ import annotations

import pytest
import torch

from lmms_eval_stability.model_wrappers.families import LlavaNext
from lmms_eval_stability.model_wrappers.token_reduction import FastV, PyramidDrop, SparseVLM
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from tests.model_wrappers.token_reduction.conftest import Tiny
from tests.model_wrappers.token_reduction.real_geometry import build_real_geometry

#: (height, width) -> tiles, packed tokens with and without newlines.
IMAGES = {
    (672, 672): ((2, 2), 2928, 2880),
    (480, 640): ((2, 2), 2340, 2304),
    (640, 480): ((2, 2), 2352, 2304),
    (427, 640): ((2, 2), 2144, 2112),
    (333, 500): ((1, 2), 1464, 1440),
    (336, 672): ((1, 2), 1752, 1728),
    (672, 336): ((2, 1), 1776, 1728),
    (900, 300): ((3, 1), 2376, 2304),
    (300, 900): ((1, 3), 2328, 2304),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return {kind: build_real_geometry(kind, tmp_path_factory.mktemp(kind)) for kind in ("llava", "llava_next")}


@pytest.mark.parametrize("size", IMAGES)
def test_counts_of_llava_next_images(real: dict[str, Tiny], size: tuple[int, int]):
    tiles, packed, patches = IMAGES[size]
    tiny = real["llava_next"]
    layout = LlavaNext().layout(tiny.model, list(size))
    assert (layout.tiles, layout.tokens, int((layout.source >= 0).sum())) == (tiles, packed, patches)
    assert int(tiny.visual(tiny.one(size[1], size[0])).sum()) == packed


@pytest.mark.parametrize(
    ("kind", "size", "counts"), [("llava", (640, 480), (576, 288)), ("llava_next", (672, 672), (2928, 1464))]
)
def test_counts_of_fastv(real: dict[str, Tiny], kind: str, size: tuple[int, int], counts: tuple[int, int]):
    tiny = real[kind]
    inputs = tiny.one(*size)
    text = inputs["input_ids"].shape[1] - counts[0]
    with FastV().attach(tiny.model, tiny.family) as session, torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    assert (session.rows[0].layers, session.rows[0].visual_tokens) == ((0, 3), counts)
    assert [layer.keys.shape[2] - text for layer in cache.layers] == [counts[0]] * 3 + [counts[1]] * 29


@pytest.mark.parametrize(
    ("method", "given", "depths"),
    [
        (PyramidDrop(), PyramidDrop(layers="8-16-24"), {32: [8, 16, 24], 40: [10, 20, 30], 28: [7, 14, 21]}),
        (SparseVLM(), SparseVLM(layers="2-6-15"), {32: [3, 7, 16], 40: [4, 9, 20], 28: [3, 6, 14]}),
        (FastV(), FastV(k=3), {32: [3], 40: [3], 28: [3]}),  # an absolute layer, in the paper and its code
    ],
)
def test_default_layers_scale_to_the_depth(method: InsideLLM, given: InsideLLM, depths: dict[int, list[int]]):
    for depth, layers in depths.items():
        assert [stage.layer for stage in method.stages(depth)] == layers
        assert [stage.layer for stage in given.stages(depth)] == depths[32]
