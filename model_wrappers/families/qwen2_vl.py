"""Qwen2-VL: a vision transformer of native resolution without CLS token, 2 x 2 merging, three-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_stability.model_wrappers.families.base import Family, Message, Prompt, images_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import BatchFeature

SYSTEM_PROMPT = "You are a helpful assistant."


class Qwen2VL(Family):
    """Prompts and defaults of lmms-eval's ``qwen2_vl``, without its JPEG re-encoding of every image."""

    model_type = "qwen2_vl"
    lmms_eval_name = "qwen2_vl"
    default_max_new_tokens = 128
    applies_until = True
    decode_arguments: Mapping[str, Any] = {"clean_up_tokenization_spaces": False}
    processor_defaults: Mapping[str, Any] = {"min_pixels": 3136, "max_pixels": 602112}

    def vision_tower(self, model: nn.Module) -> nn.Module:
        part: nn.Module = model.get_submodule("model.visual")
        return part

    def placeholder_ids(self, config: Any) -> tuple[int, ...]:
        return (config.image_token_id, config.video_token_id)

    def build_prompt(self, processor: Any, messages: Sequence[Message], context: str) -> Prompt:
        # lmms-eval's qwen2_vl is a simple model: it shows all images first, then the document as one text, and leaves
        # the order that a chat model would be given aside. "<image>" in that text marks where images were.
        images = images_of(messages)
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": context.replace("<image>", "")}]
        turns = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
            {"role": "user", "content": content},
        ]
        return self._render(processor, turns, images)

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
