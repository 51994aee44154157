"""Input of the image methods that is hostile, and files that are missing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from lmms_eval_stability.tasks.perturbations.entries import (
    MissingResourceError,
    UnknownPerturbationError,
    UnreadableInputError,
)
from lmms_eval_stability.tasks.perturbations.image import METHODS, check_resources, perturb_array, perturb_image
from lmms_eval_stability.tasks.perturbations.image.frost import TEXTURES_VARIABLE

Pixels = NDArray[np.uint8]


def noise(width: int, height: int) -> Pixels:
    return np.random.RandomState(0).randint(0, 256, size=(height, width, 3)).astype(np.uint8)


def perturbed(source: Pixels, method: str) -> Pixels:
    return np.asarray(perturb_image(Image.fromarray(source), method, 1, seed=0))


def test_sixteen_bits_are_scaled_and_alpha_is_dropped() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    expected = perturbed(np.repeat(grey[..., None], 3, axis=2), "contrast")
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    assert np.array_equal(perturb_image(wide, "contrast", 1, seed=0), expected)
    assert np.array_equal(perturb_image(Image.fromarray(grey.astype(np.int32) * 257), "contrast", 1, seed=0), expected)
    assert np.array_equal(perturb_image(Image.fromarray(grey.astype(np.int32)), "contrast", 1, seed=0), expected)
    colours = noise(12, 10)
    clear = Image.fromarray(np.dstack([colours, np.zeros((10, 12), np.uint8)]))
    assert np.array_equal(perturb_image(clear, "contrast", 1, seed=0), perturbed(colours, "contrast"))


def test_unknown_methods_and_severities_are_named() -> None:
    image = Image.new("RGB", (9, 9))
    with pytest.raises(UnknownPerturbationError, match=r"'fogg'.*impulse_noise, gaussian_noise.*blank_image"):
        perturb_image(image, "fogg", 1, seed=0)
    for severity in (0, 6, -1, 1.5, None, "1"):
        with pytest.raises(UnknownPerturbationError, match="fog has severities 1 to 5"):
            perturb_image(image, "fog", severity, seed=0)  # type: ignore[arg-type]
    with pytest.raises(UnknownPerturbationError, match="blank_image has severities 1 to 1, not 2"):
        perturb_image(image, "blank_image", 2, seed=0)
    assert perturb_image(image, "fog", np.int64(2), seed=0).size == (9, 9)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 1), (500, 3), (32767, 8), (8, 40_000)])
def test_images_that_are_too_small_or_too_large_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableInputError, match=f"{size[0]} x {size[1]}"):
        perturb_image(Image.new("RGB", size), "contrast", 1, seed=0)


def test_broken_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # lmms-eval sets it for the whole process
    encoded = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(encoded, "PNG")
    broken = tmp_path / "broken.png"
    broken.write_bytes(encoded.getvalue()[:3000])
    with Image.open(broken) as image, pytest.raises(UnreadableInputError, match=r"broken\.png cannot be decoded"):
        perturb_image(image, "contrast", 1, seed=0)
    with pytest.raises(UnreadableInputError, match="not ndarray"):
        perturb_image(noise(9, 9), "contrast", 1, seed=0)  # type: ignore[arg-type]
    closed = Image.open(io.BytesIO(encoded.getvalue()))
    closed.close()
    with pytest.raises(UnreadableInputError):
        perturb_image(closed, "contrast", 1, seed=0)
    for array in (noise(9, 9)[..., 0], noise(9, 9).astype(np.float32), noise(7, 9), np.zeros((9, 9, 4), np.uint8)):
        with pytest.raises(UnreadableInputError, match="height, width, 3"):
            perturb_array(array, "contrast", 1, np.random.RandomState(0))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="Seed"):
        perturb_image(Image.new("RGB", (9, 9)), "fog", 1, seed=seed)


# --- photographs of frost ----------------------------------------------------------------------------------------


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """Pictures under the names of the photographs, each of one colour of its own."""
    for number in range(1, 7):
        file = tmp_path / f"frost{number}.{'png' if number < 4 else 'jpg'}"
        Image.new("RGB", (50, 30), (10 * number, 20 * number, 30 * number)).save(file, quality=100, subsampling=0)
    return tmp_path


@pytest.mark.parametrize(("width", "height"), [(20, 16), (120, 16), (16, 120), (300, 200)])
def test_frost_from_named_photographs(textures: Path, width: int, height: int) -> None:
    """All pictures but the third, which is the second once more, in their own colours, also on larger images."""
    black = Image.new("RGB", (width, height))
    seen = set()
    for seed in range(40):
        output = np.asarray(perturb_image(black, "frost", 1, seed=seed, frost_textures=textures)).reshape(-1, 3)
        number = round(float(output[:, 2].mean()) / 0.4 / 30)
        assert np.abs(output - 0.4 * number * np.array([10, 20, 30])).max() <= 2
        seen.add(number)
    assert seen == {1, 2, 4, 5, 6}


def test_photographs_that_are_missing_or_not_official(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(noise(20, 20))
    check_resources("frost", frost_textures=textures)
    check_resources("frost")
    with pytest.raises(MissingResourceError, match=r"frost\d\.\w+ is not the official photograph"):
        perturb_image(image, "frost", 1, seed=0, official_quirks=True, frost_textures=textures)
    with pytest.raises(MissingResourceError, match="not the official photograph"):
        check_resources("frost", official_quirks=True, frost_textures=textures)
    empty = tmp_path / "empty"
    empty.mkdir()
    for quirks in (False, True):
        with pytest.raises(MissingResourceError, match=r"cannot be read.*frost1\.png"):
            check_resources("frost", official_quirks=quirks, frost_textures=empty)
    (empty / "frost1.png").write_bytes(b"no picture")
    with pytest.raises(MissingResourceError, match="not an image"):
        check_resources("frost", frost_textures=empty)
    monkeypatch.setenv(TEXTURES_VARIABLE, str(textures))
    with pytest.raises(MissingResourceError, match="not the official photograph"):
        check_resources("frost", official_quirks=True)
    monkeypatch.delenv(TEXTURES_VARIABLE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingResourceError, match=f"pip install --no-deps.*{TEXTURES_VARIABLE}"):
        perturb_image(image, "frost", 1, seed=0, official_quirks=True)
    for method in METHODS:
        if method != "frost":
            check_resources(method, official_quirks=True)
