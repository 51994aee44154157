"""What the `llava_med_conversation` task does with one document, and the task class that reads the data.

Follows LLaVA-Med (Li et al., NeurIPS 2023, arXiv 2306.00890; `llava/eval/eval_multimodal_chat_gpt_score.py` and
`summarize_gpt_review.py` of github.com/microsoft/LLaVA-Med): a judge scores GPT-4's answer and the model's from 1 to
10; a question's score is 100 times the quotient, and every column is the mean over its questions. Departs from it in
the judge's prompt (see `judge`) and in what happens to a reply without two scores, which there ends the evaluation.
"""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict
from lmms_eval.api.task import ConfigurableMessagesTask
from loguru import logger
from PIL import Image

from lmms_eval_stability.tasks.llava_med_conversation import judge
from lmms_eval_stability.tasks.llava_med_conversation.questions import Source, load_questions


class LlavaMedConversation(ConfigurableMessagesTask):  # type: ignore[misc]
    """Reads the questions from the user's files; for chat models.

    Everything that would spoil the run is checked here, before a model answers anything.

    Raises:
        MissingDataError, QuestionFileError: see `questions`.
        JudgeUnavailableError: see `judge`.
    """

    def __init__(self, config: dict[str, Any] | None = None, model_name: str | None = None) -> None:
        own = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(config=own, model_name=model_name)
        judge.server()

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the files instead of the hub; without lmms-eval's retries, since a missing file stays missing."""
        docs = load_questions(Source.find(dataset_kwargs))
        self.dataset = DatasetDict({self.config.test_split: docs})
        self.dataset_no_image = self.dataset.remove_columns("image")


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Return the document's figure."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """Return the question between the task's `pre_prompt` and `post_prompt`; both are empty, as in LLaVA-Med."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question']}{around.get('post_prompt', '')}"


def doc_to_target(doc: dict[str, Any]) -> str:
    """Return GPT-4's answer."""
    return str(doc["reference"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Have one answer judged.

    Returns:
        `llava_med_overall` and the columns of the question's kind and domain, in percent of the reference's score, if
        the judge gave scores; otherwise none of them, so that no mean contains it. `llava_med_unjudged`, 0 or 1. And
        `llava_med_record`, which goes to the sample log only.

    Raises:
        ValueError: there is not exactly one answer.
    """
    if len(results) != 1:
        raise ValueError(f"question {doc['question_id']} has {len(results)} answers, expected one")
    said = judge.compare(doc, results[0])
    record = {
        "question_id": doc["question_id"],
        "image_id": doc["image_id"],
        "kind": doc["kind"],
        "domain": doc["domain"],
        "score": said.relative,
        "reference_score": said.reference_score,
        "answer_score": said.answer_score,
        "judge": said.model,
        "review": said.review,
        "error": said.error,
    }
    columns = ("overall", doc["kind"], doc["domain"])
    scores = {} if said.relative is None else {f"llava_med_{name}": said.relative for name in columns if name}
    return {**scores, "llava_med_unjudged": int(said.relative is None), "llava_med_record": record}


def count_unjudged(flags: list[int]) -> int:
    """Return how many answers have no score, and warn of them."""
    unjudged = sum(flags)
    if unjudged:
        logger.warning(
            f"llava_med_conversation: {unjudged} of {len(flags)} answers have no score from the judge and count in no"
            " mean; llava_med_record.error in the sample log says why"
        )
    return unjudged
