"""The fast steps of the image methods against slow ones that say the same plainly."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from lmms_eval_stability.tasks.perturbations.image import blur, elastic, frost, perturb_array, weather
from lmms_eval_stability.tasks.perturbations.image.filters import (
    Magnified,
    gaussian_kernel,
    row_blocks,
    smooth,
    smooth_pixels,
    streak,
    streak_taps,
)

Pixels = NDArray[np.uint8]


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    return RandomState(seed).randint(0, 256, size=(height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (7, 200_000), (480, 640), (513, 97)])
def test_blocks_cover_all_rows_once(size: tuple[int, int]) -> None:
    rows = [row for block in row_blocks(*size) for row in range(block.start, block.stop)]
    assert rows == list(range(size[0]))


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize(("reach", "passes"), [(1, 2), (2, 1), (1, 3), (3, 2), (4, 2)])
def test_exchange_is_the_loop_over_pixels(reach: int, passes: int, quirks: bool) -> None:
    """From the bottom right, pixel by pixel, drawing two numbers for each; with swaps, or with copies."""
    for width, height in ((30, 23), (8, 9), (12, 40)):
        image = noise(width, height)
        made = blur._exchanged(image, reach, passes, RandomState(3), official_quirks=quirks)
        expected, rng = image.tolist(), RandomState(3)
        for _ in range(passes):
            for row in range(height - reach, reach, -1):
                for column in range(width - reach, reach, -1):
                    dx, dy = rng.randint(-reach, reach, size=2)
                    there = expected[row + dy][column + dx]
                    if not quirks:
                        expected[row + dy][column + dx] = expected[row][column]
                    expected[row][column] = there
        assert made.tolist() == expected


def test_copies_follow_long_chains() -> None:
    """Each takes its predecessor's value, so all end with the first one's."""
    neighbours = np.maximum(np.arange(1000) - 1, 0).astype(np.int32)
    assert not blur._copied(np.arange(1000.0), neighbours).any()


@pytest.mark.parametrize("sigma", [0.7, 1.5, 6.0])
def test_smoothing_is_scipys(sigma: float) -> None:
    for size in ((40, 60), (8, 8), (5, 90)):
        plane = RandomState(0).uniform(size=size)
        for truncate in (3.0, 4.0):
            expected = ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=truncate)
            np.testing.assert_allclose(smooth(plane, gaussian_kernel(sigma, truncate)), expected, atol=1e-12)
    image = noise(50, 30)
    fast, official = (smooth_pixels(image, sigma, official_quirks=quirks).astype(int) for quirks in (False, True))
    assert np.abs(fast - official).max() <= 1


def test_defocus_is_the_official_one_but_for_its_rounding_errors() -> None:
    for image in (noise(60, 40), noise(8, 9), noise(21, 15)):
        for severity in range(1, 6):
            official, default = (
                perturb_array(image, "defocus_blur", severity, RandomState(0), official_quirks=quirks).astype(int)
                for quirks in (True, False)
            )
            assert np.abs(official - default).max() <= 1
            assert np.mean(official != default) < 0.06  # means of 29 pixels are often whole numbers


@pytest.mark.parametrize("sigma", [170.8, 19.52, 9.0])
@pytest.mark.parametrize(("width", "height"), [(8, 8), (61, 97), (400, 300)])
def test_wide_smoothing_through_cosines_is_scipys(width: int, height: int, sigma: float) -> None:
    made = elastic._widely_smoothed(height, width, sigma, 488.0, RandomState(0))
    noise = RandomState(0).uniform(-1, 1, size=(height, width))
    expected = 488.0 * ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=3.0)
    assert np.abs(made - expected).max() < 0.03  # pixels


@pytest.mark.parametrize(("size", "factor"), [(255, 1), (256, 2), (480, 2), (640, 3), (1100, 5)])
def test_enlarged_cloud_is_scipys(size: int, factor: int) -> None:
    cloud = weather._plasma(RandomState(0), 2.0)
    expected = ndimage.zoom(cloud, (factor, 1), order=3)[:size]
    made = weather._zoomed_rows(weather._spline(cloud, size), size, slice(0, size))
    np.testing.assert_allclose(made, expected[: len(made)], atol=1e-9)
    np.testing.assert_allclose(
        weather._zoomed_rows(weather._spline(cloud, size), size, slice(40, 90)), expected[40:90], atol=1e-9
    )


def test_plasma_is_a_torus_with_ever_smaller_displacements() -> None:
    smooth_cloud, rough_cloud = (weather._plasma(RandomState(5), decay) for decay in (2.0, 1.4))
    for cloud in (smooth_cloud, rough_cloud):
        assert cloud.min() == 0
        assert cloud.max() == 1
        seam = np.abs(cloud[:, 0] - cloud[:, -1]).mean()
        assert seam < 2 * np.abs(np.diff(cloud, axis=1)).mean()
    steps = [np.abs(np.diff(cloud)).mean() for cloud in (smooth_cloud, rough_cloud)]
    assert steps[0] < steps[1]


@pytest.mark.parametrize("angle", [-135.0, -90.0, -45.0, 0.0, 17.3, 45.0])
def test_streak_is_the_sum_of_shifted_images(angle: float) -> None:
    taps = streak_taps(10, 3, angle)
    assert sum(taps.values()) == pytest.approx(1)
    assert taps[0, 0] > 0.1
    end = max(taps, key=lambda tap: tap[0] ** 2 + tap[1] ** 2)
    assert np.hypot(*end) == pytest.approx(20, abs=1)
    assert np.rad2deg(np.arctan2(*end)) == pytest.approx(angle, abs=2)
    image = noise(40, 30)
    rows, columns = np.mgrid[:30, :40]
    expected = np.zeros(image.shape)
    for (down, right), weight in taps.items():
        expected += weight * image[np.clip(rows + down, 0, 29), np.clip(columns + right, 0, 39)]
    assert np.abs(streak(image, 10, 3, angle) - np.floor(expected + 0.003)).max() <= 1
    assert np.mean(streak(image, 10, 3, angle) != np.floor(expected + 0.003)) < 0.001
    assert np.array_equal(streak(image[..., 0], 10, 3, angle), streak(image, 10, 3, angle)[..., 0])


@pytest.mark.parametrize("factor", [1.0, 1.07, 1.3, 2.5, 4.5])
def test_official_magnification_is_scipys_zoom(factor: float) -> None:
    for height, width in ((40, 60), (33, 33), (8, 20)):
        plane = RandomState(0).uniform(size=(height, width))
        rows, columns = int(np.ceil(height / factor)), int(np.ceil(width / factor))
        top = (height - rows) // 2
        zoomed = ndimage.zoom(plane[top : top + rows, top : top + columns], factor, order=1)
        down, right = ((have - want) // 2 for have, want in zip(zoomed.shape, plane.shape, strict=True))
        expected = zoomed[down : down + height, right : right + width]
        view = Magnified(height, width, factor, official_quirks=True)
        np.testing.assert_allclose(view.plane_rows_of(plane, slice(0, height)), expected, atol=1e-12)
        image = np.repeat(plane[..., None].astype(np.float32), 4, axis=2)
        made = np.concatenate([view.rows_of(image, slice(0, 5)), view.rows_of(image, slice(5, height))])
        np.testing.assert_allclose(made[..., 0], expected, atol=2e-4)


@pytest.mark.parametrize(("width", "height"), [(20, 30), (90, 50), (200, 310)])
def test_official_frost_is_a_zoom_of_all_three_axes(width: int, height: int) -> None:
    """Official photographs are larger; the rule is the same on a small one, and costs scipy less time here."""
    photograph = ndimage.gaussian_filter(noise(70, 60).astype(float), (2, 2, 0))
    pixels = np.clip(photograph * 3 - 250, 0, 255).astype(np.uint8)
    factor = max(height // 60, width // 70) + 1
    zoomed = ndimage.zoom(pixels[..., ::-1], factor, order=3)
    assert (zoomed.shape[2] > 3) == (factor > 1)
    rng = RandomState(4)
    top, left = rng.randint(0, zoomed.shape[0] - height), rng.randint(0, zoomed.shape[1] - width)
    expected = zoomed[top : top + height, left : left + width, [2, 1, 0]].astype(int)
    made = frost._official_piece(pixels, height, width, RandomState(4))
    assert np.abs(made - expected).max() <= 1
    assert np.mean(made != expected) < 0.001


def test_pixel_noise_is_numpys_whole_array_at_once() -> None:
    """Drawn block by block, and yet the same numbers in the same order."""
    image = noise(300, 240)
    unit = image / 255
    expected = {
        "gaussian_noise": unit + RandomState(9).normal(size=image.shape, scale=0.18),
        "speckle_noise": unit + unit * RandomState(9).normal(size=image.shape, scale=0.35),
        "shot_noise": RandomState(9).poisson(unit * 12) / 12,
    }
    for method, values in expected.items():
        output = perturb_array(image, method, 3, RandomState(9))
        assert np.array_equal(output, (np.clip(values, 0, 1) * 255).astype(np.uint8)), method


def test_impulse_noise_hits_the_share_that_it_says_in_equal_parts() -> None:
    grey = np.full((400, 400, 3), 128, np.uint8)
    for severity, share in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), start=1):
        output = perturb_array(grey, "impulse_noise", severity, RandomState(severity))
        salt, pepper = np.mean(output == 255), np.mean(output == 0)
        assert set(np.unique(output)) == {0, 128, 255}
        assert salt == pytest.approx(share / 2, abs=0.002)
        assert pepper == pytest.approx(share / 2, abs=0.002)
