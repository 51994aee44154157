"""Blur: zoom, defocus, motion, frosted glass and Gaussian.

Constants: Hendrycks and Dietterich, ICLR 2019, as used by Chen et al., NeurIPS 2023. The official code calls
scikit-image, scipy and ImageMagick; here OpenCV does the work.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy.linalg.lapack import dlaswp

from lmms_eval_stability.tasks.perturbations.image.filters import (
    UNIT,
    Floats,
    Magnified,
    Pixels,
    four_channels,
    row_blocks,
    smooth_pixels,
    streak,
    to_pixels,
    unit_to_pixels,
)

Indices = NDArray[np.int32]

# Magnifications that are averaged. `arange` with its rounding errors decides how many there are: 11, 16, 11, 13, 11.
_ZOOM = tuple(
    np.arange(1, end, step) for end, step in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
)
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius of the disk, sigma of its soft edge
_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma
_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, largest displacement, passes
_GAUSSIAN = (1, 2, 3, 4, 6)  # sigma


def zoom_blur(image: Pixels, severity: int, *, official_quirks: bool) -> Pixels:
    """Average the image with itself magnified about its middle.

    With ``official_quirks`` the magnified part is off the middle of images that are no squares, and portraits are
    turned first (see `Magnified`).
    """
    if official_quirks and image.shape[0] > image.shape[1]:
        turned = zoom_blur(np.ascontiguousarray(np.rot90(image)), severity, official_quirks=True)
        return np.ascontiguousarray(np.rot90(turned, -1))
    height, width = image.shape[:2]
    factors = _ZOOM[severity - 1]
    views = [Magnified(height, width, factor, official_quirks=official_quirks) for factor in factors]
    source = four_channels(image)
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        total = np.zeros_like(source[block])
        for view in views:
            total += view.rows_of(source, block)
        total += source[block]
        total /= len(views) + 1
        output[block] = unit_to_pixels(total)[..., :3]
    return output


def defocus_blur(image: Pixels, severity: int, *, official_quirks: bool) -> Pixels:
    """Average over a disk with a soft edge.

    The official code truncates rounding errors, as in `smooth_pixels`: ``official_quirks`` repeats its steps.
    """
    radius, softness = _DEFOCUS[severity - 1]
    reach, size = (8, 3) if radius <= 8 else (radius, 5)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    disk = np.asarray(cv2.GaussianBlur(disk / disk.sum(), (size, size), sigmaX=softness), dtype=np.float32)
    if not official_quirks:
        margin = max(0, reach - radius - size // 2)  # nothing but zeros, which cost time
        disk = disk[margin : len(disk) - margin, margin : len(disk) - margin]
        return to_pixels(np.asarray(cv2.filter2D(image.astype(np.float32), -1, disk), dtype=np.float32))
    output = np.empty_like(image)
    for channel in range(3):
        plane = cv2.filter2D(np.take(UNIT, image[..., channel]), -1, disk)
        output[..., channel] = unit_to_pixels(np.asarray(plane, dtype=np.float64))
    return output


def motion_blur(image: Pixels, severity: int, rng: RandomState) -> Pixels:
    """Streak the image along one direction, at most 45 degrees from the horizontal (see `streak_taps`)."""
    radius, sigma = _MOTION[severity - 1]
    return streak(image, radius, sigma, rng.uniform(-45, 45))


def gaussian_blur(image: Pixels, severity: int, *, official_quirks: bool) -> Pixels:
    """Smooth with a Gaussian. For ``official_quirks`` see `smooth_pixels`."""
    return smooth_pixels(image, _GAUSSIAN[severity - 1], official_quirks=official_quirks)


def glass_blur(image: Pixels, severity: int, rng: RandomState, *, official_quirks: bool) -> Pixels:
    """Smooth, exchange pixels with neighbours drawn at random, row by row from the bottom right, and smooth again.

    The official code means to swap, but its two assignments work on views of one array, so a pixel only receives its
    neighbour's value (``official_quirks=True``). Pixels nearer to the border than the largest displacement stay.
    """
    sigma, reach, passes = _GLASS[severity - 1]
    image = smooth_pixels(image, sigma, official_quirks=official_quirks)
    image = _exchanged(image, reach, passes, rng, official_quirks=official_quirks)
    return smooth_pixels(image, sigma, official_quirks=official_quirks)


def _exchanged(image: Pixels, reach: int, passes: int, rng: RandomState, *, official_quirks: bool) -> Pixels:
    """Return an image whose pixels have been exchanged with neighbours, ``passes`` times.

    Positions count backwards from the bottom right, where the official code begins; doubles hold any of them exactly.
    """
    height, width = image.shape[:2]
    origins = np.arange(height * width - 1, -1, -1, dtype=np.float64)
    for _ in range(passes):
        neighbours = _neighbours(height, width, reach, rng)
        origins = _copied(origins, neighbours) if official_quirks else _swapped(origins, neighbours)
        del neighbours
    indices = origins[::-1].astype(np.intp)
    del origins
    packed = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA).view(np.uint32).ravel()
    exchanged = np.take(packed, indices).view(np.uint8).reshape(height, width, 4)
    return np.asarray(cv2.cvtColor(exchanged, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def _neighbours(height: int, width: int, reach: int, rng: RandomState) -> Indices:
    """Return the position of each pixel's neighbour, (N,); positions count backwards from the bottom right.

    Pixels at the border are their own neighbours.
    """
    positions = np.arange(height * width, dtype=np.int32).reshape(height, width)
    inner = positions[reach - 1 : height - 1 - reach, reach - 1 : width - 1 - reach]
    for block in row_blocks(*inner.shape) if inner.size else ():
        shift = rng.randint(-reach, reach, size=(*inner[block].shape, 2))
        inner[block] -= (shift[..., 1] * width + shift[..., 0]).astype(np.int32)
    return positions.ravel()


def _swapped(values: Floats, neighbours: Indices) -> Floats:
    """Return ``values`` after exchanging each with its neighbour's, one after the other, in ascending order.

    A sequence of exchanges is what LAPACK calls row interchanges (laswp). Overwrites ``values``.
    """
    swapped: Floats = dlaswp(values[:, None], neighbours, overwrite_a=1)[:, 0]
    return swapped


def _copied(values: Floats, neighbours: Indices) -> Floats:
    """Return ``values`` after setting each to its neighbour's, one after the other, in ascending order.

    A neighbour that comes before has been set already, to its own neighbour's value, and so on: each position has a
    chain of predecessors and takes what is read at its end. Following all chains at once halves them with each step.
    """
    place = np.arange(len(values), dtype=np.int32)
    follows = np.where(neighbours < place, neighbours, place)
    chained = np.flatnonzero(neighbours < place)
    while True:
        further = follows[follows[chained]]
        if np.array_equal(further, follows[chained]):
            copied: Floats = values[neighbours[follows]]
            return copied
        follows[chained] = further
