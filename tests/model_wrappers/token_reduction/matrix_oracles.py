"""For every method, a plain recomputation of one prompt with its answer: what the matrix of invariants compares with.

No cache, no batch, no hooks of the package: one prompt alone, its answer appended, one pass over everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction import (
    Downsample,
    FastV,
    LVPruning,
    PyramidDrop,
    RandomInside,
    SparseVLM,
    TokenReducer,
)
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM
from lmms_eval_stability.model_wrappers.token_reduction.vision import encode_images
from tests.model_wrappers.token_reduction import (
    fastv_oracle,
    lvpruning_oracle,
    pyramiddrop_oracle,
    random_inside_oracle,
    sparsevlm_oracle,
)
from tests.model_wrappers.token_reduction.conftest import Tiny
from tests.model_wrappers.token_reduction.test_inside_llm import extended


@dataclass(frozen=True)
class Expected:
    """What a method must make of one prompt."""

    logits: Tensor  # (L', vocabulary) of the tokens that reach the last layer, the answer's last
    visual_tokens: tuple[int, ...]  # as in ``RowTokens``


def expect(tiny: Tiny, method: TokenReducer, inputs: dict[str, Any], answer: Tensor) -> Expected:
    """Recompute one unpadded prompt and its ``answer`` (1, new) under ``method``."""
    n, query = int(tiny.visual(inputs).sum()), inputs["input_ids"].shape[1] - 1
    full, renumber = extended(inputs, answer), not tiny.kind.startswith("qwen")  # grid positions stay
    stages = 1 if isinstance(method, BeforeLLM) else len(method.stages(len(tiny.layers)))
    if n == 0:
        return Expected(tiny.logits(full)[0], (0,) * (stages + 1))
    if isinstance(method, FastV):
        keep = method.keep_count(0, n, n)
        return Expected(fastv_oracle.run(tiny, full, {method.k: keep}, query).logits, (n, keep))
    if isinstance(method, PyramidDrop):
        goals = {s.layer: method.keep_count(i, n, n) for i, s in enumerate(method.stages(len(tiny.layers)))}
        found = pyramiddrop_oracle.run(tiny, full, goals, query, renumber and method.renumber)
        return Expected(found.logits, (n, *goals.values()))
    if isinstance(method, LVPruning):
        counts = [method.keep_count(i, n, n) for i in range(stages)]
        found = lvpruning_oracle.run(tiny, full, method.modules, counts, query)
        return Expected(found.logits, (n, *counts))
    if isinstance(method, RandomInside):
        pixels = tiny.family.image_pixels(inputs, tiny.family.image_layouts(tiny.model, inputs))
        longest = method.first_scores(n, pixels).argsort(descending=True, stable=True).tolist()
        goals = {s.layer: method.keep_count(i, n, n) for i, s in enumerate(method.stages(len(tiny.layers)))}
        return Expected(random_inside_oracle.run(tiny, full, longest, goals), (n, *goals.values()))
    if isinstance(method, SparseVLM):
        keeps, now = {}, n
        for i, stage in enumerate(method.stages(len(tiny.layers))):
            keeps[stage.attention_layer] = keep = method.keep_count(i, n, now)
            now = keep + (int(0.3 * (now - keep)) + 1) // 10 + 1
        found, counts = sparsevlm_oracle.run(tiny, full, keeps, query, renumber)
        return Expected(found.logits, tuple(counts))
    if isinstance(method, Downsample):
        return _smaller_images(tiny, method, inputs, answer)
    assert isinstance(method, BeforeLLM)
    return _shortened(tiny, method, inputs, full)


@torch.no_grad()
def _shortened(tiny: Tiny, method: BeforeLLM, inputs: dict[str, Any], full: dict[str, Any]) -> Expected:
    """The base model on its own embeddings and positions, with what the method made of each image put in by hand.

    That the method makes the right thing of an image is tested by its golden vectors and its own oracle.
    """
    model, decoder = tiny.model, tiny.family.decoder(tiny.model)
    layouts = tiny.family.image_layouts(model, inputs)
    _, views = encode_images(model, tiny.family, inputs, layouts, method.wanted(model, tiny.family))
    seen: dict[str, Any] = {}
    hook = decoder.register_forward_pre_hook(lambda _m, _a, kw: seen.update(kw), with_kwargs=True)
    try:
        tiny.logits(full)
    finally:
        hook.remove()
    embeds, positions, visual = seen["inputs_embeds"].clone(), seen["position_ids"], tiny.visual(full)[0]
    stays = ~visual
    places = visual.nonzero().squeeze(1).split([layout.tokens for layout in layouts])
    for place, view in zip(places, views, strict=True):
        made = method.compress(view)
        if made is None:
            stays[place] = True
        else:
            stays[place[made.kept]] = True
            embeds[0, place[made.kept]] = made.features
    hidden = decoder(
        inputs_embeds=embeds[:, stays], position_ids=positions[..., stays] if "qwen" in tiny.kind else None
    ).last_hidden_state
    return Expected(model.lm_head(hidden)[0], (int(visual.sum()), int((stays & visual).sum())))


def _smaller_images(tiny: Tiny, method: Downsample, inputs: dict[str, Any], answer: Tensor) -> Expected:
    """The base model on the smaller images."""
    smaller = {**inputs, **(method.smaller_images(tiny.model, tiny.family, inputs) or {})}
    counts = [layout.tokens for layout in tiny.family.image_layouts(tiny.model, smaller)]
    before = [layout.tokens for layout in tiny.family.image_layouts(tiny.model, inputs)]
    visual = tiny.visual(inputs)[0]
    stays = ~visual
    for place, count in zip(visual.nonzero().squeeze(1).split(before), counts, strict=True):
        stays[place[:count]] = True
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in smaller:
            smaller[name] = smaller[name][:, stays]
    return Expected(tiny.logits(extended(smaller, answer))[0], (sum(before), sum(counts)))
