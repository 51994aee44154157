"""An image as the model sees it, and where on it each visual token lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.families.images import ImageLayout

_GAP = 12  # pixels between the whole image and its tiles
_PAPER, _NEWLINE = 255, 190  # grey levels

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.int64]


@dataclass(frozen=True)
class Canvas:
    """What the model is shown of one image, after the processor scaled, cropped or cut it into tiles.

    Of LLaVA-NeXT's partitions the whole image stands on the left, on its right the tiles as one picture without their
    padding, and a grey column of its newlines.

    Attributes:
        picture: (H, W, 3) uint8.
        boxes: (N, 4) left, top, right and bottom pixel of each visual token; right and bottom do not belong to it.
    """

    picture: Pixels
    boxes: Boxes


def make_canvas(model: Any, processor: Any, family: Family, inputs: Mapping[str, Any]) -> Canvas:
    """Return the canvas of the first image.

    Args:
        model: The transformers model.
        processor: What made ``inputs``: pixels are brought back to colours by its mean and standard deviation.
        family: The model's.
        inputs: The model's inputs; what they hold besides images has no part in it.
    """
    layout = family.image_layouts(model, inputs)[0]
    pixels = family.image_pixels(inputs, [layout])[0]
    if inputs.get("image_grid_thw") is not None:
        return _grid(model, processor, pixels, tuple(inputs["image_grid_thw"][0].tolist()))
    partitions = _colours(processor, pixels.view(layout.partitions, *pixels.shape[-3:]))
    return _tiles(partitions, layout)


def _colours(processor: Any, pixels: Tensor) -> Pixels:
    """Undo the normalisation: (..., 3, H, W) floats -> (..., H, W, 3) uint8."""
    values = pixels.detach().float().cpu().numpy()
    settings = processor.image_processor
    if settings.do_normalize:
        mean, std = (
            np.asarray(part, dtype=np.float32)[:, None, None] for part in (settings.image_mean, settings.image_std)
        )
        values = values * std + mean
    if settings.do_rescale:
        values = values / settings.rescale_factor
    return np.moveaxis(np.clip(np.rint(values), 0, 255).astype(np.uint8), -3, -1)


def _grid(model: Any, processor: Any, patches: Tensor, grid: tuple[int, int, int]) -> Canvas:
    """Qwen: patches (t * h * w, C * depth * side * side), in groups that become one token -> the first frame."""
    vision = model.config.vision_config
    side, depth, merge = vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size
    frames, rows, columns = grid
    cut = patches.view(frames, rows // merge, columns // merge, merge, merge, -1, depth, side, side)
    picture = cut.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(frames * depth, -1, rows * side, columns * side)[0]
    return Canvas(_colours(processor, picture), _cells(rows // merge, columns // merge, side * merge))


def _cells(rows: int, columns: int, side: int) -> Boxes:
    """Return the boxes of a grid, row by row: (rows * columns, 4)."""
    top, left = (part.ravel() * side for part in np.mgrid[:rows, :columns])
    return np.stack([left, top, left + side, top + side], axis=1)


def _tiles(partitions: Pixels, layout: ImageLayout) -> Canvas:
    """LLaVA: the whole image (P is 1), and its tiles beside it: (P, side, side, 3)."""
    count, size = layout.positions, partitions.shape[1]
    side = round(count**0.5)
    patch = size // side
    source = layout.source.numpy()
    boxes = np.zeros((len(source), 4), dtype=np.int64)
    whole = (source >= 0) & (source < count)
    boxes[whole] = _cells(side, side, patch)[source[whole]]
    parts = [partitions[0]]
    if layout.tiles is not None:
        rows, columns = layout.tiles
        stitched = partitions[1:].reshape(rows, columns, size, size, 3).swapaxes(1, 2)
        stitched = stitched.reshape(rows * size, columns * size, 3)
        tiled = source >= count
        tile, place = np.divmod(source[tiled] - count, count)
        y = tile // columns * side + place // side
        x = tile % columns * side + place % side
        top, left = y.min(), x.min()  # the padding around is no token
        stitched = stitched[top * patch : (y.max() + 1) * patch, left * patch : (x.max() + 1) * patch]
        offset = size + _GAP
        corner = np.stack([(x - left) * patch + offset, (y - top) * patch], axis=1)
        boxes[tiled] = np.concatenate([corner, corner + patch], axis=1)
        parts.append(stitched)
    return _with_newlines(_beside(parts), boxes, source < 0, patch)


def _beside(parts: list[Pixels]) -> Pixels:
    """Put pictures side by side, their tops aligned."""
    height = max(len(part) for part in parts)
    filled = [np.pad(part, ((0, height - len(part)), (0, 0), (0, 0)), constant_values=_PAPER) for part in parts]
    gap = np.full((height, _GAP, 3), _PAPER, dtype=np.uint8)
    return np.concatenate([filled[0], *(piece for part in filled[1:] for piece in (gap, part))], axis=1)


def _with_newlines(picture: Pixels, boxes: Boxes, newline: NDArray[np.bool_], patch: int) -> Canvas:
    """Draw each newline token as a cell in the row of the token that it follows."""
    if not newline.any():
        return Canvas(picture, boxes)
    picture = np.pad(picture, ((0, 0), (0, _GAP // 2 + patch), (0, 0)), constant_values=_PAPER)
    right = picture.shape[1]
    for number in newline.nonzero()[0]:
        top, bottom = boxes[number - 1, [1, 3]]
        boxes[number] = right - patch, top, right, bottom
        picture[top + 1 : bottom - 1, right - patch + 1 : right - 1] = _NEWLINE
    return Canvas(picture, boxes)
