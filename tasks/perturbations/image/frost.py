"""Frost: ice over the image, drawn anew for each image, or cut from the official photographs where they are named."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.random import RandomState
from PIL import Image
from scipy import ndimage

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
from lmms_eval_stability.tasks.perturbations.image.filters import Floats, Pixels, row_blocks
from lmms_eval_stability.tasks.perturbations.image.ice import ice

_FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # weight of the image, of the ice

#: Folder with the official photographs, for ``official_quirks`` where no folder is passed.
TEXTURES_VARIABLE = "LMMS_EVAL_STABILITY_FROST_TEXTURES"

# The photographs that the official code draws from, in its order.
_OFFICIAL_SHA256 = {
    "frost1.png": "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
    "frost2.png": "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
    "frost3.png": "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
    "frost4.jpg": "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
    "frost5.jpg": "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
}
_OFFICIAL = tuple(_OFFICIAL_SHA256)
_DISTINCT = ("frost1.png", "frost2.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")


def frost(
    image: Pixels, severity: int, rng: RandomState, *, official_quirks: bool, frost_textures: Path | None = None
) -> Pixels:
    """Add ice: drawn, or a random piece of one of the official photographs.

    The official code never draws the sixth photograph, and its second and third are one picture. Where a photograph is
    smaller than the image, it stretches the three colour channels along with the sides and so adds wrong colours
    (``official_quirks=True``, which needs the photographs). Here the five different ones are used, in their colours.

    Args:
        frost_textures: Folder with the official ``frost1.png`` to ``frost6.jpg``; without it ice is drawn (`ice`).

    Raises:
        MissingResourceError: ``official_quirks`` needs the photographs and there are none, or ``frost_textures`` lacks
            some.
    """
    height, width = image.shape[:2]
    if official_quirks:
        folder = official_textures(frost_textures)
        photograph = _photograph(folder / _OFFICIAL[rng.randint(5)], official=True)
        piece = _official_piece(photograph, height, width, rng)
    elif frost_textures is not None:
        piece = _piece(_photograph(Path(frost_textures) / _DISTINCT[rng.randint(5)]), height, width, rng)
    else:
        piece = ice(height, width, rng)
    image_weight, ice_weight = _FROST[severity - 1]
    values = np.arange(256.0)
    of_image, of_ice = image_weight * values, ice_weight * values
    output = np.empty_like(image)
    for block in row_blocks(height, width):
        icy = np.take(of_image, image[block])
        icy += np.take(of_ice, piece[block])
        output[block] = np.minimum(icy, 255).astype(np.uint8)
    return output


def official_textures(textures: Path | None = None) -> Path:
    """Return the folder with the official photographs: ``textures``, or the folder that the environment variable
    ``LMMS_EVAL_STABILITY_FROST_TEXTURES`` names, or that of an installed imagecorruptions (or imagecorruptions-imaug).

    Raises:
        MissingResourceError: there is none; the message says how to get the photographs.
    """
    named = os.environ.get(TEXTURES_VARIABLE)
    if textures is not None or named:
        return Path(textures or str(named))
    package = importlib.util.find_spec("imagecorruptions")
    for place in (package.submodule_search_locations or []) if package else []:
        if (Path(place) / "frost" / _OFFICIAL[0]).is_file():
            return Path(place) / "frost"
    raise MissingResourceError(
        f"frost with official_quirks needs the official photographs ({_OFFICIAL[0]} ...), which this package does not"
        f" contain: pip install --no-deps imagecorruptions-imaug, or name a folder that has them in {TEXTURES_VARIABLE}"
    )


def check_textures(*, official_quirks: bool, textures: Path | None) -> None:
    """Raise `MissingResourceError` unless the photographs that `frost` will need can be read."""
    if official_quirks:
        folder = official_textures(textures)
        for name in _OFFICIAL:
            _photograph(folder / name, official=True)
    elif textures is not None:
        for name in _DISTINCT:
            _photograph(Path(textures) / name)


@lru_cache(maxsize=8)
def _photograph(file: Path, *, official: bool = False) -> Pixels:
    """Return a photograph, RGB; with ``official`` its bytes have to be those of the official file."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise MissingResourceError(
            f"frost: {file} cannot be read ({error.strerror}); the folder must hold the official photographs"
            f" {', '.join(sorted({*_OFFICIAL, *_DISTINCT}))}"
        ) from error
    if official and hashlib.sha256(content).hexdigest() != _OFFICIAL_SHA256[file.name]:
        raise MissingResourceError(
            f"frost: {file} is not the official photograph of that name, so official_quirks cannot reproduce the"
            " official output; take the files of adarobustness/corruption or imagecorruptions"
        )
    # By Pillow: OpenCV cannot read PNGs in a process where another library brought its own zlib, as decord does.
    try:
        with Image.open(io.BytesIO(content)) as decoded:
            return np.asarray(decoded.convert("RGB"))
    except (OSError, ValueError) as error:
        raise MissingResourceError(f"frost: {file} is not an image: {error}") from error


def _piece(photograph: Pixels, height: int, width: int, rng: RandomState) -> Pixels:
    """Return a random piece of (height, width), of the photograph enlarged where it is smaller."""
    scale = max(1.0, height / photograph.shape[0], width / photograph.shape[1])
    if scale > 1:
        size = max(width, round(photograph.shape[1] * scale)), max(height, round(photograph.shape[0] * scale))
        photograph = cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC)
    top = rng.randint(0, photograph.shape[0] - height + 1)
    left = rng.randint(0, photograph.shape[1] - width + 1)
    return photograph[top : top + height, left : left + width]


def _official_piece(photograph: Pixels, height: int, width: int, rng: RandomState) -> Pixels:
    """Return a random piece as the official code cuts it, its wrong colours included.

    There scipy's cubic spline zoom enlarges all three axes by a whole number, and the first three channels of the many
    are used (in the order of BGR). The spline is a product of one per axis, so mixing the channels first and then
    zooming only what is cut out gives the same numbers.
    """
    factor = max(height // photograph.shape[0], width // photograph.shape[1]) + 1
    rows, columns = photograph.shape[0] * factor, photograph.shape[1] * factor
    top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
    if factor == 1:
        return photograph[top : top + height, left : left + width]
    mixture = ndimage.zoom(np.eye(3), (1, factor), order=3)[:, :3]  # (channels, first three of the enlarged axis)
    steps = [(length - 1) / (length * factor - 1) for length in photograph.shape[:2]]
    piece = np.empty((height, width, 3), dtype=np.uint8)
    for channel in range(3):
        mixed: Floats = photograph[..., ::-1] @ mixture[:, channel]
        offset = [top * steps[0], left * steps[1]]
        zoomed = ndimage.affine_transform(mixed, steps, offset=offset, output_shape=(height, width), order=3)
        piece[..., 2 - channel] = np.clip(zoomed + 0.5, 0, 255).astype(np.uint8)  # as scipy rounds to uint8
    return piece
