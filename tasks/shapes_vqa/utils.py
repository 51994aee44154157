"""What the `shapes_vqa` task does with one document: picture, prompt, target and score."""

from __future__ import annotations

import string
from typing import Any

from PIL import Image

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Return the document's picture."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """Return the question between the task's `pre_prompt` and `post_prompt`."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question']}{around.get('post_prompt', '')}"


def doc_to_target(doc: dict[str, Any]) -> str:
    """Return the one-word answer."""
    return str(doc["answer"])


def normalize(answer: str) -> str:
    """Return an answer as it is compared: trimmed, lower case, without punctuation."""
    return answer.strip().lower().translate(_NO_PUNCTUATION)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score one answer.

    Returns:
        `exact_match`, 0.0 or 1.0, which the task averages; and `shapes_record`, which lmms-eval writes to the sample
        log without averaging it: question_id, image_id, kind, pred (normalised) and answer.

    Raises:
        ValueError: there is not exactly one answer.
    """
    if len(results) != 1:
        raise ValueError(f"question {doc['question_id']} has {len(results)} answers, expected one")
    prediction, answer = normalize(results[0]), normalize(doc_to_target(doc))
    record = {
        "question_id": doc["question_id"],
        "image_id": doc["image_id"],
        "kind": doc["kind"],
        "pred": prediction,
        "answer": answer,
    }
    return {"exact_match": float(prediction == answer), "shapes_record": record}
