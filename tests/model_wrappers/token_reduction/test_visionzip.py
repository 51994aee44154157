"""VisionZip: an oracle on whole models, and the counts of the real geometries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.vision import Wanted, encode_images, received_attention
from lmms_eval_stability.model_wrappers.token_reduction.visionzip import VisionZip, merge
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.real_geometry import build_real_geometry
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE


def naive(attention: Tensor, hidden: Tensor, keys: Tensor, dominant: int, contextual: int) -> tuple[list[int], Tensor]:
    """One partition in plain loops: (1 + n,), (1 + n, d), (1 + n, d_head)."""
    order = sorted(range(1, len(hidden)), key=lambda j: -float(attention[j]))
    kept = [0, *sorted(order[: dominant - 1])]
    rest = [j for j in range(len(hidden)) if j not in kept]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for j in rest:
        if j not in targets:
            members[max(targets, key=lambda t: float(cosine_similarity(keys[j], keys[t], dim=0)))].append(j)
    merged = [hidden[t] + (hidden[members[t]].mean(dim=0) if members[t] else 0) for t in targets]
    return kept, torch.stack(merged)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_llava_sees_what_plain_loops_make(load: Any, kind: str):
    tiny: Tiny = load(kind)
    inputs, model = tiny.inputs((QUESTION, [(84, 140)])), tiny.model
    (layout,) = tiny.family.image_layouts(model, inputs)
    dominant, contextual = 4, 2
    model.set_attn_implementation("eager")
    keys: list[Tensor] = []
    layers = tiny.family.vision_layers(model)
    hook = layers[1].self_attn.k_proj.register_forward_hook(lambda _m, _a, out: keys.append(out))
    try:
        pixels = tiny.family.image_pixels(inputs, [layout])[0].view(layout.partitions, 3, 56, 56)
        with torch.no_grad():
            seen = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    finally:
        hook.remove()
        model.set_attn_implementation("sdpa")
    hidden = seen.hidden_states[-2]
    parts = [
        naive(
            seen.attentions[1][p, :, 0].sum(dim=0),
            hidden[p],
            keys[0][p].unflatten(-1, (2, -1)).mean(dim=1),
            dominant,
            contextual,
        )
        for p in range(layout.partitions)
    ]
    tokens = [*hidden[0, parts[0][0]], *parts[0][1]]
    if layout.tiles is not None:
        rows, columns = layout.tiles
        for y in range(rows * 4):
            for x in range(columns * 4):
                tile, patch = 1 + (y // 4) * columns + x // 4, 1 + (y % 4) * 4 + x % 4
                if patch in parts[tile][0]:
                    tokens.append(hidden[tile, patch])
        tokens += [hidden[tile, 0] for tile in range(1, layout.partitions)]
        tokens += [token for _, merged in parts[1:] for token in merged]
    assert len(tokens) == layout.partitions * (dominant + contextual)

    ids = inputs["input_ids"][0]
    image = tiny.visual(inputs)[0].nonzero().squeeze(1)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        visual = model.model.multi_modal_projector(torch.stack(tokens))
        embeds = torch.cat([embed(ids[: image[0]]), visual, embed(ids[image[-1] + 1 :])])
        oracle = model(inputs_embeds=embeds[None], logits_to_keep=1).logits
    method = VisionZip(dominant=dominant, contextual=contextual, literal=True)
    with method.attach(model, tiny.family) as session:
        logits = tiny.logits(inputs, logits_to_keep=1)
    torch.testing.assert_close(logits, oracle, **CLOSE)
    assert session.rows[0].visual_tokens == (layout.tokens, len(tokens))


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_attention_is_what_the_kernel_computes(load: Any, kind: str, monkeypatch: pytest.MonkeyPatch):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(84, 140), (224, 168)]))
    layouts = tiny.family.image_layouts(tiny.model, inputs)
    layer = tiny.family.feature_layer(tiny.model)
    module = tiny.family.vision_attention(tiny.family.vision_layers(tiny.model)[layer])
    seen: list[tuple[Tensor, Tensor]] = []
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(of: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if of is module:
            seen.append((query[0], key[0]))
        return kernel(of, query, key, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
        wanted = Wanted(attention=(layer,), keys=True)
        output, views = encode_images(tiny.model, tiny.family, inputs, layouts, wanted)
    assert len(seen) == len(views) == 2  # the layer sees whole images
    order = tiny.family.tower_order(tiny.model, inputs["image_grid_thw"])
    order = torch.arange(sum(layout.tokens for layout in layouts)) if order is None else order
    assert (kind == "qwen2_5_vl") == bool((order != order.sort().values).any())
    with torch.no_grad():  # the order is the one in which the tower's tokens become visual tokens
        merged = tiny.family.vision_tower(tiny.model).merger(output.last_hidden_state)
    torch.testing.assert_close(torch.cat([view.tokens for view in views])[order], merged, **CLOSE)
    start = 0
    for view, (query, key) in zip(views, seen, strict=True):
        weights = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        groups = weights.mean(dim=(0, 1)).view(-1, 4).mean(dim=1)
        key_groups = key.mean(dim=0).view(-1, 4, key.shape[-1]).mean(dim=1)
        count = view.layout.tokens
        for group, place in enumerate((order[start : start + count] - start).tolist()):
            torch.testing.assert_close(view.importance(layer)[0, place], groups[group], **CLOSE)
            assert view.keys is not None
            torch.testing.assert_close(view.keys[0, place], key_groups[group], **CLOSE)
        start += count


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_keeps_dominant_and_target_tokens_in_their_order(load: Any, kind: str):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(224, 168)]))
    layouts = tiny.family.image_layouts(tiny.model, inputs)
    method = VisionZip(dominant=10, contextual=4, literal=True)
    wanted = method.wanted(tiny.model, tiny.family)
    _, (view,) = encode_images(tiny.model, tiny.family, inputs, layouts, wanted)
    made = method.compress(view)
    assert made is not None
    assert view.keys is not None
    assert made.features.shape == (14, view.tokens.shape[1])
    assert made.kept.tolist() == sorted(set(made.kept.tolist()))
    best = set(view.importance(wanted.attention[0])[0].topk(10).indices.tolist())
    rest = torch.tensor([j for j in range(view.layout.tokens) if j not in best])
    targets, merged = merge(view.tokens, view.keys[0], rest, 4)
    assert set(made.kept.tolist()) == best | set(targets.tolist())
    for place, feature in zip(made.kept.tolist(), made.features, strict=True):
        expected = view.tokens[place] if place in best else merged[targets.tolist().index(place)]
        torch.testing.assert_close(feature, expected)


def test_received_attention_in_blocks():
    query, key = torch.randn(2, 1200, 3, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.einsum("qhd,khd->hqk", query, key).mul(8**-0.5).softmax(dim=-1)
    torch.testing.assert_close(received_attention(query, key), weights.mean(dim=(0, 1)))


def test_counts_of_llava_1_5(tmp_path: Path):
    tiny = build_real_geometry("llava", tmp_path)
    inputs = tiny.one(640, 480)
    for parameters, kept in (
        ({}, 192),
        ({"dominant": 108, "contextual": 20}, 128),
        ({"dominant": 54, "contextual": 10}, 64),
    ):
        with VisionZip(**parameters).attach(tiny.model, tiny.family) as session:
            result = tiny.generate_raw(inputs, new=1)
        assert session.rows[0].visual_tokens == (576, kept)
        assert result.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] - 576 + kept
    with (
        pytest.raises(InvalidParameterError, match="577 tokens is more than the 576"),
        VisionZip(dominant=547, literal=True).attach(tiny.model, tiny.family),
    ):
        pass


@pytest.mark.parametrize(
    ("height", "width", "before", "after"),
    [(672, 672, 2928, 960), (427, 640, 2144, 960), (333, 500, 1464, 576), (900, 300, 2376, 768)],
)
def test_counts_of_llava_next(next_geometry: Tiny, height: int, width: int, before: int, after: int):
    inputs = next_geometry.one(width, height)
    with VisionZip().attach(next_geometry.model, next_geometry.family) as session:
        next_geometry.logits(inputs, logits_to_keep=1)
        assert session.rows[0].visual_tokens == (before, after)
    with VisionZip(dominant=108, contextual=20).attach(next_geometry.model, next_geometry.family) as session:
        next_geometry.logits(inputs, logits_to_keep=1)
        assert session.rows[0].visual_tokens == (before, after * 128 // 192)


@pytest.fixture(scope="module")
def next_geometry(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_real_geometry("llava_next", tmp_path_factory.mktemp("next"))


@pytest.mark.parametrize(
    ("positions", "counts"), [(576, (162, 30)), (16, (4, 1)), (300, (84, 16)), (3, (1, 0)), (1, (1, 0))]
)
def test_budgets_scale_with_the_patches(positions: int, counts: tuple[int, int]):
    assert VisionZip().counts(positions) == counts
    assert VisionZip(literal=True).counts(positions) == (162, 30)


def test_an_image_that_would_not_get_shorter_is_left_as_it_is(load: Any):
    tiny: Tiny = load("qwen2_vl")
    inputs = tiny.inputs((QUESTION, [(56, 56)]), ("Yes?", [(224, 224)]))
    before = tiny.visual(inputs).sum(dim=1).tolist()
    with VisionZip(dominant=20, contextual=5, literal=True).attach(tiny.model, tiny.family) as session:
        tiny.generate(inputs, new=1)
    assert [row.visual_tokens for row in session.rows] == [(n, min(n, 25)) for n in before]
    assert before[0] < 25 < before[1]


def test_scale_and_order_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(4, 50, generator=generator)
    method = VisionZip()
    kept = method.select(attention, 20)
    assert kept[0] == 0
    assert torch.equal(kept, method.select(attention * 7.5, 20))
    order = torch.randperm(49, generator=generator) + 1
    permuted = method.select(torch.cat([attention[:, :1], attention[:, order]], dim=1), 20)
    assert sorted(order[permuted[1:] - 1].tolist()) == kept[1:].tolist()
    assert method.select(torch.ones(2, 30), 10).tolist() == list(range(10))  # of equal scores the first wins


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"dominant": 0}, "dominant must be"),
        ({"contextual": -1}, "contextual must be"),
        ({"dominant": 560}, "590 is more than the 576"),
        ({"dominant": 1.5}, "dominant must be"),
        ({"literal": "yes"}, "literal must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        VisionZip(**parameters)


def test_defaults_are_the_papers():
    assert VisionZip() == VisionZip(dominant=162, contextual=30, literal=False)
