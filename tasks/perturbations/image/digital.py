"""What cameras, screens and files do: JPEG, contrast, saturation, spatter, pixelation; and the blank image.

Constants: Hendrycks and Dietterich, ICLR 2019, as used by Chen et al., NeurIPS 2023.
"""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
from numpy.random import RandomState
from PIL import Image

from lmms_eval_stability.tasks.perturbations.image.filters import (
    UNIT,
    Floats,
    Pixels,
    Singles,
    from_hsv,
    gaussian_kernel,
    in_colour,
    row_blocks,
    smooth,
    to_hsv,
    unit_to_pixels,
)

_JPEG = (25, 18, 15, 10, 7)  # quality
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of the distance from the mean
_SATURATE = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))  # factor and summand of S of HSV
_PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # cells per pixel of a 224 x 224 image
# Mean and standard deviation of the layer, sigma of its smoothing, its threshold; strength of water, sigma of mud.
_SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6),
    (0.65, 0.3, 3, 0.68, 0.6),
    (0.65, 0.3, 2, 0.68, 0.5),
    (0.65, 0.3, 1, 0.65, 1.5),
    (0.67, 0.4, 1, 0.65, 1.5),
)
_WATER, _MUD = (175, 238, 238), (63, 42, 20)
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
_OFFICIAL_SIDE = 224


def blank_image(image: Pixels) -> Pixels:
    """Return a white image."""
    return np.full_like(image, 255)


def jpeg_compression(image: Pixels, severity: int) -> Pixels:
    """Encode as JPEG, in Pillow's default subsampling, and decode."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=_JPEG[severity - 1])
    with Image.open(encoded) as decoded:
        return np.array(decoded)


def contrast(image: Pixels, severity: int, *, official_quirks: bool) -> Pixels:
    """Pull every channel towards its mean.

    With ``official_quirks`` the mean has the official code's rounding errors, which may be a level in a plain channel.
    """
    means: Floats = np.array(cv2.mean(image)[:3]) / 255
    if official_quirks:
        means = np.mean(image / 255.0, axis=(0, 1))
    table = (UNIT[:, None] - means) * _CONTRAST[severity - 1] + means
    flatter: Pixels = cv2.LUT(image, unit_to_pixels(table)[None])
    return flatter


def saturate(image: Pixels, severity: int) -> Pixels:
    """Change the saturation of HSV. Severities 4 and 5 tint grey, whose hue counts as 0: red."""
    factor, summand = _SATURATE[severity - 1]
    output = np.empty_like(image)
    for block in row_blocks(*image.shape[:2]):
        hsv = to_hsv(image[block])
        saturation = hsv[..., 1] * np.float32(factor)
        saturation += np.float32(summand)
        hsv[..., 1] = np.minimum(saturation, 1)
        output[block] = from_hsv(hsv)
    return output


def pixelate(image: Pixels, severity: int, *, official_quirks: bool) -> Pixels:
    """Average over cells.

    The official code scales to ``int(224 * c)`` cells a side and from there to 224 x 224, whatever the image's size and
    shape (``official_quirks=True``; the one case in which the size changes). Here the image keeps its size and has as
    many cells, nearly square ones; fewer if it has fewer than 224 x 224 pixels, in proportion. On 224 x 224 both are
    the same.
    """
    height, width = image.shape[:2]
    share = _PIXELATE[severity - 1]
    if official_quirks:
        cells = int(_OFFICIAL_SIDE * share)
        coarse, size = (cells, cells), (_OFFICIAL_SIDE, _OFFICIAL_SIDE)
    else:
        cells = int(min(_OFFICIAL_SIDE, math.sqrt(width * height)) * share)
        aspect, size = math.sqrt(width / height), (width, height)
        columns, rows = (max(1, round(number)) for number in (cells * aspect, cells / aspect))
        coarse = min(columns, width), min(rows, height)
    box = Image.Resampling.BOX
    return np.array(Image.fromarray(image).resize(coarse, box).resize(size, box))


def spatter(image: Pixels, severity: int, rng: RandomState, *, official_quirks: bool) -> Pixels:
    """Splash water (severities 1 to 3) or mud (4 and 5) on the lens.

    Where by chance there is no drop, the image stays; the official code then divides by 0 and the image is black
    (``official_quirks=True``), which happens on small images.
    """
    mean, deviation, sigma, threshold, strength = _SPATTER[severity - 1]
    layer = rng.normal(size=image.shape[:2], loc=mean, scale=deviation)
    layer = smooth(layer, gaussian_kernel(sigma))
    layer[layer < threshold] = 0
    if severity > 3:
        covered = smooth((layer > threshold).astype(np.float32), gaussian_kernel(strength))
        covered[covered < 0.8] = 0
        return _splashed(image, covered, _MUD, 1 - covered)
    water = _water(layer)
    most = water.max()
    if most == 0:
        return np.zeros_like(image) if official_quirks else image.copy()
    return _splashed(image, water / most * np.float32(strength), _WATER, None)


def _water(layer: Floats) -> Singles:
    """Return how much water is where, with lit and shaded edges: (H, W) -> (H, W), in arbitrary units."""
    drops = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = np.minimum(distance, 20)
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    relief = cv2.blur(cv2.filter2D(relief, cv2.CV_8U, _EMBOSS), (3, 3))
    water: Singles = drops.astype(np.float32) * relief
    return water


def _splashed(image: Pixels, amount: Singles, colour: tuple[int, int, int], kept: Singles | None) -> Pixels:
    """Return the image, ``kept`` times itself where given, plus ``amount`` times a colour."""
    unit = UNIT.astype(np.float32)
    output = np.empty_like(image)
    for block in row_blocks(*image.shape[:2]):
        splashed = np.take(unit, image[block])
        if kept is not None:
            splashed *= in_colour(kept[block])
        splashed += cv2.merge([amount[block] * unit[value] for value in colour])
        output[block] = unit_to_pixels(splashed)
    return output
