"""Elastic deformation: a random affine map, then every pixel displaced by a smooth random field.

Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis",
ICDAR 2003; constants: Hendrycks and Dietterich, ICLR 2019, as used by Chen et al., NeurIPS 2023.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import fft

from lmms_eval_stability.tasks.perturbations.image.filters import (
    Floats,
    Pixels,
    Singles,
    four_channels,
    gaussian_kernel,
    row_blocks,
    smooth,
    unit_to_pixels,
)

_SIDE = 244  # pixels that the constants are relative to; the official code's, where 224 was meant
# Size of the displacement, sigma of its smoothing, and how far the corners of the affine map move.
_ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
_TRUNCATE = 3.0
_WIDE_SIGMA = 8.0  # from here on smoothing through cosines is faster


def elastic_transform(image: Pixels, severity: int, rng: RandomState, *, official_quirks: bool) -> Pixels:
    """Move three corners of a square about the middle, warp accordingly, then displace every pixel.

    The three corners are those of a square in the middle of the image; the official code takes the image's height for
    its width there, which puts the square off the middle of images that are no squares (``official_quirks=True``). All
    distances are in pixels, whatever the size of the image, in both.
    """
    size, sigma, moved = (_SIDE * constant for constant in _ELASTIC[severity - 1])
    height, width = image.shape[:2]
    middle = (height // 2, width // 2) if official_quirks else (width // 2, height // 2)
    affine = _random_affine(middle, min(height, width) // 3, moved, rng)
    warped = _warped(four_channels(image), affine)
    right = _displacement(height, width, sigma, size, rng)
    down = _displacement(height, width, sigma, size, rng)
    columns = np.arange(width, dtype=np.float32)
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        rows = np.arange(block.start, block.stop, dtype=np.float32)[:, None]
        right[block] += columns
        down[block] += rows
        displaced = cv2.remap(warped, right[block], down[block], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        output[block] = unit_to_pixels(np.asarray(displaced, dtype=np.float32))[..., :3]
    return output


def _random_affine(middle: tuple[int, int], arm: int, moved: float, rng: RandomState) -> Floats:
    """Return the affine map (2, 3), from source to output, that moves three corners of a square at random."""
    x, y = middle
    corners = np.array([[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]], dtype=np.float32)
    affine: Floats = cv2.getAffineTransform(
        corners, corners + rng.uniform(-moved, moved, size=corners.shape).astype(np.float32)
    )
    return affine


def _displacement(height: int, width: int, sigma: float, size: float, rng: RandomState) -> Singles:
    """Return uniform noise of -1 to 1, smoothed with mirrored borders, times ``size``: (H, W)."""
    if sigma >= _WIDE_SIGMA:
        return _widely_smoothed(height, width, sigma, size, rng)
    noise = np.empty((height, width), dtype=np.float32)
    for block in row_blocks(height, width):
        noise[block] = rng.uniform(-1, 1, size=noise[block].shape)
    field = smooth(noise, gaussian_kernel(sigma, _TRUNCATE), cv2.BORDER_REFLECT)
    field *= np.float32(size)
    return field


def _widely_smoothed(height: int, width: int, sigma: float, size: float, rng: RandomState) -> Singles:
    """Return the same for a wide Gaussian, in the basis of cosines (DCT-II).

    A symmetric kernel on mirrored borders multiplies each cosine by a number, which is next to nothing for short waves:
    they are left out, at an error below a hundredth of a pixel.
    """
    rows, columns = (_response(length, sigma) for length in (height, width))
    waves = np.empty((height, len(columns)), dtype=np.float32)
    for block in row_blocks(height, width):
        noise = rng.uniform(-1, 1, size=(block.stop - block.start, width)).astype(np.float32)
        waves[block] = fft.dct(noise, axis=1, norm="ortho")[:, : len(columns)]
    waves = fft.dct(waves, axis=0, norm="ortho")[: len(rows)]
    waves *= (rows[:, None] * columns * size).astype(np.float32)
    waves = fft.idct(waves, n=height, axis=0, norm="ortho")
    field = np.empty((height, width), dtype=np.float32)
    for block in row_blocks(height, width):
        field[block] = fft.idct(waves[block], n=width, axis=1, norm="ortho")
    return field


def _response(length: int, sigma: float) -> Floats:
    """Return by how much the Gaussian multiplies the first cosines of a line of ``length`` pixels."""
    kernel = gaussian_kernel(sigma, _TRUNCATE)
    half = kernel[len(kernel) // 2 :]
    number = min(length, math.ceil(16 * length / sigma) + 16)
    angles = np.pi / length * np.outer(np.arange(number), np.arange(len(half)))
    response: Floats = 2 * (np.cos(angles) @ half) - half[0]
    return response


def _warped(image: Singles, affine: Floats) -> Singles:
    """Return an image under an affine map, as cv2.warpAffine did before OpenCV 5: mirrored borders, positions rounded
    to 1/32 pixel.
    """
    height, width = image.shape[:2]
    inverse = cv2.invertAffineTransform(affine)
    columns = _fixed_point(inverse[:, 0, None] * np.arange(width))  # (2, W): x and y
    rows = _fixed_point(inverse[:, 1, None] * np.arange(height) + inverse[:, 2, None]) + 16  # (2, H)
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        x, y = ((rows[axis, block, None] + columns[axis]) >> 5 for axis in (0, 1))
        whole = np.empty((*x.shape, 2), dtype=np.int16)
        for axis, position in enumerate((x, y)):
            np.clip(position >> 5, -(2**15), 2**15 - 1, out=whole[..., axis], casting="unsafe")
        part = ((y & 31) * 32 + (x & 31)).astype(np.uint16)
        output[block] = cv2.remap(image, whole, part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return output


def _fixed_point(position: Floats) -> NDArray[np.int32]:
    """Return positions in units of 1/1024 pixel; far ones are clipped, so that sums fit."""
    fixed: NDArray[np.int32] = np.clip(np.rint(position * 1024), -(2**29), 2**29).astype(np.int32)
    return fixed
