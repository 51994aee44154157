"""The held-out questions of the `shapes_vqa` task, and the random streams that keep them apart from training.

Every picture has its own generator, keyed by (seed, split, index). Two splits can therefore never share a stream, and
picture 17 is the same whether or not pictures 0-16 were drawn before it.

Run `python -m lmms_eval_stability.demo.dataset OUTPUT.parquet` to build the held-out file anew.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lmms_eval_stability.demo.questions import KINDS, Question, all_questions, pick
from lmms_eval_stability.demo.scenes import TRAINED, Scene, World, draw_scene, encode_jpeg, render

SPLITS: tuple[str, ...] = ("train", "validation", "test")
SEED = 20261120

N_QUESTIONS = 2000
N_IMAGES = 445
KIND_QUOTA: dict[str, int] = {
    "color": 500,
    "shape": 500,
    "count": 400,
    "exist": 300,
    "relation_shape": 150,
    "relation_color": 150,
}
# Pictures by number of objects, and how many of them are asked "how many": near equal, so that no answer dominates.
IMAGES_BY_COUNT: dict[int, int] = {1: 90, 2: 118, 3: 118, 4: 119}
COUNT_QUESTIONS: dict[int, int] = {1: 88, 2: 104, 3: 104, 4: 104}
MAX_PER_KIND_AND_IMAGE = 2


@dataclass(frozen=True)
class MakeUp:
    """How many of what: questions by kind, pictures by number of objects, and how many of these are counted."""

    kinds: Mapping[str, int]
    images: Mapping[int, int]
    count_questions: Mapping[int, int]


HELD_OUT = MakeUp(KIND_QUOTA, IMAGES_BY_COUNT, COUNT_QUESTIONS)


@dataclass(frozen=True)
class HeldOutQuestion:
    """One row of the held-out set. `image_id` numbers the pictures, `question_id` the rows, both in file order.

    `group` parts the rows of sets that are made of groups; empty elsewhere, and then no column of the file.
    """

    question_id: str
    image_id: str
    question: str
    answer: str
    kind: str
    group: str = ""


@dataclass(frozen=True)
class HeldOutSet:
    """Pictures (JPEG bytes by image id) with their scenes, and the questions in the order of the pictures."""

    images: dict[str, bytes]
    scenes: dict[str, Scene]
    questions: list[HeldOutQuestion]


def stream(split: str, *key: int | str, seed: int = SEED) -> np.random.Generator:
    """Return the generator for one purpose, e.g. `stream("train", 17)`; different keys give unrelated streams."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    text = "\x1f".join(str(part) for part in (seed, split, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def build_held_out(
    seed: int = SEED, *, world: World = TRAINED, make_up: MakeUp = HELD_OUT, key: Sequence[str] = ()
) -> HeldOutSet:
    """Draw the held-out pictures and choose exactly as many questions as `make_up` says, 4 or 5 to a picture.

    Args:
        seed: of all random streams.
        world: what there is to draw.
        make_up: how many of what.
        key: names the streams of another set than `shapes_vqa`'s, so that no two sets share one.
    """
    plan = stream("test", *key, "plan", seed=seed)
    counts = plan.permutation(np.repeat(list(make_up.images), list(make_up.images.values())))
    scenes = [
        draw_scene(stream("test", *key, i, seed=seed), n_objects=int(n), world=world) for i, n in enumerate(counts)
    ]
    chosen = _Chooser(plan, scenes, world, make_up).choose()
    questions = []
    for index, asked in enumerate(chosen):
        for number, question in enumerate(asked):
            questions.append(
                HeldOutQuestion(
                    question_id=f"{_image_id(index)}-{number}",
                    image_id=_image_id(index),
                    question=question.text,
                    answer=question.answer,
                    kind=question.kind,
                )
            )
    return HeldOutSet(
        images={_image_id(i): encode_jpeg(render(scene)) for i, scene in enumerate(scenes)},
        scenes={_image_id(i): scene for i, scene in enumerate(scenes)},
        questions=questions,
    )


def _image_id(index: int) -> str:
    return f"shapes-{index:04d}"


class _Chooser:
    """Fills each picture's 4 or 5 places so that the kinds come out exactly as the make-up says.

    The scarcest kinds choose first; `exist`, which can always be asked, takes what is left.
    """

    def __init__(self, rng: np.random.Generator, scenes: Sequence[Scene], world: World, make_up: MakeUp) -> None:
        self.rng = rng
        self.scenes = scenes
        self.make_up = make_up
        self.available = [all_questions(scene, world) for scene in scenes]
        self.chosen: list[list[Question]] = [[] for _ in scenes]
        self.room = self._rooms()

    def _rooms(self) -> list[int]:
        """Four places for pictures of one object, which allow few questions; five for as many others as needed."""
        room = [4] * len(self.scenes)
        several = [i for i, scene in enumerate(self.scenes) if len(scene.objects) > 1]
        for i in self.rng.choice(several, size=sum(self.make_up.kinds.values()) - sum(room), replace=False):
            room[int(i)] = 5
        return room

    def choose(self) -> list[list[Question]]:
        """Return the questions of each picture, in random order within it."""
        for kind in ("relation_shape", "relation_color"):
            self._fill(kind, self.make_up.kinds[kind], self._shuffled(), limit=1)
        for n_objects, quota in self.make_up.count_questions.items():
            same = [i for i in self._shuffled() if len(self.scenes[i].objects) == n_objects]
            self._fill("count", quota, same, limit=1)
        # One of each first, alternating, so that neither kind takes all places of the pictures that allow both.
        for limit in (1, MAX_PER_KIND_AND_IMAGE):
            for kind in ("color", "shape"):
                missing = self.make_up.kinds[kind] - self._asked(kind)
                self._fill(kind, missing, self._shuffled(), limit=limit, must=limit == MAX_PER_KIND_AND_IMAGE)
        self._fill_exist()
        for questions in self.chosen:
            questions[:] = [questions[i] for i in self.rng.permutation(len(questions))]
        return self.chosen

    def _shuffled(self) -> list[int]:
        return [int(i) for i in self.rng.permutation(len(self.scenes))]

    def _asked(self, kind: str) -> int:
        return sum(question.kind == kind for questions in self.chosen for question in questions)

    def _fill(self, kind: str, quota: int, order: list[int], limit: int, must: bool = True) -> None:
        """Give `kind` one place in each picture of `order` that has room, until `quota` places are given."""
        for i in order:
            if quota == 0:
                return
            taken = self.chosen[i]
            if len(taken) == self.room[i] or sum(q.kind == kind for q in taken) >= limit:
                continue
            question = pick(self.rng, self.available[i][kind], {q.text for q in taken})
            if question is not None:
                taken.append(question)
                quota -= 1
        if quota and must:
            raise RuntimeError(f"the pictures leave no place for {quota} more {kind} questions")

    def _fill_exist(self) -> None:
        """Fill every place left with `exist` questions, half of them answered yes."""
        places = [i for i, taken in enumerate(self.chosen) for _ in range(self.room[i] - len(taken))]
        yes_left = len(places) // 2
        for i in self.rng.permutation(places):
            taken = self.chosen[int(i)]
            asked = {question.text for question in taken}
            left = [question for question in self.available[int(i)]["exist"] if question.text not in asked]
            yes = [question for question in left if question.answer == "yes"]
            no = [question for question in left if question.answer == "no"]
            # A scene allows few "yes" questions, so they go first to whichever places have one left.
            answers = yes if yes and yes_left else no
            yes_left -= answers is yes
            taken.append(answers[int(self.rng.integers(len(answers)))])
        if yes_left:
            raise RuntimeError(f"the pictures leave no place for {yes_left} more exist questions answered yes")


def write_parquet(held_out: HeldOutSet, path: Path) -> None:
    """Write the held-out set so that `datasets.load_dataset("parquet", data_files=...)` decodes `image` to PIL.

    The rows of one picture repeat its bytes; a dictionary page stores them once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value

    columns = [name for name, value in asdict(held_out.questions[0]).items() if name != "group" or value]
    features = Features({"image": Image(), **{name: Value("string") for name in columns}})
    images = [{"bytes": held_out.images[row.image_id], "path": f"{row.image_id}.jpg"} for row in held_out.questions]
    data = {"image": images, **{name: [getattr(row, name) for row in held_out.questions] for name in columns}}
    table = pa.Table.from_pydict(data, schema=features.arrow_schema)
    pq.write_table(
        table,
        path,
        use_dictionary=True,
        dictionary_pagesize_limit=16 * 2**20,
        compression="zstd",
        row_group_size=len(images),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Build the held-out parquet file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output", type=Path, help="parquet file to write")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    held_out = build_held_out(args.seed)
    write_parquet(held_out, args.output)
    shares = {kind: sum(row.kind == kind for row in held_out.questions) for kind in KINDS}
    print(f"{len(held_out.questions)} questions on {len(held_out.images)} pictures: {shares} -> {args.output}")


if __name__ == "__main__":
    main()
