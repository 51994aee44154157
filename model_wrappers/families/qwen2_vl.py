"""Qwen2-VL: a vision transformer of native resolution without CLS token, 2 x 2 merging, three-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lmms_eval_stability.model_wrappers.families.base import Family, Message, Prompt, images_of
from lmms_eval_stability.model_wrappers.families.images import ImageLayout

if TYPE_CHECKING:
    from torch import Tensor, nn

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

    def resize_images(
        self, model: nn.Module, inputs: Mapping[str, Any], grids: Sequence[tuple[int, int, int]]
    ) -> dict[str, Tensor]:
        """Resize images that the processor has already cut into patches.

        Args:
            model: The model.
            inputs: ``pixel_values`` and ``image_grid_thw``.
            grids: New grid of each image: frames, rows and columns of patches. Frames stay as many as they are.

        Returns:
            ``pixel_values`` and ``image_grid_thw`` of the resized images (antialiased bicubic, as the processor's).
        """
        vision = model.config.vision_config
        cut = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        resized = []
        for rows, old, new in zip(self.image_pixels(inputs, ()), inputs["image_grid_thw"].tolist(), grids, strict=True):
            resized.append(rows if tuple(old) == tuple(new) else _resize_patches(rows, tuple(old), new, *cut))
        grid = inputs["image_grid_thw"].new_tensor([list(new) for new in grids])
        return {"pixel_values": torch.cat(resized), "image_grid_thw": grid}

    def tower_order(self, model: nn.Module, grid: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return which merged token of all images each group of the tower's tokens makes; None if they are in order."""
        return None

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

    def load_image(self, processor: Any, image: Any) -> Any:
        from qwen_vl_utils import fetch_image

        return fetch_image({"image": image, **self.image_bounds(processor)})

    def rough_tokens(self, model: nn.Module, width: int, height: int) -> int:
        vision = model.config.vision_config
        return width * height // (vision.patch_size * vision.spatial_merge_size) ** 2


def _resize_patches(
    patches: Tensor, old: tuple[int, ...], new: tuple[int, ...], side: int, depth: int, merge: int
) -> Tensor:
    """Resize one image: (t * h * w, C * depth * side * side) -> (t * h' * w', C * depth * side * side).

    Patches come in groups that are merged, each group's rows and columns together; ``depth`` frames make one patch.
    """
    frames, rows, columns = old
    cut = patches.view(frames, rows // merge, columns // merge, merge, merge, -1, depth, side, side)
    pixels = cut.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(frames * depth, -1, rows * side, columns * side)
    size = (new[1] * side, new[2] * side)
    pixels = torch.nn.functional.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True)
    cut = pixels.view(frames, depth, -1, new[1] // merge, merge, side, new[2] // merge, merge, side)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(frames * new[1] * new[2], -1).to(patches.dtype)
