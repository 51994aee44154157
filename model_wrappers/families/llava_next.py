"""LLaVA-NeXT: LLaVA with tiles of the image at several resolutions and a newline embedding per row of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lmms_eval_stability.model_wrappers.families.images import ImageInputs, ImageLayout
from lmms_eval_stability.model_wrappers.families.llava import Llava

if TYPE_CHECKING:
    from torch import Tensor, nn


class LlavaNext(Llava):
    """Differs from LLaVA-1.5 in its tiles and newlines; newline positions are image placeholders too."""

    model_type = "llava_next"

    def image_layouts(self, model: nn.Module, inputs: Mapping[str, Any]) -> list[ImageLayout]:
        return [self.layout(model, size) for size in inputs["image_sizes"].tolist()]

    def layout(self, model: nn.Module, size: Sequence[int]) -> ImageLayout:
        """Return the geometry of an image of ``size`` (height, width) pixels."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        config, count = model.config, self.fixed_positions(model)
        assert count is not None
        rows, columns = get_anyres_image_grid_shape(
            tuple(size), config.image_grid_pinpoints, config.vision_config.image_size
        )
        partitions = 1 + rows * columns
        # Where a position goes is asked of the model itself: it packs the numbers of the positions like features.
        numbers = torch.arange(partitions * count, dtype=torch.float64).view(partitions, count, 1)
        backbone: Any = self.backbone(model)
        packed, _ = backbone.pack_image_features(
            [numbers],
            torch.tensor([list(size)]),
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=torch.tensor([-1.0], dtype=torch.float64),
        )
        return ImageLayout(partitions, count, (rows, columns), packed[0].squeeze(-1).long())

    def image_pixels(self, inputs: Mapping[str, Any], layouts: Sequence[ImageLayout]) -> list[Tensor]:
        pairs = zip(inputs["pixel_values"], layouts, strict=True)
        return [pixels[: layout.partitions] for pixels, layout in pairs]

    def join_images(self, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
        # Images have different numbers of tiles; as by the processor, missing ones are zeros.
        most = max((image.tensors["pixel_values"].shape[1] for image in images), default=0)
        padded = []
        for image in images:
            pixels = image.tensors["pixel_values"]
            missing = pixels.new_zeros(1, most - pixels.shape[1], *pixels.shape[2:])
            filled = torch.cat([pixels, missing], dim=1) if missing.shape[1] else pixels
            padded.append(replace(image, tensors={**image.tensors, "pixel_values": filled}))
        return super().join_images(padded)

    def rough_tokens(self, model: nn.Module, width: int, height: int) -> int:
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        config, count = model.config, self.fixed_positions(model) or 0
        rows, columns = get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, config.vision_config.image_size
        )
        return count * (1 + rows * columns)
