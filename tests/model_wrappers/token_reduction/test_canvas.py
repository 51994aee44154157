"""The canvas shows the pixels that the model sees, and puts every visual token where it was cut from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_eval_stability.model_wrappers.token_reduction.canvas import Canvas, make_canvas
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.tiny_models import KINDS


def encoded(tiny: Tiny, image: Image.Image) -> dict[str, Any]:
    content = [{"type": "image", "url": image}, {"type": "text", "text": QUESTION}]
    prompt = tiny.family.build_prompt(tiny.processor, [{"role": "user", "content": content}], QUESTION)
    return dict(tiny.family.encode(tiny.processor, [prompt]))


def canvas_of(tiny: Tiny, inputs: dict[str, Any]) -> Canvas:
    return make_canvas(tiny.model, tiny.processor, tiny.family, inputs)


def ramp(width: int, height: int) -> Image.Image:
    """Return a picture in which every place has a colour of its own."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).round().astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(112, 112), (140, 84), (60, 170)])
def test_boxes_and_colours(load: Any, kind: str, size: tuple[int, int]):
    tiny: Tiny = load(kind)
    inputs = encoded(tiny, ramp(*size))
    canvas = canvas_of(tiny, inputs)
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    assert canvas.picture.dtype == np.uint8
    assert canvas.boxes.shape == (layout.tokens, 4) == (int(tiny.visual(inputs).sum()), 4)
    covered = np.zeros(canvas.picture.shape[:2], dtype=int)
    for left, top, right, bottom in canvas.boxes:
        assert right > left >= 0
        assert bottom > top >= 0
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1  # no two tokens share a pixel
    gaps = canvas.picture[covered == 0]
    assert (gaps == 255).all()  # what belongs to no token is paper
    left, top, right, bottom = canvas.boxes[0]
    corner = canvas.picture[top:bottom, left:right].mean(axis=(0, 1))
    assert (corner < [128, 128, 256]).all()  # the first token is the upper left corner
    assert corner[2] > 128


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_the_picture_is_the_image_after_the_processor(load: Any, kind: str):
    tiny: Tiny = load(kind)
    image = ramp(112, 112)
    canvas = canvas_of(tiny, encoded(tiny, image))
    height, width = canvas.picture.shape[:2]
    expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(canvas.picture.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_holds_the_pixels_that_its_token_was_made_of(load: Any, kind: str):
    """Change the pixels of one box in the model's input: of tokens before any attention, only that one changes."""
    tiny: Tiny = load(kind)
    inputs = encoded(tiny, ramp(140, 84))
    canvas = canvas_of(tiny, inputs)
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    patches = layout.source >= 0
    for number in (int(patches.nonzero()[7]), int(patches.nonzero()[-1])):
        changed = dict(inputs)
        changed["pixel_values"] = inputs["pixel_values"].clone()
        position = int(layout.source[number])
        if kind.startswith("qwen"):  # groups of four rows make a token
            changed["pixel_values"][4 * position : 4 * position + 4] = 0
        else:
            partition, place = divmod(position, layout.positions)
            y, x = divmod(place, 4)
            views = changed["pixel_values"].view(-1, 3, 56, 56)
            views[partition, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14] = 0
        differs = (canvas_of(tiny, changed).picture != canvas.picture).any(axis=2)
        left, top, right, bottom = canvas.boxes[number]
        assert differs[top:bottom, left:right].mean() > 0.9
        differs[top:bottom, left:right] = False
        assert not differs.any()


def test_tiles_are_stitched_and_newlines_stand_at_the_end_of_their_rows(load: Any):
    tiny: Tiny = load("llava_next")
    image = ramp(168, 56)  # three tiles in a row, no padding
    inputs = encoded(tiny, image)
    canvas = canvas_of(tiny, inputs)
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    assert layout.tiles == (1, 3)
    tiles = canvas.picture[:56, 56 + 12 : 56 + 12 + 168].astype(int)
    assert np.abs(tiles - np.asarray(image).astype(int)).max() <= 3
    newlines = canvas.boxes[(layout.source < 0).numpy()]
    assert newlines[:, 1].tolist() == [0, 14, 28, 42]
    assert (newlines[:, 0] >= 56 + 12 + 168).all()


def test_padding_is_cut_off(load: Any):
    tiny: Tiny = load("llava_next")
    inputs = encoded(tiny, Image.new("RGB", (150, 100), (250, 10, 10)))
    canvas = canvas_of(tiny, inputs)
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    tiles = canvas.boxes[(layout.source >= layout.positions).numpy()]
    assert len(tiles) < (layout.partitions - 1) * layout.positions
    middle = [canvas.picture[(top + bottom) // 2, (left + right) // 2] for left, top, right, bottom in tiles]
    assert (np.asarray(middle)[:, 0] > 200).all()  # the image is everywhere red, padding is black


def test_images_that_are_not_normalised(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    image = ramp(56, 56)
    plain = canvas_of(llava, encoded(llava, image)).picture
    monkeypatch.setattr(llava.processor.image_processor, "do_normalize", False)
    inputs = encoded(llava, image)
    assert torch.all(inputs["pixel_values"] <= 1)
    assert np.abs(canvas_of(llava, inputs).picture.astype(int) - plain).max() <= 1
