"""What several perturbations are made of: smoothing, streaks, magnification, and the way back to whole pixel values.

Images are (H, W, 3) uint8 in RGB order, planes (H, W). Work goes block by block of rows where it can, which keeps the
memory of a call at a few times the image and the numbers in the processor's cache. OpenCV's number of threads and all
other global settings stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
FloatPlane = TypeVar("FloatPlane", Floats, Singles)

#: Pixel values from 0 to 1, as the official code computes with.
UNIT: Floats = np.arange(256) / 255.0

# Where single precision stands for exact arithmetic, a value that should be 100 may come out as 99.99999, and would be
# truncated to 99 without this much.
_SLACK = 0.003

_BLOCK_PIXELS = 2**15


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """Yield slices that cut an image of (height, width) into blocks of whole rows, from the top."""
    rows = max(1, _BLOCK_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def to_pixels(values: Singles) -> Pixels:
    """Return values of 0 to 255 as pixels, truncated."""
    flat = values.reshape(len(values), -1)  # OpenCV takes a number for all channels only where there is one channel
    pixels = cv2.subtract(flat, np.array([0.5 - _SLACK]), dtype=cv2.CV_8U)  # rounds and clips
    return np.asarray(pixels, dtype=np.uint8).reshape(values.shape)


def unit_to_pixels(unit: Floats | Singles) -> Pixels:
    """Return values of 0 to 1 as pixels: clipped, then truncated in their own precision. Overwrites ``unit``."""
    np.clip(unit, 0, 1, out=unit)
    unit *= 255
    return unit.astype(np.uint8)


def four_channels(image: Pixels) -> Singles:
    """Return values from 0 to 1 with a fourth channel that says nothing: (H, W, 3) -> (H, W, 4).

    OpenCV interpolates four channels more than twice as fast as three.
    """
    height, width = image.shape[:2]
    unit, output = UNIT.astype(np.float32), np.empty((height, width, 4), dtype=np.float32)
    for block in row_blocks(height, width):
        output[block] = np.take(unit, np.asarray(cv2.cvtColor(image[block], cv2.COLOR_RGB2RGBA), dtype=np.uint8))
    return output


def to_hsv(image: Pixels) -> Singles:
    """Return hue in degrees, saturation and value from 0 to 1: (H, W, 3). Grey has hue 0."""
    unit = image.astype(np.float32)
    unit *= np.float32(1 / 255)
    return np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2HSV), dtype=np.float32)


def from_hsv(hsv: Singles) -> Pixels:
    """Return the pixels of what `to_hsv` returns."""
    rgb = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.float32)
    rgb *= np.float32(255)
    return to_pixels(rgb)


def in_colour(plane: FloatPlane) -> FloatPlane:
    """Return a plane as each of three channels, (H, W) -> (H, W, 3): arithmetic on equal shapes is much faster."""
    return np.asarray(cv2.merge([plane, plane, plane]), dtype=plane.dtype)


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> Floats:
    """Return the weights of a Gaussian, cut off at ``truncate`` standard deviations as scipy.ndimage does."""
    radius = int(truncate * sigma + 0.5)
    kernel: Floats = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    return kernel


def smooth(plane: FloatPlane, kernel: Floats, border: int = cv2.BORDER_REPLICATE) -> FloatPlane:
    """Return a plane convolved with a kernel in both directions, in its own precision.

    Args:
        border: cv2.BORDER_REPLICATE is scipy's mode ``nearest``, cv2.BORDER_REFLECT its ``reflect``.
    """
    return np.asarray(cv2.sepFilter2D(plane, -1, kernel, kernel, borderType=border), dtype=plane.dtype)


def smooth_pixels(image: Pixels, sigma: float, *, official_quirks: bool) -> Pixels:
    """Return an image smoothed by a Gaussian, borders repeated.

    The official code computes with rounding errors of double precision before it truncates, which darkens plain areas
    by a level here and there; ``official_quirks`` repeats its steps (in scipy, through scikit-image).
    """
    if not official_quirks:
        kernel = gaussian_kernel(sigma)
        smoothed = cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        return to_pixels(np.asarray(smoothed, dtype=np.float32))
    output = np.empty_like(image)
    for channel in range(3):
        plane = ndimage.gaussian_filter(np.take(UNIT, image[..., channel]), sigma, mode="nearest")
        output[..., channel] = unit_to_pixels(plane)
    return output


def streak_taps(radius: float, sigma: float, angle: float) -> dict[tuple[int, int], float]:
    """Return ImageMagick's kernel of motion blur: (row offset, column offset) -> weight.

    One half of a Gaussian along a ray that starts at the pixel, ``2 * ceil(radius) + 1`` steps of one pixel, each
    rounded to the nearest pixel (ImageMagick 6, MotionBlurImage).

    Args:
        angle: degrees, clockwise from the direction to the right.
    """
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    theta = np.deg2rad(angle)
    columns = np.ceil(steps * np.cos(theta) - 0.5).astype(int)
    rows = np.ceil(steps * np.sin(theta) - 0.5).astype(int)
    taps: dict[tuple[int, int], float] = {}
    for row, column, weight in zip(rows.tolist(), columns.tolist(), weights.tolist(), strict=True):
        taps[row, column] = taps.get((row, column), 0.0) + weight
    return taps


def streak(image: Pixels, radius: float, sigma: float, angle: float) -> Pixels:
    """Return an image or a plane with ImageMagick's motion blur; borders are repeated. See `streak_taps`."""
    height, width = image.shape[:2]
    taps = streak_taps(radius, sigma, angle)
    rows, columns = zip(*taps, strict=True)
    up, down, left, right = (max(0, n) for n in (-min(rows), max(rows), -min(columns), max(columns)))
    padded = cv2.copyMakeBorder(image, up, down, left, right, cv2.BORDER_REPLICATE)
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        source = padded[block.start : block.stop + up + down].astype(np.float32)
        total = np.zeros_like(image[block], dtype=np.float32)
        for (row, column), weight in taps.items():
            top, start = up + row, left + column
            shifted = source[top : top + len(total), start : start + width]
            cv2.scaleAdd(shifted, weight, total, total)
        output[block] = to_pixels(total)
    return output


@dataclass(frozen=True)
class Axis:
    """Where the pixels of one side of a magnified image come from.

    Attributes:
        start, step: pixel i comes from ``start + i * step``.
        end: the last source pixel.
    """

    start: float
    step: float
    end: int

    @classmethod
    def of(cls, size: int, factor: float, offset: int | None = None) -> Axis:
        """Return the axis of ``size`` pixels that are magnified about their middle.

        ``ceil(size / factor)`` pixels are stretched corner on corner, so that the step is not quite ``1 / factor``.

        Args:
            offset: stretch the pixels from here on and cut to whole pixels, as the official code does.
        """
        cut = math.ceil(size / factor)
        stretched = round(cut * factor)
        step = (cut - 1) / (stretched - 1)
        if offset is None:
            return cls((size - 1) / 2 * (1 - step), step, size - 1)
        return cls(offset + max(0, (stretched - size) // 2) * step, step, offset + cut - 1)

    def neighbours(self, block: slice) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
        """Return for a range of pixels the two source pixels that each lies between, and the share of the second."""
        place = np.minimum(self.start + self.step * np.arange(block.start, block.stop), self.end)
        low = np.floor(place).astype(np.intp)
        return low, np.minimum(low + 1, self.end), place - low


class Magnified:
    """An image or plane magnified about its middle, at its own size, block by block.

    Args:
        official_quirks: As the official clipped_zoom, which cuts the columns at the row's offset: off the middle unless
            the image is a square.
    """

    def __init__(self, height: int, width: int, factor: float, *, official_quirks: bool) -> None:
        offset = (height - math.ceil(height / factor)) // 2 if official_quirks else None
        self._down, self._across = (Axis.of(size, factor, offset) for size in (height, width))

    def rows_of(self, image: Singles, block: slice) -> Singles:
        """Return some rows of a magnified image: (H, W, C) -> (rows, W, C), linear interpolation."""
        down, across = self._down, self._across
        top = down.start + block.start * down.step
        source = np.array([[across.step, 0, across.start], [0, down.step, top]])
        size = (image.shape[1], block.stop - block.start)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        rows = cv2.warpAffine(image, source, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(rows, dtype=np.float32)

    def plane_rows_of(self, plane: Floats, block: slice) -> Floats:
        """Return some rows of a magnified plane, in double precision: a threshold follows. (H, W) -> (rows, W)."""
        low, high, share = self._down.neighbours(block)
        lines = plane[low] * (1 - share[:, None]) + plane[high] * share[:, None]
        low, high, share = self._across.neighbours(slice(0, plane.shape[1]))
        rows: Floats = np.take(lines, low, axis=1) * (1 - share)
        rows += np.take(lines, high, axis=1) * share
        return rows
