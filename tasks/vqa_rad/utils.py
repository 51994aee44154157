"""What the `vqa_rad` task does with one document: ids, picture, prompt, target and score.

Scores follow LLaVA-Med's evaluation (Li et al., NeurIPS 2023, arXiv 2306.00890; `llava/eval/run_eval.py` and
`eval_metrics/` of github.com/microsoft/LLaVA-Med), with these departures:

- A closed question is one whose answer is yes or no. LLaVA-Med reads the `answer_type` of the original annotation,
  which counts further questions as closed ("left or right?"); the hub data does not have it.
- A closed answer is right when it equals the reference after normalisation. LLaVA-Med's script accepts an answer that
  contains the reference anywhere ("no" in "unknown"), and leaves out wrong yes and no answers instead of counting them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from PIL import Image

CLOSED_ANSWERS = frozenset({"yes", "no"})
_RULES = EvalAIAnswerProcessor()


class UnexpectedSplitError(ValueError):
    """The data is not made of whole splits, so that questions cannot be named by split and row."""


def process_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    """Add what the data does not have: `question_id` (split and row in it), `split` and `image_id`.

    The image id is a hash of the image file, so questions on one image share it.

    Raises:
        UnexpectedSplitError: the rows are not those of one or several whole splits, one after the other.
    """
    names = str(dataset.split).split("+")
    sizes = {name: info.num_examples for name, info in (dataset.info.splits or {}).items()}
    places = [(name, row) for name in names for row in range(sizes.get(name, 0))]
    if len(places) != len(dataset):
        raise UnexpectedSplitError(
            f"vqa_rad names questions by split and row and so reads whole splits; split '{dataset.split}' has"
            f" {len(dataset)} rows and its parts {len(places)}. To run fewer questions use lmms-eval's --limit"
        )
    files = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    dataset = dataset.add_column("question_id", [f"{name}_{row}" for name, row in places])
    dataset = dataset.add_column("split", [name for name, _ in places])
    return dataset.add_column("image_id", [_image_id(row["image"]) for row in files])


def _image_id(file: dict[str, Any]) -> str:
    content = file["bytes"] if file["bytes"] is not None else Path(file["path"]).read_bytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Return the document's picture."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """Return the question between the task's `pre_prompt` and `post_prompt`, which is that of lmms-eval's slake."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question'].strip()}{around.get('post_prompt', '')}"


def doc_to_target(doc: dict[str, Any]) -> str:
    """Return the reference answer."""
    return str(doc["answer"])


def normalize(answer: str) -> str:
    """Return an answer as it is compared: lower case, without punctuation and articles, numbers up to ten as digits.

    LLaVA-Med uses the rules of the VQA evaluation server; these are lmms-eval's.
    """
    return str(_RULES.process_digit_article(_RULES.process_punctuation(answer.strip().lower())))


def token_recall(prediction: str, answer: str) -> float:
    """Return LLaVA-Med's recall of the reference's tokens: 0 to 1.

    tp / (tp + fn), where fn counts the tokens of the reference whose word the prediction lacks, and tp the tokens of
    the PREDICTION whose word the reference has. As long as no matching word is repeated, that is the share of the
    reference's tokens that the prediction has; "lung lung lung" against "left lung" gets 3/4, not 1/2. Kept, because
    the published numbers are made so. 0 when either side has no token.

    Args:
        prediction: normalised.
        answer: normalised.
    """
    predicted, expected = Counter(prediction.split()), Counter(answer.split())
    found = sum(count for word, count in predicted.items() if word in expected)
    missed = sum(count for word, count in expected.items() if word not in predicted)
    return found / (found + missed) if found else 0.0


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score one answer.

    Returns:
        `vqa_rad_score`, and the same number as `vqa_rad_closed_accuracy` (0.0 or 1.0) or `vqa_rad_open_recall` (0 to
        1), so that the task averages each over its kind only; and `vqa_rad_record`, which lmms-eval writes to the
        sample log without averaging it: question_id, split, image_id, kind, score, pred and answer (both normalised).

    Raises:
        ValueError: there is not exactly one answer.
    """
    if len(results) != 1:
        raise ValueError(f"question {doc['question_id']} has {len(results)} answers, expected one")
    prediction, answer = normalize(results[0]), normalize(doc_to_target(doc))
    closed = answer in CLOSED_ANSWERS
    score = float(prediction == answer) if closed else token_recall(prediction, answer)
    record = {
        "question_id": doc["question_id"],
        "split": doc["split"],
        "image_id": doc["image_id"],
        "kind": "closed" if closed else "open",
        "score": score,
        "pred": prediction,
        "answer": answer,
    }
    own = "vqa_rad_closed_accuracy" if closed else "vqa_rad_open_recall"
    return {"vqa_rad_score": score, own: score, "vqa_rad_record": record}
