"""Dropping given tokens before given layers, written down plainly: a loop over decoder layers, attention by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.model_wrappers.token_reduction.fastv_oracle import attend, entering


@torch.no_grad()
def run(tiny: Any, inputs: dict[str, Any], longest: list[int], counts: dict[int, int]) -> Tensor:
    """Answer one unpadded prompt: logits (L', vocabulary) of the tokens that reach the last layer.

    ``longest`` are its visual tokens by their number, those that stay longest first; ``counts`` maps a layer to how
    many of them stay before it.
    """
    hidden, cos, sin = entering(tiny, inputs)
    visual = tiny.visual(inputs)[0].nonzero().squeeze(1)[: len(longest)].tolist()
    columns = list(range(len(hidden)))
    for index, layer in enumerate(tiny.layers):
        if index in counts:
            gone = {visual[number] for number in longest[counts[index] :]}
            stay = [place for place, column in enumerate(columns) if column not in gone]
            hidden, cos, sin, columns = hidden[stay], cos[stay], sin[stay], [columns[place] for place in stay]
        output, _ = attend(layer, layer.input_layernorm(hidden), cos, sin)
        hidden = hidden + output
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return tiny.model.lm_head(tiny.family.decoder(tiny.model).norm(hidden))
