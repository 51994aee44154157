"""What the rest of the package needs to know about a base architecture, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.families.images import ImageInputs, ImageLayout
from lmms_eval_stability.model_wrappers.families.placeholders import tokenize

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn
    from transformers import BatchFeature

#: What a processor returns that has one entry per token.
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

Message = Mapping[str, Any]
"""One chat turn: ``{"role": ..., "content": [{"type": "text" | "image" | "video" | "audio", ...}]}``."""


@dataclass(frozen=True)
class Prompt:
    """One document as the model reads it.

    Attributes:
        text: the rendered chat template, with one image placeholder per image.
        images: the images in the order of their placeholders, as the task gave them.
    """

    text: str
    images: tuple[Image, ...]


class Family(ABC):
    """One base architecture: where its parts are and how a prompt is built for it.

    A family holds no weights; every method takes the transformers model or processor it is asked about.
    """

    #: ``config.model_type`` that this family serves.
    model_type: ClassVar[str]
    #: lmms-eval's own model for this architecture: prompts, task arguments and defaults are kept equal to it.
    lmms_eval_name: ClassVar[str]
    #: Tokens generated where a task names no ``max_new_tokens``: the default of ``lmms_eval_name``.
    default_max_new_tokens: ClassVar[int]
    #: Whether ``lmms_eval_name`` cuts answers at the task's ``until`` strings.
    applies_until: ClassVar[bool] = False
    #: How ``lmms_eval_name`` decodes answers, beside leaving out special tokens.
    decode_arguments: ClassVar[Mapping[str, Any]] = {}
    #: Whether the vision tower puts a CLS token before the patches of a partition.
    has_cls: ClassVar[bool]
    #: Arguments of the processor that a user may set, with their defaults.
    processor_defaults: ClassVar[Mapping[str, Any]] = {}

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the language model: it has ``layers``, ``rotary_emb`` and ``config``."""
        part: nn.Module = model.get_submodule("model.language_model")
        return part

    def backbone(self, model: nn.Module) -> nn.Module:
        """Return the module whose ``forward`` takes ``input_ids`` and image features (the model without its head)."""
        part: nn.Module = model.get_submodule("model")
        return part

    @abstractmethod
    def vision_tower(self, model: nn.Module) -> nn.Module:
        """Return the module that encodes images."""

    @abstractmethod
    def vision_layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the layers of the vision tower."""

    @abstractmethod
    def vision_attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of one of ``vision_layers``."""

    @abstractmethod
    def feature_layer(self, model: nn.Module) -> int:
        """Return the layer of the vision tower whose attention says what its visual tokens are about.

        With a CLS token: the layer whose output the projector reads. Without: a late layer in which every patch of an
        image sees every other.

        Raises:
            UnsupportedInputError: if there is no single such layer.
        """

    @abstractmethod
    def image_layouts(self, model: nn.Module, inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """Return the geometry of each image in the model's inputs, in the order of their placeholders."""

    @abstractmethod
    def image_pixels(self, inputs: Mapping[str, Any], layouts: Sequence[ImageLayout]) -> list[Tensor]:
        """Return the part of ``inputs["pixel_values"]`` that belongs to each image, without padding."""

    def fixed_positions(self, model: nn.Module) -> int | None:  # noqa: ARG002
        """Return the positions of every partition (576 for CLIP at 336 pixels), or None if images differ."""
        return None

    @abstractmethod
    def placeholder_ids(self, config: Any) -> tuple[int, ...]:
        """Return the token ids that stand for one visual token each in ``input_ids`` (images and video frames)."""

    @abstractmethod
    def build_prompt(self, processor: Any, messages: Sequence[Message], context: str) -> Prompt:
        """Render a document exactly as ``lmms_eval_name`` does.

        Args:
            processor: what ``AutoProcessor`` returned for the checkpoint.
            messages: the document as chat turns.
            context: the document as one text, which is what lmms-eval's simple models read.

        Raises:
            UnsupportedInputError: for media other than images, or text that holds image placeholders of its own.
        """

    def load_image(self, processor: Any, image: Image) -> Any:  # noqa: ARG002
        """Return an image as ``lmms_eval_name`` hands it to the processor."""
        return image

    def encode(self, processor: Any, prompts: Sequence[Prompt]) -> BatchFeature:
        """Return the model's inputs for a batch of prompts, padded on the left."""
        images = [self.load_image(processor, image) for prompt in prompts for image in prompt.images]
        batch: BatchFeature = processor(
            text=[prompt.text for prompt in prompts],
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return batch

    def process_image(self, processor: Any, image: Image, key: str) -> ImageInputs:
        """Return what the processor makes of one image; ``key`` is the digest of its pixels."""
        made = processor(text=[processor.image_token], images=[self.load_image(processor, image)], return_tensors="pt")
        tokens = int((made["input_ids"] == processor.image_token_id).sum())
        tensors = {name: value for name, value in made.items() if name not in _OF_TEXT}
        return ImageInputs(key, tokens, tensors, "mm_token_type_ids" in made)

    def encode_text(
        self, processor: Any, prompts: Sequence[Prompt], images: Sequence[Sequence[ImageInputs]]
    ) -> dict[str, Tensor]:
        """Return the part of ``encode`` that comes from the text, with the images of each prompt already processed.

        Raises:
            UnsupportedInputError: a prompt has more or fewer placeholders than images.
        """
        if not any(images):
            return dict(self.encode(processor, prompts))
        counts = [[image.tokens for image in own] for own in images]
        made = tokenize(processor, [prompt.text for prompt in prompts], counts)
        if any(image.typed for own in images for image in own):
            made["mm_token_type_ids"] = (made["input_ids"] == processor.image_token_id).long()
        return made

    def join_images(self, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
        """Return what the processor makes of several images, from what it makes of each alone."""
        names = images[0].tensors if images else ()
        return {name: torch.cat([image.tensors[name] for image in images]) for name in names}

    def rough_tokens(self, model: nn.Module, width: int, height: int) -> int:  # noqa: ARG002
        """Return about how many visual tokens an image of that size in pixels makes: what batches are sorted by."""
        return self.fixed_positions(model) or 0

    def clean(self, answer: str, until: Sequence[str]) -> str:
        """Return the answer as ``lmms_eval_name`` returns it: cut at the first of ``until`` where it does that."""
        if not self.applies_until:
            return answer
        ends = [answer.index(stop) for stop in until if stop and stop in answer]
        return answer[: min(ends, default=len(answer))].strip()


def images_of(messages: Sequence[Message]) -> tuple[Image, ...]:
    """Return the images of a chat in order.

    Raises:
        UnsupportedInputError: for a video or a sound, which these models do not read.
    """
    images = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                images.append(part["url"])
            elif part["type"] != "text":
                raise UnsupportedInputError(
                    f"the document holds a {part['type']}; these models answer documents with text and images only"
                )
    return tuple(images)
