"""Documents and requests as lmms-eval hands them to a chat model or a simple model."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lmms_eval.api.instance import Instance
from PIL import Image

TASK, SPLIT = "drawn", "test"
WORDS = ("colour", "shape", "left", "circle", "how many", "red", "the square", "is there", "below", "dog")


def draw(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a random RGB picture with large structures; ``size`` is (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def documents(n: int) -> list[dict[str, Any]]:
    """Return ``n`` documents: mostly one image of varying size, every sixth two, every seventh none.

    In every ninth the question says with "<image>" where its image stands, as MMMU's do.
    """
    docs = []
    for i in range(n):
        n_images = 2 if i % 6 == 5 else 0 if i % 7 == 6 else 1
        images = [draw(100 * i + j, (40 + 8 * (i % 5), 40 + 12 * (i % 3))) for j in range(n_images)]
        words = [WORDS[(i * 7 + k) % len(WORDS)] for k in range(2 + i % 4)]
        question = f"What is {' '.join(words)}?"
        if n_images == 1 and i % 9 == 1:
            question = f"Here <image> is one. {question}"
        docs.append({"id": i, "images": images, "question": question})
    return docs


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = [{"type": "image", "url": image} for image in doc["images"]]
    before, marker, after = doc["question"].partition("<image>")
    if not (marker and images):
        return [{"role": "user", "content": [*images, {"type": "text", "text": doc["question"]}]}]
    texts = [{"type": "text", "text": part.strip()} for part in (before, after)]
    return [{"role": "user", "content": [texts[0], *images, texts[1]]}]


def jpeg(image: Image.Image) -> Image.Image:
    """Return the picture as lmms-eval's simple Qwen models see it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def chat_requests(docs: Sequence[dict[str, Any]], gen_kwargs: dict[str, Any] | None = None) -> list[Instance]:
    return [
        _instance(i, (doc["question"], doc_to_messages, dict(gen_kwargs or {}), i, TASK, SPLIT))
        for i, doc in enumerate(docs)
    ]


def simple_requests(docs: Sequence[dict[str, Any]], gen_kwargs: dict[str, Any] | None = None) -> list[Instance]:
    visual: Callable[[dict[str, Any]], Any] = lambda doc: doc["images"]  # noqa: E731
    return [
        _instance(i, (doc["question"], dict(gen_kwargs or {}), visual, i, TASK, SPLIT)) for i, doc in enumerate(docs)
    ]


def _instance(doc_id: int, arguments: tuple[Any, ...]) -> Instance:
    return Instance("generate_until", arguments, 0, {"task": TASK, "doc_id": doc_id, "repeats": 1})


def give_documents(model: Any, docs: Sequence[dict[str, Any]]) -> None:
    """Make ``docs`` the documents that the model's requests refer to."""
    model.task_dict = {TASK: {SPLIT: list(docs)}}
