"""Weather: snow, frost, fog and brightness.

Constants: Hendrycks and Dietterich, ICLR 2019, as used by Chen et al., NeurIPS 2023. The fog is midpoint displacement
on a torus (the diamond-square algorithm of Fournier, Fussell and Carpenter, 1982).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import RandomState
from scipy import ndimage

from lmms_eval_stability.tasks.perturbations.image.filters import (
    UNIT,
    Floats,
    Magnified,
    Pixels,
    from_hsv,
    in_colour,
    row_blocks,
    streak,
    to_hsv,
    unit_to_pixels,
)

# Mean and standard deviation of the layer, its magnification, its threshold, radius and sigma of the streaks, and how
# much of the image keeps its colour.
_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_FOG = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))  # amount, decay of the displacement
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to V of HSV

_MAP = 256  # side of the square of fog; a power of two


def snow(image: Pixels, severity: int, rng: RandomState, *, official_quirks: bool) -> Pixels:
    """Bleach the image and add a layer of streaked flakes, twice: as it is and turned by 180 degrees.

    The official code turns portraits by 90 degrees and brings them back with a transpose: they come out mirrored, with
    snow that flies sideways (``official_quirks=True``).
    """
    if official_quirks and image.shape[0] > image.shape[1]:
        turned = snow(np.ascontiguousarray(np.rot90(image)), severity, rng, official_quirks=True)
        return np.ascontiguousarray(turned.transpose(1, 0, 2))
    mean, deviation, factor, threshold, radius, sigma, kept = _SNOW[severity - 1]
    height, width = image.shape[:2]
    noise = rng.normal(size=(height, width), loc=mean, scale=deviation)
    view = Magnified(height, width, factor, official_quirks=official_quirks)
    layer = np.empty((height, width), dtype=np.uint8)
    for block in row_blocks(height, width):
        rows = view.plane_rows_of(noise, block)
        rows[rows < threshold] = 0
        layer[block] = unit_to_pixels(rows)
    del noise
    flakes = streak(layer, radius, sigma, rng.uniform(-135, -45))
    turned = flakes[::-1, ::-1]
    unit = UNIT.astype(np.float32)
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        clear = np.take(unit, image[block])
        bleached = np.asarray(cv2.cvtColor(clear, cv2.COLOR_RGB2GRAY), dtype=np.float32)
        bleached *= 1.5
        bleached += 0.5
        snowy = np.maximum(clear, in_colour(bleached))
        snowy *= 1 - kept
        clear *= kept
        snowy += clear
        snowy += in_colour(np.take(unit, flakes[block]) + np.take(unit, turned[block]))
        output[block] = unit_to_pixels(snowy)
    return output


def fog(image: Pixels, severity: int, rng: RandomState) -> Pixels:
    """Add a cloud and scale the sum back to the image's largest value.

    The cloud is a square of 256 x 256 enlarged by a whole number per side and cut from its top left.
    """
    amount, decay = _FOG[severity - 1]
    height, width = image.shape[:2]
    cloud = _plasma(rng, decay)
    wide = _zoomed_rows(_spline(cloud.T, width), width, slice(0, width))
    lines = _spline(wide.T, height)  # (256, W)
    brightest = int(image.max()) / 255
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        foggy = np.take(UNIT, image[block])
        foggy += in_colour(amount * _zoomed_rows(lines, height, block))
        foggy *= brightest
        foggy /= brightest + amount
        output[block] = unit_to_pixels(foggy)
    return output


def _plasma(rng: RandomState, decay: float) -> Floats:
    """Return a cloud, 256 x 256, values from 0 to 1.

    The displacement of a step is uniform with the *square* of the step's amplitude as its bound, as in ImageNet-C.
    """
    cloud = np.zeros((_MAP, _MAP))
    step, amplitude = _MAP, 100.0
    while step >= 2:
        half = step // 2

        def displaced(neighbours: Floats, amplitude: float = amplitude) -> Floats:
            moved: Floats = neighbours / 4 + amplitude * rng.uniform(-amplitude, amplitude, neighbours.shape)
            return moved

        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        cloud[half::step, half::step] = displaced(pairs + np.roll(pairs, -1, axis=1))
        centres = cloud[half::step, half::step]
        vertical = centres + np.roll(centres, 1, axis=0)
        cloud[::step, half::step] = displaced(vertical + (corners + np.roll(corners, -1, axis=1)))
        horizontal = centres + np.roll(centres, 1, axis=1)
        cloud[half::step, ::step] = displaced(horizontal + (corners + np.roll(corners, -1, axis=0)))
        step, amplitude = half, amplitude / decay
    cloud -= cloud.min()
    cloud /= cloud.max()
    return cloud


def _spline(values: Floats, size: int) -> Floats:
    """Return the coefficients of a cubic spline along the rows of (256, n), if these are going to be zoomed."""
    if size < _MAP:
        return np.ascontiguousarray(values)
    coefficients: Floats = ndimage.spline_filter1d(values, order=3, axis=0, mode="mirror")
    return coefficients


def _zoomed_rows(coefficients: Floats, size: int, block: slice) -> Floats:
    """Return some rows of a cubic spline zoomed by the whole number ``size // 256 + 1``: (256, n) -> (rows, n).

    Corner on corner, as scipy.ndimage.zoom, which takes 16 points for every pixel where two times 4 do.
    """
    if size < _MAP:
        return coefficients[block]
    place = np.arange(block.start, block.stop) * ((_MAP - 1) / (_MAP * (size // _MAP + 1) - 1))
    start = np.floor(place).astype(np.intp)
    share = place - start
    rows = np.zeros((len(place), coefficients.shape[1]))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(share - tap)
        near, far = 2 / 3 - distance**2 * (1 - distance / 2), np.maximum(2 - distance, 0) ** 3 / 6
        index = np.abs(start + tap)
        index = np.where(index < _MAP, index, 2 * (_MAP - 1) - index)  # mirrored
        rows += np.where(distance < 1, near, far)[:, None] * coefficients[index]
    return rows


def brightness(image: Pixels, severity: int) -> Pixels:
    """Raise the value of HSV."""
    output = np.empty_like(image)
    for block in row_blocks(*image.shape[:2]):
        hsv = to_hsv(image[block])
        hsv[..., 2] += np.float32(_BRIGHTNESS[severity - 1])
        np.minimum(hsv[..., 2], 1, out=hsv[..., 2])
        output[block] = from_hsv(hsv)
    return output
