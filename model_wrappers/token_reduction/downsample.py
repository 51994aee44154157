"""The control that needs no method at all: a smaller image, of which the base model makes fewer tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.families.qwen2_vl import Qwen2VL
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM, Compressed
from lmms_eval_stability.model_wrappers.token_reduction.budget import (
    check_budget,
    check_flag,
    keeps_everything,
    scaled,
)
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView


@dataclass(frozen=True)
class Downsample(BeforeLLM):
    """Resize each image so that the unchanged model makes at most ``tokens`` of every 576 visual tokens of it.

    A control, not a published method. Only for models whose number of visual tokens follows the size of the image
    (Qwen): LLaVA's processors scale images to sizes of their own, so a smaller image would give it no fewer tokens, and
    anything done to the tokens instead would be another method. Positions are those of the smaller image. What is
    resized is the image as the processor made it: pixels are resampled twice.

    Args:
        tokens: Visual tokens of an image that has 576, at most; in proportion for other images.
        literal: At most ``tokens`` of every image whatever it has.
    """

    changes_pixels: ClassVar[bool] = True

    tokens: int = 192
    literal: bool = False

    def __post_init__(self) -> None:
        check_flag("downsample", "literal", self.literal)
        check_budget("downsample", "tokens", self.tokens, literal=self.literal)

    @property
    def drops_tokens(self) -> bool:
        return not keeps_everything(self.tokens, literal=self.literal)

    def check_model(self, model: Any, family: Family) -> None:
        if not isinstance(family, Qwen2VL):
            raise UnsupportedModelError(
                f"{self}: the processor of {type(model).__name__} scales images to sizes of its own, so a smaller image"
                " has no fewer visual tokens; compare with the random control instead"
            )

    def smaller_images(self, model: Any, family: Family, inputs: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(family, Qwen2VL)
        merge = model.config.vision_config.spatial_merge_size
        grids = []
        for frames, rows, columns in inputs["image_grid_thw"].tolist():
            height, width = self.size(rows // merge, columns // merge)
            grids.append((frames, height * merge, width * merge))
        return family.resize_images(model, inputs, grids)

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the (rows, columns) of visual tokens that an image of rows x columns of them is resized to.

        Both sides shrink by the same factor, up to rounding; of the roundings that keep to the budget the one with the
        most tokens is taken, and of those the one nearest to the image's proportions.
        """
        budget = scaled(self.tokens, rows * columns, literal=self.literal)
        if budget >= rows * columns:
            return rows, columns
        factor = math.sqrt(budget / (rows * columns))
        options = [
            (height, width)
            for height in {max(1, math.floor(rows * factor)), math.ceil(rows * factor)}
            for width in {max(1, math.floor(columns * factor)), math.ceil(columns * factor)}
            if height * width <= budget
        ]
        if not options:  # a strip one token wide, which the factor would make narrower than a token
            return (1, min(columns, budget)) if rows < columns else (min(rows, budget), 1)

        def quality(option: tuple[int, int]) -> tuple[int, float, int]:
            height, width = option
            return height * width, -abs(math.log(height / width * columns / rows)), height

        return max(options, key=quality)

    def compress(self, image: ImageView) -> Compressed | None:  # noqa: ARG002
        raise AssertionError("downsample acts before the vision tower")
