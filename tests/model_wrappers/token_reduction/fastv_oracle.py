"""FastV written down plainly, sharing nothing with the package: a loop over decoder layers, attention by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Oracle:
    """Result for one prompt."""

    logits: Tensor  # (L', vocabulary) at the tokens that reach the last layer
    columns: Tensor  # (L',) their columns
    scores: Tensor  # (N,) of the visual tokens that entered the last stage


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return values * cos + torch.cat([-second, first], dim=-1) * sin


def _merge_axes(values: Tensor, config: Any) -> Tensor:
    """Return cos or sin of the one row, (L, d); older transformers leave Qwen's axes (3, 1, L, d) to the layers."""
    if values.dim() == 3:
        return values[0]
    sections = config.rope_parameters["mrope_section"] * 2
    parts = values[:, 0].split(sections, dim=-1)
    return torch.cat([part[index % 3] for index, part in enumerate(parts)], dim=-1)


def attend(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Causal self-attention of one layer on (L, d): its output, and the weights (H, L, L)."""
    attention, size = layer.self_attn, layer.self_attn.head_dim
    query, key, value = (
        projection(hidden).view(len(hidden), -1, size).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, dim=0), value.repeat_interleave(groups, dim=0)
    logits = query @ key.transpose(1, 2) / size**0.5
    future = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, float("-inf")).softmax(dim=-1)
    return attention.o_proj((weights @ value).transpose(0, 1).reshape(len(hidden), -1)), weights


@torch.no_grad()
def entering(tiny: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Record what enters the first decoder layer of the untouched model: embeddings (L, d), cos and sin."""
    decoder = tiny.family.decoder(tiny.model)
    seen: dict[str, Any] = {}
    handles = [
        decoder.register_forward_pre_hook(lambda _m, _a, kw: seen.update(hidden=kw["inputs_embeds"]), with_kwargs=True),
        decoder.rotary_emb.register_forward_hook(lambda _m, _a, out: seen.update(rotary=out)),
    ]
    try:
        tiny.model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    cos, sin = (_merge_axes(part, decoder.config) for part in seen["rotary"])
    return seen["hidden"][0], cos, sin


@torch.no_grad()
def run(tiny: Any, inputs: dict[str, Any], stages: dict[int, int], query: int) -> Oracle:
    """Answer one unpadded prompt, with tokens ranked by the attention of column ``query``.

    ``stages`` maps a layer to the number of visual tokens that stay before it, ranked in the layer before. Embeddings
    and positions are recorded from the untouched model, everything after that is computed here.
    """
    decoder = tiny.family.decoder(tiny.model)
    hidden, cos, sin = entering(tiny, inputs)
    columns = torch.arange(len(hidden))
    visual = tiny.visual(inputs)[0].nonzero().squeeze(1)
    visual = visual[visual < query]
    scores = weights = torch.empty(0)
    for index, layer in enumerate(decoder.layers):
        if index in stages:
            places = [columns.tolist().index(column) for column in visual.tolist()]
            scores = weights[:, columns.tolist().index(query), places].mean(dim=0)
            winners = sorted(visual[scores.topk(stages[index]).indices].tolist())
            losers = set(visual.tolist()) - set(winners)
            stay = [place for place, column in enumerate(columns.tolist()) if column not in losers]
            hidden, cos, sin, columns = hidden[stay], cos[stay], sin[stay], columns[stay]
            visual = torch.tensor(winners)
        output, weights = attend(layer, layer.input_layernorm(hidden), cos, sin)
        hidden = hidden + output
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return Oracle(tiny.model.lm_head(decoder.norm(hidden)), columns, scores)
