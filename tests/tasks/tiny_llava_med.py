"""A tiny LLaVA-Med as transformers stores it: `LlavaForConditionalGeneration` over a Mistral, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, MistralConfig

from tests import tiny_models as parts


def build_tiny_llava_med(folder: Path, sliding_window: int | None = None, seed: int = 0) -> Path:
    """Write the model and its processor, whose prompts are Mistral's, to ``folder`` and return it.

    Args:
        folder: created if missing.
        sliding_window: None as in LLaVA-Med v1.5, whose Mistral 7B v0.2 has none; 4096 is MistralConfig's default.
        seed: seed of the weights.
    """
    tokenizer = parts._llama_style_tokenizer()
    side = parts._IMAGE_SIZE
    shared = {"vision_feature_select_strategy": "default"}
    config = LlavaConfig(
        vision_config=parts._clip_config(),
        text_config=MistralConfig(sliding_window=sliding_window, **parts._text_arguments(tokenizer, kv_heads=2)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=(side // parts._PATCH) ** 2,
        **shared,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        parts._scale_weights(model)
    parts._set_generation_defaults(model, tokenizer, eos_token_id=tokenizer.eos_token_id)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=parts._PATCH,
        num_additional_image_tokens=1,
        chat_template=parts._MISTRAL_TEMPLATE,
        **shared,
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
