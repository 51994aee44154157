"""Held-out sets that leave what the embedded model was trained on: unseen things, new textures, misleading colours.

- `unseen`: colours, shapes and backgrounds that never occurred in training (task `shapes_vqa_ood`).
- `shifted`: the scenes and questions of `shapes_vqa`, row by row, hatched, on other backgrounds (`shapes_vqa_shift`).
- `spurious`: one colour question per picture whose background is tinted: in `SPURIOUS_SHARE` of them in the colour of
  the answer, in the others in another colour (`shapes_vqa_spurious`).

Run `python -m lmms_eval_stability.demo.variants NAME OUTPUT.parquet` to build a file anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmms_eval_stability.demo.dataset import (
    SEED,
    HeldOutQuestion,
    HeldOutSet,
    MakeUp,
    build_held_out,
    stream,
    write_parquet,
)
from lmms_eval_stability.demo.questions import Question, all_questions, pick
from lmms_eval_stability.demo.scenes import COLORS, Scene, World, draw_scene, encode_jpeg, render

UNSEEN = World(
    colors={
        "orange": (245, 130, 30),
        "pink": (250, 150, 195),
        "brown": (115, 70, 35),
        "white": (250, 250, 250),
        "black": (20, 20, 20),
        "olive": (115, 120, 25),
    },
    shapes=("pentagon", "ring", "moon", "heart", "arrow"),
    backgrounds=("dots", "waves", "rings"),
)
"""Nothing of this occurs in the pictures that the embedded model was trained on."""

UNSEEN_MAKE_UP = MakeUp(
    kinds={"color": 250, "shape": 250, "count": 200, "exist": 150, "relation_shape": 75, "relation_color": 75},
    images={1: 46, 2: 59, 3: 59, 4: 60},
    count_questions={1: 44, 2: 52, 3: 52, 4: 52},
)
HATCH_PERIOD = (3.0, 6.0)
"""Range of the distance between the lines of hatched objects, in pixels."""

SPURIOUS_IMAGES = 480
SPURIOUS_SHARE = 0.75
"""Share of the pictures whose background has the answer's colour."""
ALIGNED, CONFLICTING = "aligned", "conflicting"


def unseen(seed: int = SEED) -> HeldOutSet:
    """Draw 1,000 questions about unseen colours and shapes, in the proportions of `shapes_vqa`."""
    return build_held_out(seed, world=UNSEEN, make_up=UNSEEN_MAKE_UP, key=("unseen",))


def shifted(seed: int = SEED) -> HeldOutSet:
    """Draw the pictures of `shapes_vqa` again with new backgrounds and hatched objects; the rows stay the same."""
    original = build_held_out(seed)
    scenes = {
        name: _retextured(scene, stream("test", "shift", name, seed=seed)) for name, scene in original.scenes.items()
    }
    images = {name: encode_jpeg(render(scene)) for name, scene in scenes.items()}
    return HeldOutSet(images, scenes, original.questions)


def _retextured(scene: Scene, rng: np.random.Generator) -> Scene:
    background = UNSEEN.backgrounds[int(rng.integers(len(UNSEEN.backgrounds)))]
    objects = tuple(replace(item, hatch=float(rng.uniform(*HATCH_PERIOD))) for item in scene.objects)
    return replace(scene, background=background, objects=objects)


def spurious(seed: int = SEED) -> HeldOutSet:
    """Draw one colour question per picture; each row's `group` says whether the background has the answer's colour.

    Answers and groups are dealt out evenly: every colour is the answer equally often, in each group.
    """
    plan = stream("test", "spurious", "plan", seed=seed)
    names = list(COLORS)
    cells = SPURIOUS_IMAGES // len(names)
    aligned = round(cells * SPURIOUS_SHARE)
    deck = [(color, ALIGNED if i < aligned else CONFLICTING) for color in names for i in range(cells)]
    images, scenes, questions = {}, {}, []
    for index, card in enumerate(plan.permutation(len(deck))):
        color, group = deck[int(card)]
        image_id = f"spurious-{index:04d}"
        scene, question = _asked_for(color, stream("test", "spurious", index, seed=seed))
        others = [name for name in names if name != color]
        tint = color if group == ALIGNED else others[int(plan.integers(len(others)))]
        scenes[image_id] = replace(scene, tint=COLORS[tint])
        images[image_id] = encode_jpeg(render(scenes[image_id]))
        questions.append(HeldOutQuestion(f"{image_id}-0", image_id, question.text, question.answer, "color", group))
    return HeldOutSet(images, scenes, questions)


def _asked_for(color: str, rng: np.random.Generator) -> tuple[Scene, Question]:
    """Draw scenes until one allows a colour question with this answer; about one in three does."""
    while True:
        scene = draw_scene(rng)
        fitting = [question for question in all_questions(scene)["color"] if question.answer == color]
        question = pick(rng, fitting, set())
        if question is not None:
            return scene, question


VARIANTS: dict[str, Callable[[int], HeldOutSet]] = {"ood": unseen, "shift": shifted, "spurious": spurious}


def main(argv: Sequence[str] | None = None) -> None:
    """Build the parquet file of one variant of the held-out set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=list(VARIANTS))
    parser.add_argument("output", type=Path, help="parquet file to write")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    made = VARIANTS[args.name](args.seed)
    write_parquet(made, args.output)
    print(f"{len(made.questions)} questions on {len(made.images)} pictures -> {args.output}")


if __name__ == "__main__":
    main()
