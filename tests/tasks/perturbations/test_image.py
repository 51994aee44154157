"""The image methods: their list, their determinism, any image at any level, and what is corrected by default."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lmms_eval_stability.tasks.perturbations.entries import Level
from lmms_eval_stability.tasks.perturbations.image import (
    METHODS,
    PAPER_96,
    perturb_array,
    perturb_image,
)
from lmms_eval_stability.tasks.perturbations.image.blur import _exchanged
from lmms_eval_stability.tasks.perturbations.image.ice import ice
from lmms_eval_stability.tasks.perturbations.sets import levels_of

Pixels = NDArray[np.uint8]

#: Table of image corruptions of Chen et al. 2023, as Sun et al. 2025 (table 9) repeat it, and our names.
PAPER = (
    ("Impulse", "impulse_noise", "noise"),
    ("Gaussian", "gaussian_noise", "noise"),
    ("Shot", "shot_noise", "noise"),
    ("Speckle", "speckle_noise", "noise"),
    ("Zoom", "zoom_blur", "blur"),
    ("Defocus", "defocus_blur", "blur"),
    ("Motion", "motion_blur", "blur"),
    ("Frosted Glass", "glass_blur", "blur"),
    ("Gaussian Blur", "gaussian_blur", "blur"),
    ("JPEG", "jpeg_compression", "digital"),
    ("Contrast", "contrast", "digital"),
    ("Elastic", "elastic_transform", "digital"),
    ("Saturate", "saturate", "digital"),
    ("Spatter", "spatter", "digital"),
    ("Pixelate", "pixelate", "digital"),
    ("Snow", "snow", "weather"),
    ("Frost", "frost", "weather"),
    ("Fog", "fog", "weather"),
    ("Brightness", "brightness", "weather"),
    ("Blank", "blank_image", "blank"),
)
MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "La",
    "PA",
    "RGBX",
    "RGBa",
    "I;16",
)


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, size=(height, width, 3)).astype(np.uint8)


def photo(width: int, height: int) -> Pixels:
    """A smooth picture, dark on the left and light on the right."""
    small = np.random.RandomState(1).uniform(-40, 40, size=(9, 12, 3)).astype(np.float32)
    ramp = np.linspace(60, 200, width, dtype=np.float32)[None, :, None]
    return np.clip(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) + ramp, 0, 255).astype(np.uint8)


def perturbed(source: Pixels, method: str, severity: int = 1, *, seed: int = 0, quirks: bool = False) -> Pixels:
    image = perturb_image(Image.fromarray(source), method, severity, seed=seed, official_quirks=quirks)
    return np.asarray(image)


def strength(source: Pixels, output: Pixels) -> float:
    return float(np.abs(source.astype(float) - output).mean())


# --- the list ----------------------------------------------------------------------------------------------------


def test_methods_are_the_papers_20_with_96_levels() -> None:
    assert [(entry.paper_name, name, entry.group) for name, entry in METHODS.items()] == list(PAPER)
    for name, entry in METHODS.items():
        assert entry.name == name
        assert entry.modality == "image"
        assert entry.needs == ()
        assert entry.source.endswith(f"corruption_methods.py: {name}")


def test_paper_96_is_fixed() -> None:
    expected = [Level(name, severity) for _, name, _ in PAPER for severity in range(1, 6) if name != "blank_image"]
    expected.append(Level("blank_image", 1))
    assert len(expected) == 96
    assert list(PAPER_96) == expected
    assert levels_of("paper-96", "image") == PAPER_96


def test_the_list_costs_no_image_library() -> None:
    code = (
        "import sys; from lmms_eval_stability.tasks.perturbations.image import METHODS;"
        "print(sorted({'cv2', 'scipy', 'torch', 'lmms_eval'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# --- every level -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_level_keeps_the_size_and_changes_the_image(method: str) -> None:
    for width, height in ((96, 64), (50, 81)):
        source = photo(width, height)
        for level in METHODS[method].levels:
            output = perturbed(source, method, level.severity)
            assert output.shape == source.shape
            assert not np.array_equal(output, source)


@pytest.mark.parametrize("method", METHODS)
def test_same_key_same_output_and_nothing_else_decides(method: str) -> None:
    """Deterministic methods ignore the seed, the others do not; no global generator or setting plays a part."""
    source = photo(72, 60)
    outputs = []
    for global_seed, threads in ((1, 1), (2, 2)):
        np.random.seed(global_seed)
        before, cv2_before = np.random.get_state()[1].tolist(), cv2.getNumThreads()  # type: ignore[union-attr]
        cv2.setNumThreads(threads)
        outputs.append(perturbed(source, method, 1, seed=7))
        assert cv2.getNumThreads() == threads
        cv2.setNumThreads(cv2_before)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    assert np.array_equal(*outputs)
    others = [perturbed(source, method, 1, seed=seed) for seed in (8, 9, 10)]
    assert METHODS[method].deterministic == all(np.array_equal(outputs[0], other) for other in others)


@pytest.mark.parametrize("method", METHODS)
def test_the_input_stays_and_the_output_is_memory_of_its_own(method: str) -> None:
    source = photo(40, 50)
    copy = source.copy()
    output = perturb_array(source, method, 1, np.random.RandomState(0))
    assert np.array_equal(source, copy)
    assert not np.shares_memory(output, source)


@pytest.mark.parametrize("method", METHODS)
def test_a_view_is_as_good_as_an_array(method: str) -> None:
    large = noise(60, 50)
    view = large[5:45:2, 3:43:2]
    expected = perturb_array(view.copy(), method, 1, np.random.RandomState(0))
    assert np.array_equal(perturb_array(view, method, 1, np.random.RandomState(0)), expected)


#: Not so: warps and splashes of different kinds, and ice that may be darker or lighter than the image.
UNORDERED = ("elastic_transform", "saturate", "spatter", "snow", "frost", "blank_image")


@pytest.mark.parametrize("method", [name for name in METHODS if name not in UNORDERED])
def test_higher_severities_change_more(method: str) -> None:
    source = photo(320, 240)
    changes = [strength(source, perturbed(source, method, severity, seed=3)) for severity in (1, 3, 5)]
    assert changes == sorted(changes)
    assert changes[0] < changes[2]


@pytest.mark.parametrize(("width", "height"), [(8, 8), (8, 9), (9, 8), (8, 300), (300, 8), (17, 16), (257, 256)])
@pytest.mark.parametrize("quirks", [False, True])
def test_every_level_takes_every_size(width: int, height: int, quirks: bool) -> None:
    for source in (
        noise(width, height),
        np.zeros((height, width, 3), np.uint8),
        np.full((height, width, 3), 255, np.uint8),
    ):
        for level in PAPER_96:
            if level.method == "frost" and quirks:
                continue  # needs the photographs: tested at small sizes with the vectors
            output = perturbed(source, level.method, level.severity, seed=5, quirks=quirks)
            square = quirks and level.method == "pixelate"
            assert output.shape == ((224, 224, 3) if square else source.shape), level


@pytest.mark.parametrize("method", METHODS)
def test_the_longest_images(method: str) -> None:
    for width, height in ((32766, 8), (8, 32766)):
        source = noise(width, height)
        for quirks in (False, method != "frost"):
            output = perturbed(source, method, 1, quirks=quirks)
            assert output.shape == ((224, 224, 3) if quirks and method == "pixelate" else source.shape)


def test_threads_do_not_disturb_each_other() -> None:
    source = photo(64, 48)
    levels = [level for level in PAPER_96 if level.severity in (1, 4)] * 3
    expected = [perturbed(source, level.method, level.severity, seed=5) for level in levels]
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda level: perturbed(source, level.method, level.severity, seed=5), levels)
    assert all(np.array_equal(*pair) for pair in zip(expected, made, strict=True))


@given(
    st.integers(8, 70),
    st.integers(8, 70),
    st.sampled_from(MODES),
    st.sampled_from(PAPER_96),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_size_mode_level_and_seed(width: int, height: int, mode: str, level: Level, seed: int) -> None:
    image = in_mode(noise(width, height, seed % 1000), mode)
    assert image.mode == mode
    output = perturb_image(image, level.method, level.severity, seed=seed)
    assert output.mode == "RGB"
    assert output.size == image.size
    again = perturb_image(image.copy(), level.method, level.severity, seed=seed)
    assert output.tobytes() == again.tobytes()


def in_mode(pixels: Pixels, mode: str) -> Image.Image:
    image = Image.fromarray(pixels)
    if mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "RGBX"):
        if mode == "LAB":
            return Image.frombytes("LAB", image.size, image.tobytes())
        return image.convert(mode)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    via = {"La": "LA", "PA": "LA", "RGBa": "RGBA"}[mode]
    return image.convert(via).convert(mode)


# --- what is corrected -------------------------------------------------------------------------------------------


def test_portraits_are_mirrored_by_official_snow_alone() -> None:
    source = photo(40, 60)  # dark left, light right
    for severity in range(1, 6):
        for quirks in (False, True):
            output = perturbed(source, "snow", severity, quirks=quirks).astype(float)
            left, right = output[:, :10].mean(), output[:, -10:].mean()
            assert (left > right) == quirks, severity


def test_snow_falls_in_portraits() -> None:
    """Streaks are longer than they are wide: neighbours above and below are more alike than those at the sides."""
    grey = np.full((160, 100, 3), 30, np.uint8)
    for quirks in (False, True):
        output = perturbed(grey, "snow", 3, seed=1, quirks=quirks).astype(float)
        down, across = (np.abs(np.diff(output, axis=axis)).mean() for axis in (0, 1))
        assert (down < across) != quirks


@pytest.mark.parametrize(("width", "height"), [(120, 80), (80, 120), (81, 40)])
def test_zoom_is_about_the_middle(width: int, height: int) -> None:
    """A symmetric picture stays so; not with the official code, which cuts the columns where it cuts the rows."""
    quarter = photo(width, height)
    source = np.maximum(quarter, quarter[:, ::-1])
    source = np.maximum(source, source[::-1])
    for severity in range(1, 6):
        output = perturbed(source, "zoom_blur", severity).astype(int)
        assert np.abs(output - output[:, ::-1]).max() <= 1
        assert np.abs(output - output[::-1]).max() <= 1
    official = perturbed(source, "zoom_blur", 5, quirks=True).astype(int)
    assert np.abs(official - official[:, ::-1]).max() > 3


def test_pixelate_keeps_shape_and_equals_the_official_output_at_its_size() -> None:
    circle = Image.new("RGB", (600, 300))
    ImageDraw.Draw(circle).ellipse((200, 50, 400, 250), fill="white")
    assert perturb_image(circle, "pixelate", 5, seed=0).size == (600, 300)
    assert perturb_image(circle, "pixelate", 5, seed=0, official_quirks=True).size == (224, 224)
    square = noise(224, 224)
    for severity in range(1, 6):
        assert np.array_equal(
            perturbed(square, "pixelate", severity), perturbed(square, "pixelate", severity, quirks=True)
        )


def test_pixelate_has_the_official_number_of_nearly_square_cells() -> None:
    output = perturbed(noise(640, 480), "pixelate", 3).astype(int)
    columns = 1 + np.count_nonzero(np.abs(np.diff(output, axis=1)).sum(axis=(0, 2)))
    rows = 1 + np.count_nonzero(np.abs(np.diff(output, axis=0)).sum(axis=(1, 2)))
    assert abs(columns * rows / 89**2 - 1) < 0.02
    assert abs((640 / columns) / (480 / rows) - 1) < 0.02


def test_glass_exchanges_pixels_where_the_official_one_copies() -> None:
    source = noise(40, 30)
    packed = np.array([1, 256, 65536])
    before = np.sort(source.reshape(-1, 3) @ packed)
    exchanged, copied = (
        _exchanged(source, 3, 2, np.random.RandomState(0), official_quirks=quirks) for quirks in (False, True)
    )
    assert not np.array_equal(exchanged, source)
    assert np.array_equal(np.sort(exchanged.reshape(-1, 3) @ packed), before)
    assert set((copied.reshape(-1, 3) @ packed).tolist()) < set(before.tolist())


def test_spatter_without_a_drop_leaves_the_image() -> None:
    """The official code divides 0 by 0 then, and the image turns black."""
    source = photo(16, 16)
    seen = {True: 0, False: 0}
    for seed in range(60):
        official = perturbed(source, "spatter", 1, seed=seed, quirks=True)
        corrected = perturbed(source, "spatter", 1, seed=seed)
        empty = not official.any()
        seen[empty] += 1
        assert np.array_equal(corrected, source if empty else official)
    assert min(seen.values()) > 0


def test_plain_areas_stay_plain_under_blur() -> None:
    for value in range(256):
        plain = np.full((12, 12, 3), value, np.uint8)
        for method in ("gaussian_blur", "glass_blur", "motion_blur", "defocus_blur"):
            assert np.array_equal(perturbed(plain, method, 2), plain), (method, value)


def test_drawn_ice_is_pale_cold_and_different_every_time() -> None:
    pictures = [ice(120, 160, np.random.RandomState(seed)).astype(float) for seed in range(20)]
    for picture in pictures:
        red, _, blue = picture.mean(axis=(0, 1))
        assert blue > red
        assert 80 < picture.mean() < 220
        assert 10 < picture.std(axis=(0, 1)).mean() < 50
    assert len({picture.tobytes() for picture in pictures}) == 20
