"""LLaVA-1.5: CLIP tower with a CLS token, a two-layer projector, a Llama decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.families.base import Family, Message, Prompt, images_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import BatchFeature


class Llava(Family):
    """Prompts and defaults of lmms-eval's chat model ``llava_hf``."""

    model_type = "llava"
    lmms_eval_name = "llava_hf"
    default_max_new_tokens = 1024

    def vision_tower(self, model: nn.Module) -> nn.Module:
        part: nn.Module = model.get_submodule("model.vision_tower")
        return part

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

    def encode(self, processor: Any, prompts: Sequence[Prompt]) -> BatchFeature:
        images = [image for prompt in prompts for image in prompt.images]
        batch: BatchFeature = processor(
            images=images or None,
            text=[prompt.text for prompt in prompts],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return batch
