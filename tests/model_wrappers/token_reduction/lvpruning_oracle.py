"""LVPruning written down plainly: a loop over decoder layers, attention by hand, and the module's own, by hand too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from tests.model_wrappers.token_reduction.fastv_oracle import Oracle, attend, entering


def votes(module: Any, vision: Tensor, language: Tensor) -> Tensor:
    """One module's logits (N,) of vision tokens (N, d) that ask language tokens (T, d)."""
    given = dict(module.named_parameters())

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ given[f"{name}.weight"].T + given[f"{name}.bias"]

    def norm(name: str, values: Tensor) -> Tensor:
        return layer_norm(values, values.shape[-1:], given[f"{name}.weight"], given[f"{name}.bias"])

    query = linear("query", norm("vision_norm", vision))
    key, value = (linear(name, norm("language_norm", language)) for name in ("key", "value"))
    size = query.shape[1] // module.heads
    asked = []
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        weights = (query[:, part] @ key[:, part].T / size**0.5).softmax(dim=1)
        asked.append(weights @ value[:, part])
    told = query + linear("mix", torch.cat(asked, dim=1))
    return linear("decide", gelu(linear("first", norm("norm", told))))[:, 0]


@torch.no_grad()
def run(tiny: Any, inputs: dict[str, Any], pruner: Any, counts: list[int], query: int, text: str = "all") -> Oracle:
    """Answer one unpadded prompt; ``counts`` are the visual tokens that stay at each of the pruner's stages.

    Columns after ``query`` are no part of the prompt.
    """
    hidden, cos, sin = entering(tiny, inputs)
    columns = torch.arange(len(hidden))
    visual = {column for column in tiny.visual(inputs)[0].nonzero().squeeze(1).tolist() if column < query}
    last = max(visual)
    totals = dict.fromkeys(visual, 0.0)
    for index, layer in enumerate(tiny.layers):
        if index in pruner.design.layers:
            stage = pruner.design.layers.index(index)
            places = [place for place, column in enumerate(columns.tolist()) if column in visual]
            words = [
                place
                for place, column in enumerate(columns.tolist())
                if column not in visual and column <= query and (text == "all" or column > last)
            ]
            logits = votes(pruner.stages[stage], hidden[places], hidden[words])
            for place, logit in zip(places, logits.tolist(), strict=True):
                totals[int(columns[place])] += logit
            losers = set(sorted(visual, key=lambda column: -totals[column])[counts[stage] :])
            visual -= losers
            stay = [place for place, column in enumerate(columns.tolist()) if column not in losers]
            hidden, cos, sin, columns = hidden[stay], cos[stay], sin[stay], columns[stay]
        output, _ = attend(layer, layer.input_layernorm(hidden), cos, sin)
        hidden = hidden + output
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    decoder = tiny.family.decoder(tiny.model)
    return Oracle(tiny.model.lm_head(decoder.norm(hidden)), columns, torch.empty(0))
