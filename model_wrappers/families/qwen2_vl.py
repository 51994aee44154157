"""Qwen2-VL: a vision transformer of native resolution without CLS token, 2 x 2 merging, three-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lmms_eval_stability.model_wrappers.families.base import Family, Message, Prompt, images_of
from lmms_eval_stability.model_wrappers.families.images import ImageLayout

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BatchFeature

SYSTEM_PROMPT = "You are a helpful assistant."


class Qwen2VL(Family):
    """Prompts and defaults of lmms-eval's ``qwen2_vl``, without its JPEG re-encoding of every image."""

    model_type = "qwen2_vl"
    lmms_eval_name = "qwen2_vl"
    default_max_new_tokens = 128
    applies_until = True
    has_cls = False
    decode_arguments: Mapping[str, Any] = {"clean_up_tokenization_spaces": False}
    processor_defaults: Mapping[str, Any] = {"min_pixels": 3136, "max_pixels": 602112}

    def vision_tower(self, model: nn.Module) -> nn.Module:
        part: nn.Module = model.get_submodule("model.visual")
        return part

    def vision_layers(self, model: nn.Module) -> nn.ModuleList:
        tower: Any = self.vision_tower(model)
        part: nn.ModuleList = tower.blocks
        return part

    def vision_attention(self, layer: nn.Module) -> nn.Module:
        part: nn.Module = layer.get_submodule("attn")
        return part

    def feature_layer(self, model: nn.Module) -> int:
        return len(self.vision_layers(model)) - 2

    def image_layouts(self, model: nn.Module, inputs: Mapping[str, Any]) -> list[ImageLayout]:
        merged = inputs["image_grid_thw"].prod(dim=-1) // model.config.vision_config.spatial_merge_size**2
        return [ImageLayout(1, count, None, torch.arange(count)) for count in merged.tolist()]

    def image_pixels(self, inputs: Mapping[str, Any], layouts: Sequence[ImageLayout]) -> list[Tensor]:  # noqa: ARG002
        return list(inputs["pixel_values"].split(inputs["image_grid_thw"].prod(dim=-1).tolist()))

    def tower_order(self, model: nn.Module, grid: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return which merged token of all images each group of the tower's tokens makes; None if they are in order."""
        return None

    def placeholder_ids(self, config: Any) -> tuple[int, ...]:
        return (config.image_token_id, config.video_token_id)

    def build_prompt(self, processor: Any, messages: Sequence[Message]) -> Prompt:
        system = {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]}
        has_system = bool(messages) and messages[0]["role"] == "system"
        turns = [] if has_system else [system]
        # "<image>" in a question would be read as an image by other models' templates; qwen2_vl removes it.
        turns += [
            {"role": turn["role"], "content": [_clean_part(part) for part in turn["content"]]} for turn in messages
        ]
        return self._render(processor, turns, images_of(messages))

    def _render(self, processor: Any, turns: Sequence[Message], images: tuple[Any, ...]) -> Prompt:
        text = processor.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        return Prompt(text=text, images=images)

    def image_bounds(self, processor: Any) -> dict[str, int]:
        """Return ``min_pixels`` and ``max_pixels`` of the resize before the processor's own (qwen2_vl: the same)."""
        size = processor.image_processor.size
        return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}

    def encode(self, processor: Any, prompts: Sequence[Prompt]) -> BatchFeature:
        from qwen_vl_utils import fetch_image

        bounds = self.image_bounds(processor)
        images = [fetch_image({"image": image, **bounds}) for prompt in prompts for image in prompt.images]
        batch: BatchFeature = processor(
            text=[prompt.text for prompt in prompts],
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return batch


def _clean_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**part, "text": part["text"].replace("<image>", "")} if part["type"] == "text" else part
