"""Questions about a scene, each with a one-word answer that follows from the scene alone.

Six kinds: `color`, `shape`, `count`, `exist`, `relation_shape` and `relation_color`. Only unambiguous questions are
asked: the thing a question names occurs once, and a relation holds for exactly one other object with a clear margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lmms_eval_stability.demo.scenes import TRAINED, Scene, SceneObject, World

KINDS: tuple[str, ...] = ("color", "shape", "count", "exist", "relation_shape", "relation_color")
DIRECTIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
RELATION_MARGIN = 10.0
"""Pixels by which centres must differ for one object to count as clearly left of, above, ... another."""


@dataclass(frozen=True)
class Question:
    """A question, its kind and its one-word, lower-case answer."""

    kind: str
    text: str
    answer: str


def all_questions(scene: Scene, world: World = TRAINED) -> dict[str, list[Question]]:
    """Return every question that can be asked about a scene of `world`, by kind.

    Every kind is a key; lists may be empty.
    """
    found: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for question in _enumerate(scene, world):
        found[question.kind].append(question)
    return found


def _enumerate(scene: Scene, world: World) -> Iterator[Question]:
    yield Question("count", "How many objects are there?", str(len(scene.objects)))
    for item in scene.objects:
        if _occurs_once(scene, shape=item.shape):
            yield Question("color", f"What color is the {item.shape}?", item.color)
        if _occurs_once(scene, color=item.color):
            yield Question("shape", f"What shape is the {item.color} object?", item.shape)
        yield Question("exist", f"Is there a {item.color} {item.shape}?", "yes")
        for direction in DIRECTIONS:
            other = related(scene, item, direction)
            if other is not None:
                where = f"{direction} the {item.color} {item.shape}"
                yield Question("relation_shape", f"What shape is the object {where}?", other.shape)
                yield Question("relation_color", f"What color is the object {where}?", other.color)
    yield from _absent(scene, world)


def _occurs_once(scene: Scene, shape: str | None = None, color: str | None = None) -> bool:
    return sum(shape in (None, item.shape) and color in (None, item.color) for item in scene.objects) == 1


def _absent(scene: Scene, world: World) -> Iterator[Question]:
    """Ask for pairs that are not there but share their colour or their shape with something that is."""
    present = {(item.color, item.shape) for item in scene.objects}
    colors, shapes = {color for color, _ in present}, {shape for _, shape in present}
    for color in world.colors:
        for shape in world.shapes:
            if (color, shape) not in present and (color in colors or shape in shapes):
                yield Question("exist", f"Is there a {color} {shape}?", "no")


def related(scene: Scene, anchor: SceneObject, direction: str) -> SceneObject | None:
    """Return the only object lying in `direction` from `anchor`, or None if there is none, several or doubt.

    Every other object must differ from the anchor by `RELATION_MARGIN` pixels along the axis, one way or the other.
    """
    inside: list[SceneObject] = []
    for item in scene.objects:
        if item is anchor:
            continue
        offset = {
            "left of": anchor.x - item.x,
            "right of": item.x - anchor.x,
            "above": anchor.y - item.y,
            "below": item.y - anchor.y,
        }[direction]
        if abs(offset) < RELATION_MARGIN:
            return None
        if offset > 0:
            inside.append(item)
    return inside[0] if len(inside) == 1 else None


def pick(rng: np.random.Generator, questions: list[Question], asked: set[str]) -> Question | None:
    """Draw one question whose text is not in `asked`, yes and no equally likely; None when all were asked."""
    left = [question for question in questions if question.text not in asked]
    if not left:
        return None
    if left[0].kind == "exist":
        # A scene allows many more "no" than "yes" questions: choose the answer first.
        answer = "yes" if rng.random() < 0.5 else "no"
        left = [question for question in left if question.answer == answer] or left
    return left[int(rng.integers(len(left)))]
