"""LLaVA-1.5: CLIP tower with a CLS token, a two-layer projector, a Llama decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.families.base import Family, Message, Prompt, images_of
from lmms_eval_stability.model_wrappers.families.images import ImageLayout

if TYPE_CHECKING:
    from torch import Tensor, nn


class Llava(Family):
    """Prompts and defaults of lmms-eval's chat model ``llava_hf``."""

    model_type = "llava"
    lmms_eval_name = "llava_hf"
    default_max_new_tokens = 1024
    has_cls = True

    def vision_tower(self, model: nn.Module) -> nn.Module:
        part: nn.Module = model.get_submodule("model.vision_tower")
        return part

    def vision_layers(self, model: nn.Module) -> nn.ModuleList:
        tower: Any = self.vision_tower(model)
        tower = getattr(tower, "vision_model", tower)  # one level deeper in older releases of transformers
        part: nn.ModuleList = tower.encoder.layers
        return part

    def vision_attention(self, layer: nn.Module) -> nn.Module:
        part: nn.Module = layer.get_submodule("self_attn")
        return part

    def feature_layer(self, model: nn.Module) -> int:
        state = model.config.vision_feature_layer
        if not isinstance(state, int):
            raise UnsupportedInputError(f"the projector reads several layers of the vision tower ({state})")
        depth = len(self.vision_layers(model))
        return (state if state >= 0 else depth + 1 + state) - 1  # hidden state 0 is the input of layer 0

    def fixed_positions(self, model: nn.Module) -> int | None:
        vision = model.config.vision_config
        return int(vision.image_size // vision.patch_size) ** 2

    def image_layouts(self, model: nn.Module, inputs: Mapping[str, Any]) -> list[ImageLayout]:
        count = self.fixed_positions(model)
        assert count is not None
        source = torch.arange(count)
        return [ImageLayout(1, count, None, source) for _ in range(len(inputs["pixel_values"]))]

    def image_pixels(self, inputs: Mapping[str, Any], layouts: Sequence[ImageLayout]) -> list[Tensor]:  # noqa: ARG002
        return list(inputs["pixel_values"])

    def placeholder_ids(self, config: Any) -> tuple[int, ...]:
        return (config.image_token_id,)

    def build_prompt(self, processor: Any, messages: Sequence[Message], context: str) -> Prompt:  # noqa: ARG002
        text = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        images = images_of(messages)
        placeholders = text.count(processor.image_token)
        if placeholders != len(images):
            raise UnsupportedInputError(
                f"the prompt holds {placeholders} image placeholders for {len(images)} images; the text of the document"
                f" must not contain '{processor.image_token}'"
            )
        return Prompt(text=text, images=images)
