"""The `shapes_vqa` task as lmms-eval sees it."""

from __future__ import annotations

import random
import string

import pytest
from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.tasks import TaskManager, get_task_dict
from PIL import Image

from lmms_eval_stability.demo.dataset import build_held_out
from lmms_eval_stability.demo.training.prompts import INSTRUCTION
from lmms_eval_stability.plugin import task_dir
from lmms_eval_stability.tasks.shapes_vqa.utils import doc_to_text, normalize, process_results

DOC = {"question_id": "q", "image_id": "i", "kind": "color", "question": "What color is the star?", "answer": "red"}


@pytest.mark.parametrize(
    ("response", "score"), [("red", 1.0), (" Red.\n", 1.0), ("blue", 0.0), ("", 0.0), ("red star", 0.0)]
)
def test_score_and_record(response: str, score: float) -> None:
    result = process_results(DOC, [response])
    assert result["exact_match"] == score
    assert result["shapes_record"] == {
        "question_id": "q",
        "image_id": "i",
        "kind": "color",
        "pred": normalize(response),
        "answer": "red",
    }


def test_two_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="question q has 2 answers"):
        process_results(DOC, ["red", "blue"])


def test_score_equals_that_of_lmms_evals_own_metric() -> None:
    rng = random.Random(0)
    for _ in range(300):
        answer = "".join(rng.choices(" ab1" + string.punctuation, k=4))
        response = rng.choice([answer.upper(), answer + rng.choice(string.punctuation), "b" + answer])
        theirs = exact_match_hf_evaluate(
            predictions=[response.strip()], references=[answer.strip()], ignore_case=True, ignore_punctuation=True
        )
        ours = process_results({**DOC, "answer": answer}, [response])
        # lmms-eval does not trim what is left after punctuation; neither do we.
        assert ours["exact_match"] == theirs["exact_match"], (answer, response)


def test_prompt_goes_around_the_question() -> None:
    kwargs = {"pre_prompt": "Look. ", "post_prompt": "\nBriefly."}
    assert doc_to_text(DOC, kwargs) == "Look. What color is the star?\nBriefly."
    assert doc_to_text(DOC) == "What color is the star?"


def test_lmms_eval_builds_the_task_with_the_training_prompt() -> None:
    manager = TaskManager(include_path=str(task_dir()), model_name="llava_hf")
    task = get_task_dict(["shapes_vqa"], manager, task_type="chat")["shapes_vqa"]
    docs = task.eval_docs
    held_out = build_held_out()
    assert len(docs) == len(held_out.questions)
    doc, row = docs[42], held_out.questions[42]
    (message,) = task.doc_to_messages(doc)
    image, text = message["content"]
    assert message["role"] == "user"
    assert (image["type"], text["type"]) == ("image", "text")
    assert isinstance(image["url"], Image.Image)
    assert text["text"] == row.question + INSTRUCTION
    assert task.doc_to_target(doc) == row.answer
    assert set(task.aggregation()) == {"exact_match"}
