"""Scenes are reproducible, look like what they say, and every answer follows from the scene."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from lmms_eval_stability.demo.dataset import SPLITS, stream
from lmms_eval_stability.demo.questions import KINDS, RELATION_MARGIN, all_questions, pick
from lmms_eval_stability.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    GAP,
    IMAGE_SIZE,
    SHAPES,
    Scene,
    SceneObject,
    coverage,
    decode_jpeg,
    draw_scene,
    encode_jpeg,
    render,
)

SCENES = [draw_scene(stream("train", index)) for index in range(300)]


def test_streams_repeat_and_do_not_overlap() -> None:
    first = {
        key: stream(key[0], key[1]).integers(2**63, size=4).tolist() for key in itertools.product(SPLITS, range(500))
    }
    again = {
        key: stream(key[0], key[1]).integers(2**63, size=4).tolist() for key in itertools.product(SPLITS, range(500))
    }
    assert first == again
    numbers = [number for row in first.values() for number in row]
    assert len(set(numbers)) == len(numbers)
    assert stream("train", 1, seed=1).integers(2**63) != stream("train", 1, seed=2).integers(2**63)
    assert stream("train", 1, 23).integers(2**63) != stream("train", 12, 3).integers(2**63)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        stream("dev", 0)


def test_scenes_and_pictures_repeat_whatever_the_global_generator_did() -> None:
    np.random.seed(1)
    first = draw_scene(stream("train", 7))
    picture = render(first)
    np.random.seed(2)
    assert draw_scene(stream("train", 7)) == first
    np.testing.assert_array_equal(render(first), picture)
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert picture.dtype == np.uint8
    assert draw_scene(stream("train", 8)) != first


def test_objects_lie_inside_and_apart() -> None:
    for scene in SCENES:
        pairs = [(item.color, item.shape) for item in scene.objects]
        assert len(set(pairs)) == len(pairs)
        for item in scene.objects:
            assert item.radius < min(item.x, item.y, IMAGE_SIZE - item.x, IMAGE_SIZE - item.y)
        for a, b in itertools.combinations(scene.objects, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4}
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)


def test_pixels_show_the_objects_after_jpeg() -> None:
    """At an object's centre, which every shape covers, the nearest of the six colours is the object's."""
    names, palette = list(COLORS), np.array(list(COLORS.values()), dtype=float)
    seen = right = 0
    for scene in SCENES:
        pixels = decode_jpeg(encode_jpeg(render(scene))).astype(float)
        for item in scene.objects:
            row, column = int(item.y), int(item.x)
            patch = pixels[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
            right += names[int(np.abs(palette - patch).sum(axis=1).argmin())] == item.color
            seen += 1
    assert right / seen > 0.97


def disc(shape: str, angle: float = 0.0) -> SceneObject:
    return SceneObject(shape, "red", 48.0, 48.0, 16.0, angle, (255.0, 0.0, 0.0), 1.0)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi * (0.92 * 16) ** 2),
        ("square", (2 * 0.74 * 16) ** 2),
        ("triangle", 3 * np.sqrt(3) / 4 * 16**2),
        ("cross", 4 * 16 * 4.8 * 2 - (2 * 4.8) ** 2),
        ("star", 5 * 16 * 0.42 * 16 * np.sin(np.pi / 5)),
    ],
)
def test_shapes_have_the_area_of_their_geometry(shape: str, area: float) -> None:
    for angle in (0.0, 0.2):
        assert coverage(disc(shape, angle)).sum() == pytest.approx(area, rel=0.04)
    assert coverage(disc(shape))[48, 48] == 1.0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        coverage(disc("hexagon"))
    with pytest.raises(ValueError, match="unknown background 'sky'"):
        render(replace(SCENES[0], background="sky"))


def answer_again(scene: Scene, text: str) -> str:
    """Answer a question from the scene's numbers alone, without the generator's code; fail if it is ambiguous."""
    things = [(item.color, item.shape, item.x, item.y) for item in scene.objects]
    if text == "How many objects are there?":
        return str(len(things))
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", text):
        return "yes" if any(thing[:2] == match.groups() for thing in things) else "no"
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        (found,) = [color for color, shape, *_ in things if shape == match[1]]
        return found
    if match := re.fullmatch(r"What shape is the (\w+) object\?", text):
        (found,) = [shape for color, shape, *_ in things if color == match[1]]
        return found
    match = re.fullmatch(r"What (color|shape) is the object (left of|right of|above|below) the (\w+) (\w+)\?", text)
    assert match, text
    ((_, _, x, y),) = [thing for thing in things if thing[:2] == (match[3], match[4])]
    axis, sign, origin = {"left of": (2, -1, x), "right of": (2, 1, x), "above": (3, -1, y), "below": (3, 1, y)}[
        match[2]
    ]
    others = [thing for thing in things if thing[:2] != (match[3], match[4])]
    assert all(abs(thing[axis] - origin) >= RELATION_MARGIN for thing in others)
    (there,) = [thing for thing in others if sign * (thing[axis] - origin) > 0]
    return there[0] if match[1] == "color" else there[1]


def test_answers_agree_with_an_independent_check() -> None:
    asked = dict.fromkeys(KINDS, 0)
    words = {*COLORS, *SHAPES, "1", "2", "3", "4", "yes", "no"}
    for scene in SCENES:
        for kind, questions in all_questions(scene).items():
            texts = [question.text for question in questions]
            assert len(set(texts)) == len(texts)
            for question in questions:
                assert question.kind == kind
                assert question.answer in words
                assert answer_again(scene, question.text) == question.answer, (scene, question)
                asked[kind] += 1
    assert min(asked.values()) >= 300


def test_absent_things_share_something_with_what_is_there() -> None:
    for scene in SCENES[:50]:
        colors, shapes = {item.color for item in scene.objects}, {item.shape for item in scene.objects}
        for question in all_questions(scene)["exist"]:
            color, shape = question.text.rstrip("?").split()[-2:]
            assert color in colors or shape in shapes


def test_pick_balances_yes_and_no_and_never_repeats() -> None:
    questions = all_questions(SCENES[0])["exist"]
    answers = [pick(np.random.default_rng(seed), questions, set()) for seed in range(400)]
    share = sum(question is not None and question.answer == "yes" for question in answers) / len(answers)
    assert 0.42 < share < 0.58
    rng, asked = np.random.default_rng(0), set[str]()
    while (question := pick(rng, questions, asked)) is not None:
        assert question.text not in asked
        asked.add(question.text)
    assert asked == {question.text for question in questions}
