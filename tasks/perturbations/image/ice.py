"""Ice, drawn: fern-like crystals on a hazy ground, in the colours of the photographs that ImageNet-C uses for frost."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from lmms_eval_stability.tasks.perturbations.image.filters import Pixels, Singles, row_blocks, to_pixels

_FERNS = 140
_BRANCHES = 14  # to each side of a fern
_SUBPIXEL = 4  # bits
_HAZE_CELLS = (2, 4, 8, 16, 64, 160)  # of a layer of haze, along the longer side
_HAZE_CONTRAST = (14.0, 12.0, 9.0, 7.0, 6.0, 6.0)  # standard deviations, roughly, in levels


def ice(height: int, width: int, rng: RandomState) -> Pixels:
    """Return a picture of ice: (H, W, 3). Crystals and haze scale with the picture."""
    light, blue = rng.uniform(110, 205), rng.uniform() ** 2
    tint = (0.98 - 0.46 * blue, 1.0 + 0.02 * blue, 1.06 + 0.08 * blue)
    texture = _haze(height, width, rng)
    texture += _crystals(height, width, rng)
    texture += np.float32(light - texture.mean())
    picture = np.empty((height, width, 3), dtype=np.uint8)
    for block in row_blocks(height, width):
        picture[block] = cv2.merge([to_pixels(texture[block] * np.float32(share)) for share in tint])
    return picture


def _haze(height: int, width: int, rng: RandomState) -> Singles:
    """Return smooth noise at several scales: (H, W), mean near 0."""
    longer = max(height, width)
    haze = np.zeros((1, 1), dtype=np.float32)
    for cells, contrast in zip(_HAZE_CELLS, _HAZE_CONTRAST, strict=True):
        grid = [1 + max(1, cells * side // longer) for side in (height, width)]
        noise = rng.uniform(-1.7, 1.7, size=grid).astype(np.float32)
        # Each scale is added to the coarser ones at its own resolution, and only the finest is enlarged to the picture.
        haze = np.float32(contrast) * noise + _resized(haze, *grid)
    return _resized(haze, height, width)


def _resized(plane: Singles, height: int, width: int) -> Singles:
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _crystals(height: int, width: int, rng: RandomState) -> Singles:
    """Return ferns, lit from the upper left: (H, W)."""
    canvas = np.zeros((height, width), dtype=np.uint8)
    for lines, shade in zip(np.array_split(_fern_lines(height, width, rng), 3), (90, 150, 220), strict=True):
        cv2.polylines(canvas, list(lines), False, shade, 1, cv2.LINE_AA, _SUBPIXEL)
    crystals = cv2.GaussianBlur(canvas.astype(np.float32), (3, 3), 0)
    lit = crystals * np.float32(0.45)
    lit[1:, 1:] -= crystals[:-1, :-1] * np.float32(0.2)
    return lit


def _fern_lines(height: int, width: int, rng: RandomState) -> NDArray[np.int32]:
    """Return the lines of all ferns, fern by fern: (lines, 2 ends, x and y), in units of 1/16 pixel."""
    longer = max(height, width)
    root = rng.uniform(0, 1, size=(_FERNS, 1, 2)) * (width, height)
    heading = rng.uniform(0, 2 * np.pi, size=(_FERNS, 1))
    length = longer * rng.uniform(0.05, 0.2, size=(_FERNS, 1))
    place = (np.arange(_BRANCHES) + rng.uniform(0, 1, size=(_FERNS, _BRANCHES))) / _BRANCHES
    spine = length[..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    joints = root + place[..., None] * spine
    reach = length * (1 - place) * rng.uniform(0.15, 0.45, size=place.shape)
    sides = []
    for side in (-1, 1):
        angle = heading + side * np.deg2rad(rng.uniform(40, 65, size=place.shape))
        tips = joints + reach[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        sides.append(np.stack([joints, tips], axis=2))
    lines = np.concatenate([np.stack([root, root + spine], axis=2), *sides], axis=1)
    scaled: NDArray[np.int32] = np.rint(lines.reshape(-1, 2, 2) * 2**_SUBPIXEL).astype(np.int32)
    return scaled
