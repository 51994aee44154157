"""The sizes that runs log, and the cost that follows from them, against real layers and real caches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.cost import Geometry, prefill_cost
from lmms_eval_stability.model_wrappers.families import family_for
from lmms_eval_stability.model_wrappers.geometry import decoder_geometry
from lmms_eval_stability.model_wrappers.token_reduction.fastv import FastV
from tests.tiny_models import KINDS, build_tiny, picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_that_of_the_real_layers_and_caches(kind: str, dtype: torch.dtype, tmp_path: Path):
    folder = build_tiny(kind, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    family, processor = family_for(model.config), AutoProcessor.from_pretrained(folder)
    geometry = Geometry.from_facts({"geometry": decoder_geometry(model)})
    assert geometry is not None
    layers = family.decoder(model).layers
    assert geometry.layers == len(layers)
    matrices = [module.weight.numel() for module in layers[0].modules() if isinstance(module, nn.Linear)]
    assert geometry.flops(1, 0) == sum(matrices)

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = dict(processor(images=[picture(0, 84, 56)], text=[text], return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with FastV(k=2, r=0.5).attach(model, family) as session, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    (row,) = session.rows
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    cost = prefill_cost(geometry, row.layers, row.visual_tokens, inputs["input_ids"].shape[1] - row.visual_tokens[0])
    assert cost.kv_bytes == held
    assert cost.kv_ratio < 1
