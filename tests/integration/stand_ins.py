"""Stand-ins for the benchmarks' data sets: a few drawn rows each, where `datasets` keeps what it once downloaded.

`write_hub` makes a folder to name by HF_HOME. Offline, `datasets.load_dataset("lmms-lab-encoder/GQA", ...)` finds the
stand-in there by itself, so that lmms-eval's task YAMLs and its code are used as they are.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from tests.integration import schemas
from tests.tiny_models import picture

Row = dict[str, Any]

#: Questions with an answer each. Two in a row are about one image.
QUESTIONS = (
    ("What color is the big car on the left side of the street?", "red"),
    ("Is there a small dog sitting on the left of the two cats?", "yes"),
    ("How many people are standing near the white house?", "2"),
    ("What is the man in the blue shirt holding in his hand?", "umbrella"),
    ("Which animal is running behind the green tree?", "black dog"),
    ("What does the sign above the door say?", "don't walk"),
)
#: Of ten annotators so many give the answer: soft scores of 1, 0.9, 0.6, 0.3 and, where nobody else agrees, 0.
AGREEING = (10, 3, 2, 1, 5, 4)
POPE_ROWS = 9000
_POPE_CATEGORIES = ("adversarial", "popular", "random")


@functools.cache
def png(seed: int, side: int = 56) -> bytes:
    buffer = io.BytesIO()
    picture(seed, side, side).save(buffer, "PNG")
    return buffer.getvalue()


def image(seed: int, side: int = 56) -> Row:
    return {"bytes": png(seed, side), "path": None}


def answers(n: int) -> list[str]:
    """Ten annotators' answers to question `n`; those who disagree do so with each other, too."""
    _, answer = QUESTIONS[n]
    return [answer if i < AGREEING[n] else f"another thing {i}" for i in range(10)]


def vqav2() -> Iterator[Row]:
    for n, (question, answer) in enumerate(QUESTIONS):
        given = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers(n), 1)]
        yield {
            "question_type": " ".join(question.split()[:2]).lower(),
            "multiple_choice_answer": answer,
            "answers": given,
            "image_id": 42 + n // 2,
            "answer_type": "yes/no" if answer == "yes" else "number" if answer.isdecimal() else "other",
            "question_id": 42000 + n,
            "question": question,
            "image": image(n // 2),
        }


def ok_vqa() -> Iterator[Row]:
    for n, (question, _) in enumerate(QUESTIONS):
        row = {"question_id": str(2971475 + n), "image": image(10 + n // 2), "question": question}
        yield row | {"answers": answers(n), "question_type": "one", "answer_type": "other"}


def textvqa() -> Iterator[Row]:
    for n, (question, _) in enumerate(QUESTIONS):
        yield {
            "image_id": f"003a8ae2ef43b90{n // 2}",
            "question_id": 34602 + n,
            "question": question.lower(),
            "question_tokens": question.lower().rstrip("?").split(),
            "image": image(20 + n // 2),
            "image_width": 56,
            "image_height": 56,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": answers(n),
            "image_classes": ["Street", "Sign"],
            "set_name": "val",
            "ocr_tokens": ["DON'T", "WALK"],
        }


def vizwiz() -> Iterator[Row]:
    for n, (question, _) in enumerate(QUESTIONS):
        given = ["unanswerable"] * 10 if n == 5 else answers(n)
        row = {"question_id": f"VizWiz_val_{n:08d}", "image": image(30 + n // 2), "question": question}
        yield row | {"answers": given, "category": "unanswerable" if n == 5 else "other"}


def gqa_instructions() -> Iterator[Row]:
    for n, (question, answer) in enumerate(QUESTIONS):
        yield {
            "id": f"20196957{n}",
            "imageId": f"n1612{n // 2}",
            "question": question,
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "isBalanced": True,
            "groups": {"global": "color", "local": "10q-car"},
            "entailed": "[]",
            "equivalent": f"['20196957{n}']",
            "types": {"structural": "query", "semantic": "attr", "detailed": "color"},
            "annotations": {"question": [{"objectId": "3", "value": "car"}], "answer": [], "fullAnswer": []},
            "semantic": [{"operation": "select", "argument": "car (3)", "dependencies": []}],
            "semanticStr": "select: car (3)",
        }


def gqa_images() -> Iterator[Row]:
    for n in range(len(QUESTIONS) // 2):
        yield {"id": f"n1612{n}", "image": image(40 + n)}


OPTIONS = ("red leaf", "root", "green stem", "flower")


def ai2d() -> Iterator[Row]:
    for n in range(6):
        question = f"Which part of the plant is labelled {chr(ord('a') + n)}?"
        yield {"question": question, "options": list(OPTIONS), "answer": str(n % 4), "image": image(50 + n // 2)}


def scienceqa() -> Iterator[Row]:
    for n in range(6):
        yield {
            "image": image(60 + n // 2),
            "question": f"Which of these {n + 2} materials is the hardest?",
            "choices": ["diamond", "wool", "glass"][: 2 + n % 2],
            "answer": n % 2,
            "hint": "" if n < 3 else "Two magnets are shown in the picture.",
            "task": "closed choice",
            "grade": "grade4",
            "subject": "natural science",
            "topic": "physics",
            "category": "Materials",
            "skill": "Compare properties of materials",
            "lecture": "",
            "solution": "",
        }


def pope() -> Iterator[Row]:
    """All 9,000 rows: which split a row belongs to shows in its place alone. Six questions in a row share an image."""
    for n in range(POPE_ROWS):
        place = n % 3000
        thing = ("dog", "car", "tree", "person", "chair", "bottle")[(place + n // 3000) % 6]
        yield {
            "id": str(n),
            "question_id": str(place + 1),
            "question": f"Is there a {thing} in the image?",
            "answer": "yes" if place % 2 == 0 else "no",
            "image_source": f"COCO_val2014_{place // 6:012d}",
            "image": image(1000 + place // 6, side=6 if place >= 6 else 56),
            "category": _POPE_CATEGORIES[n // 3000],
        }


def _mmmu(subject: str, n: int, question: str, options: list[str], answer: str, images: int) -> Row:
    row: Row = {"id": f"validation_{subject}_{n}", "question": question, "options": repr(options), "explanation": ""}
    row |= {f"image_{i}": image(70 + 10 * n + i) if i <= images else None for i in range(1, 8)}
    kind = "multiple-choice" if options else "open"
    return row | {
        "img_type": "['Diagrams']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": kind,
        "subfield": subject,
    }


def mmmu() -> Iterator[Row]:
    yield _mmmu("Accounting", 1, "<image 1> What is the total cost of the goods?", ["$63,020", "$58,410"], "B", 1)
    yield _mmmu("Accounting", 2, "Compare <image 1> with <image 2>: which is larger?", ["first", "second"], "A", 2)
    yield _mmmu("Art", 3, "Which picture shows a cat?", ["<image 1>", "<image 2>", "<image 3>"], "C", 3)
    yield _mmmu("Art", 4, "Who painted the house in <image 1>?", ["Monet", "van Gogh", "Klimt", "Klee"], "D", 1)
    yield _mmmu("Math", 5, "What is the area of the circle in <image 1>?", [], "3.14", 1)
    yield _mmmu("Math", 6, "Name the shape in <image 1>.", [], "square", 1)


def mmbench() -> Iterator[Row]:
    """Two questions in all rotations of their options, one of two options, one alone."""
    asked = (
        (241, "Which animal is in the picture?", ["cat", "dog", "horse", "bird"], 4, "identity_reasoning", "attribute"),
        (252, "What color is the house?", ["red", "green", "blue"], 3, "attribute_recognition", "perception"),
        (263, "Is it night?", ["night", "day"], 1, "image_scene", "perception"),
    )
    for index, question, options, rotations, category, ability in asked:
        for turn in range(rotations):
            turned = options[turn:] + options[:turn]
            letters = dict(zip("ABCD", [*turned, "nan", "nan"], strict=False))
            yield {
                "index": index + 1_000_000 * turn,
                "question": question,
                "hint": "nan" if index != 252 else "There is one house.",
                "answer": "ABCD"[turned.index(options[0])],
                **letters,
                "category": category,
                "image": image(index),
                "source": "scienceqa",
                "L2-category": ability,
                "comment": "nan",
                "split": "dev",
            }


VQA_RAD = {
    "train": (("Is there a red circle? ", "yes"), ("Where is the lesion?", "right upper lobe"), ("Is it big?", "No")),
    "test": (("What is shown in the picture?", "two lungs"), ("Is the heart enlarged?", "no"), ("Which side?", "left")),
}


def vqa_rad(split: str) -> Iterator[Row]:
    for n, (question, answer) in enumerate(VQA_RAD[split]):
        yield {"image": image(300 + 10 * (split == "test") + n // 2), "question": question, "answer": answer}


@dataclass(frozen=True)
class StandIn:
    """One configuration of one data set on the hub: its columns, and what makes the rows of each split."""

    repository: str
    features: datasets.Features
    splits: dict[str, Callable[[], Iterator[Row]]]
    config: str = "default"


STAND_INS = (
    StandIn("lmms-lab-encoder/VQAv2", schemas.VQAV2, {"validation": vqav2}),
    StandIn("lmms-lab-encoder/OK-VQA", schemas.OK_VQA, {"val2014": ok_vqa}),
    StandIn("lmms-lab-encoder/textvqa", schemas.TEXTVQA, {"validation": textvqa}),
    StandIn("lmms-lab-encoder/VizWiz-VQA", schemas.VIZWIZ, {"val": vizwiz}),
    StandIn(
        "lmms-lab-encoder/GQA", schemas.GQA_INSTRUCTIONS, {"testdev": gqa_instructions}, "testdev_balanced_instructions"
    ),
    StandIn("lmms-lab-encoder/GQA", schemas.GQA_IMAGES, {"testdev": gqa_images}, "testdev_balanced_images"),
    StandIn("lmms-lab-encoder/ai2d", schemas.AI2D, {"test": ai2d}),
    StandIn("lmms-lab-encoder/LMMs-Eval-Lite", schemas.AI2D, {"lite": ai2d}, "ai2d"),
    StandIn("Efficient-Large-Model/ai2d-no-mask", schemas.AI2D, {"test": ai2d}),
    StandIn("lmms-lab-encoder/ScienceQA", schemas.SCIENCEQA, {"test": scienceqa}, "ScienceQA-IMG"),
    StandIn("lmms-lab-encoder/POPE", schemas.POPE, {"test": pope}),
    StandIn("lmms-lab-encoder/MMMU", schemas.MMMU, {"validation": mmmu}),
    StandIn("lmms-lab-encoder/MMBench", schemas.MMBENCH, {"dev": mmbench}, "en"),
    StandIn(
        "flaviagiammarino/vqa-rad",
        schemas.VQA_RAD,
        {split: functools.partial(vqa_rad, split) for split in ("train", "test")},
    ),
)


class _Builder(datasets.GeneratorBasedBuilder):
    """Prepares a stand-in in the cache, under the names that a download from the hub has there."""

    def __init__(self, stand_in: StandIn, cache: Path) -> None:
        self.stand_in = stand_in
        super().__init__(
            cache_dir=str(cache),
            dataset_name=stand_in.repository.split("/")[-1],
            repo_id=stand_in.repository,
            config_name=stand_in.config,
            hash="stand-in",
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.stand_in.features)

    def _split_generators(self, _: Any) -> list[datasets.SplitGenerator]:
        splits = self.stand_in.splits.items()
        return [datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows}) for name, rows in splits]

    def _generate_examples(self, rows: Callable[[], Iterator[Row]]) -> Iterator[tuple[int, Row]]:
        yield from enumerate(rows())


def write_hub(home: Path) -> Path:
    """Write all stand-ins below `home`, and a token: the tasks' YAMLs ask for one."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "token").write_text("hf_stand_in")
    for stand_in in STAND_INS:
        _Builder(stand_in, home / "datasets").download_and_prepare()
    return home
