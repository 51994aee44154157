"""Noise in single pixels: impulse, Gaussian, shot and speckle.

Constants: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019, as used by Chen et al., NeurIPS 2023. Random numbers are drawn in the official order, and values are computed
in double precision: outputs equal the official ones.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator, RandomState

from lmms_eval_stability.tasks.perturbations.image.filters import UNIT, Pixels, row_blocks, unit_to_pixels

_IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of values that are replaced
_GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of values from 0 to 1
_SHOT = (60, 25, 12, 5, 3)  # photons for the value 1
_SPECKLE = (0.15, 0.2, 0.35, 0.45, 0.6)  # standard deviation, relative to the value


def impulse_noise(image: Pixels, severity: int, rng: RandomState | Generator) -> Pixels:
    """Replace some values by 0 or 255, each with the same chance, every channel for itself.

    The official code calls scikit-image, which draws from an unseeded `numpy.random.Generator`; one may be passed.
    """
    output = image.copy()
    hit = np.empty(image.shape, dtype=np.uint8)
    blocks = list(row_blocks(*image.shape[:2]))
    for block in blocks:
        hit[block] = rng.random(hit[block].shape) <= _IMPULSE[severity - 1]
    for block in blocks:
        salt = (rng.random(hit[block].shape) <= 0.5).view(np.uint8) * np.uint8(255)
        lines = (-1, salt.shape[1] * 3)  # OpenCV takes a mask of one channel
        cv2.copyTo(salt.reshape(lines), hit[block].reshape(lines), output[block].reshape(lines))
    return output


def gaussian_noise(image: Pixels, severity: int, rng: RandomState) -> Pixels:
    """Add normal noise."""
    output = np.empty_like(image)
    for block in row_blocks(*image.shape[:2]):
        noisy = rng.normal(scale=_GAUSSIAN[severity - 1], size=image[block].shape)
        noisy += image[block] / 255.0
        output[block] = unit_to_pixels(noisy)
    return output


def shot_noise(image: Pixels, severity: int, rng: RandomState) -> Pixels:
    """Count photons: a Poisson number whose mean is the value times a constant."""
    photons = _SHOT[severity - 1]
    expected = UNIT * photons
    values = unit_to_pixels(np.arange(photons + 1) / photons)  # of every count; more photons are as white as `photons`
    output = np.empty_like(image)
    for block in row_blocks(*image.shape[:2]):
        counted = rng.poisson(np.take(expected, image[block]))
        output[block] = np.take(values, counted, mode="clip")
    return output


def speckle_noise(image: Pixels, severity: int, rng: RandomState) -> Pixels:
    """Add normal noise in proportion to the value."""
    output = np.empty_like(image)
    for block in row_blocks(*image.shape[:2]):
        noisy = rng.normal(scale=_SPECKLE[severity - 1], size=image[block].shape)
        clean = image[block] / 255.0
        noisy *= clean
        noisy += clean
        output[block] = unit_to_pixels(noisy)
    return output
