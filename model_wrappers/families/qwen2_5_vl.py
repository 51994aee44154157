"""Qwen2.5-VL: Qwen2-VL with window attention in the vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_stability.model_wrappers.families.base import Message, Prompt, images_of
from lmms_eval_stability.model_wrappers.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:
    from torch import Tensor, nn


class Qwen25VL(Qwen2VL):
    """Prompts and defaults of lmms-eval's chat model ``qwen2_5_vl``."""

    model_type = "qwen2_5_vl"
    lmms_eval_name = "qwen2_5_vl"
    applies_until = False
    processor_defaults: Mapping[str, Any] = {"min_pixels": 256 * 28 * 28, "max_pixels": 1605632}

    def build_prompt(self, processor: Any, messages: Sequence[Message], context: str) -> Prompt:  # noqa: ARG002
        return self._render(processor, messages, images_of(messages))

    def image_bounds(self, processor: Any) -> dict[str, int]:  # noqa: ARG002
        # lmms-eval's chat model gives qwen_vl_utils no bounds for images, so its own apply before the processor's.
        return {}

    def feature_layer(self, model: nn.Module) -> int:
        # Most layers see only windows of the image.
        return int(max(model.config.vision_config.fullatt_block_indexes))

    def tower_order(self, model: nn.Module, grid: Tensor) -> Tensor | None:
        tower: Any = self.vision_tower(model)
        if hasattr(tower, "get_window_index"):  # older releases of transformers
            order, _ = tower.get_window_index(grid)
        else:
            from transformers.vision_utils import get_vision_window_index

            order, _ = get_vision_window_index(
                grid,
                spatial_merge_size=tower.spatial_merge_size,
                window_size=tower.window_size,
                patch_size=tower.patch_size,
            )
        window_order: Tensor = order
        return window_order
