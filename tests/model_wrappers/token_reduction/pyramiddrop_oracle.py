"""PyramidDrop written down plainly, sharing nothing with the package: a loop over decoder layers, attention by hand."""

from __future__ import annotations

from typing import Any

import torch

from tests.model_wrappers.token_reduction.fastv_oracle import Oracle, attend, entering


@torch.no_grad()
def run(tiny: Any, inputs: dict[str, Any], stages: dict[int, int], query: int, renumber: bool) -> Oracle:
    """Answer one unpadded prompt; ``stages`` maps a layer to the number of visual tokens that stay before it.

    They are ranked by the attention that column ``query`` would pay them in that layer if nothing was dropped there.
    With ``renumber`` the tokens that are left take the first positions of the prompt, whichever they were.
    """
    hidden, full_cos, full_sin = entering(tiny, inputs)
    cos, sin = full_cos, full_sin
    columns = torch.arange(len(hidden))
    visual = {column for column in tiny.visual(inputs)[0].nonzero().squeeze(1).tolist() if column < query}
    scores = torch.empty(0)
    for index, layer in enumerate(tiny.layers):
        if index in stages:
            weights = attend(layer, layer.input_layernorm(hidden), cos, sin)[1].mean(dim=0)
            row = weights[columns.tolist().index(query)]
            ranked = sorted(
                (-float(row[place]), column) for place, column in enumerate(columns.tolist()) if column in visual
            )
            scores = -torch.tensor([score for score, _ in ranked])
            losers = {column for _, column in ranked[stages[index] :]}
            visual -= losers
            stay = [place for place, column in enumerate(columns.tolist()) if column not in losers]
            hidden, columns = hidden[stay], columns[stay]
            chosen = torch.arange(len(stay)) if renumber else columns
            cos, sin = full_cos[chosen], full_sin[chosen]
        output, _ = attend(layer, layer.input_layernorm(hidden), cos, sin)
        hidden = hidden + output
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    decoder = tiny.family.decoder(tiny.model)
    return Oracle(tiny.model.lm_head(decoder.norm(hidden)), columns, scores)
