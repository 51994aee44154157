"""Applying an image perturbation: to a PIL image (`perturb_image`) or to an array (`perturb_array`)."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator, RandomState
from numpy.typing import NDArray
from PIL import Image

from lmms_eval_stability.tasks.perturbations.entries import Level, UnknownPerturbationError, UnreadableInputError
from lmms_eval_stability.tasks.perturbations.image.methods import METHODS

Pixels = NDArray[np.uint8]

MIN_SIDE = 8  # pixels
MAX_SIDE = 32766  # more is beyond OpenCV's interpolation

# Modes that Pillow converts to RGB by way of another only.
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


@cache
def _functions() -> dict[str, Callable[..., Pixels]]:
    """Return what each method does. Imported when first used: the registry alone costs no OpenCV and scipy.

    Every function takes an image and those of `severity`, `rng`, `official_quirks` and `frost_textures` that matter.
    """
    from lmms_eval_stability.tasks.perturbations.image import blur, digital, elastic, frost, noise, weather

    modules = (blur, digital, elastic, frost, noise, weather)
    return {name: next(getattr(module, name) for module in modules if hasattr(module, name)) for name in METHODS}


def perturb_image(
    image: Image.Image,
    method: str,
    severity: int,
    *,
    seed: int,
    official_quirks: bool = False,
    frost_textures: Path | None = None,
) -> Image.Image:
    """Return a perturbed image: RGB, of the same size.

    Args:
        image: of any mode, sides of 8 to 32766 pixels; alpha is dropped, as lmms-eval's tasks do.
        method: name in `METHODS`.
        severity: 1 to the method's number of severities.
        seed: 0 to 2**32 - 1. All random numbers come from ``numpy.random.RandomState(seed)``, in the official order.
        official_quirks: reproduce what the official code does where that is a fault: see docs/perturbations/image.md.
            ``pixelate`` then returns 224 x 224 pixels, ``impulse_noise`` draws from ``numpy.random.default_rng(seed)``.
        frost_textures: folder with the official photographs of frost. Without it ice is drawn, or with
            ``official_quirks`` the photographs are looked for (`check_resources`).

    Raises:
        UnknownPerturbationError: there is no such method or severity.
        UnreadableInputError: the image is too small or too large, or cannot be decoded.
        MissingResourceError: the photographs that frost needs are not there.
    """
    pixels = _pixels_of(image)
    rng: RandomState | Generator = RandomState(seed)
    if official_quirks and method == "impulse_noise":
        rng = np.random.default_rng(seed)
    output = perturb_array(
        pixels, method, severity, rng, official_quirks=official_quirks, frost_textures=frost_textures
    )
    return Image.fromarray(output)


def perturb_array(
    pixels: Pixels,
    method: str,
    severity: int,
    rng: RandomState | Generator,
    *,
    official_quirks: bool = False,
    frost_textures: Path | None = None,
) -> Pixels:
    """Return a perturbed array: (H, W, 3) uint8, RGB, as new memory. See `perturb_image`.

    Args:
        rng: where random numbers come from; advances. A `Generator` is for ``impulse_noise`` alone.
    """
    level = _level(method, severity)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not _fits(*pixels.shape[:2]):
        raise UnreadableInputError(
            f"{method}: an image must be an array of shape (height, width, 3) and type uint8, {MIN_SIDE} to {MAX_SIDE}"
            f" pixels high and wide, not {pixels.shape} of {pixels.dtype}"
        )
    offered = {
        "severity": level.severity,
        "rng": rng,
        "official_quirks": official_quirks,
        "frost_textures": frost_textures,
    }
    function = _functions()[method]
    taken = inspect.signature(function).parameters
    return function(np.ascontiguousarray(pixels), **{name: offered[name] for name in offered if name in taken})


def check_resources(method: str, *, official_quirks: bool = False, frost_textures: Path | None = None) -> None:
    """Make sure that a method's files are there, before a long run begins.

    Raises:
        MissingResourceError: the photographs that ``frost`` needs with ``official_quirks`` are not there.
    """
    _level(method, 1)
    if method == "frost":
        from lmms_eval_stability.tasks.perturbations.image.frost import check_textures

        check_textures(official_quirks=official_quirks, textures=frost_textures)


def _level(method: str, severity: int) -> Level:
    entry = METHODS.get(method)
    if entry is None:
        raise UnknownPerturbationError(f"no image perturbation '{method}'; there are {', '.join(METHODS)}")
    try:
        level = Level(method, operator.index(severity))
    except TypeError:
        level = Level(method, 0)
    if level not in entry.levels:
        raise UnknownPerturbationError(f"{method} has severities 1 to {entry.severities}, not {severity!r}")
    return level


def _fits(*sides: int) -> bool:
    return min(sides) >= MIN_SIDE and max(sides) <= MAX_SIDE


def _pixels_of(image: Image.Image) -> Pixels:
    """Return an image's pixels as RGB: (H, W, 3)."""
    if not isinstance(image, Image.Image):
        raise UnreadableInputError(f"only PIL images are perturbed, not {type(image).__name__}")
    if not _fits(*image.size):
        raise UnreadableInputError(
            f"an image of {image.width} x {image.height} pixels cannot be perturbed: sides must be of {MIN_SIDE} to"
            f" {MAX_SIDE} pixels"
        )
    try:
        if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's conversion to RGB would clip instead of scale
            return _of_integers(np.asarray(image))
        if image.mode in _UNMULTIPLIED:
            image = image.convert(_UNMULTIPLIED[image.mode])
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        named = getattr(image, "filename", "")
        raise UnreadableInputError(f"the image{f' {named}' if named else ''} cannot be decoded: {error}") from error


def _of_integers(values: NDArray[np.generic]) -> Pixels:
    """Return grey pixels of whole numbers: of 8 bits if none is larger, else of 16."""
    numbers = np.clip(values.astype(np.int64), 0, 2**16 - 1)
    grey = (numbers >> 8 if numbers.max() > 255 else numbers).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
