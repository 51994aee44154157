"""MMMU against lmms-eval's parsing and scoring."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from lmms_eval_stability.verdicts import Verdict, adapter_for, judge_line
from lmms_eval_stability.verdicts.mmmu import candidates_of, choice_of, open_is_right, options_of

from ..conftest import Row, sample
from .answers import generated

OPTIONS = [
    ["teddy bear", "a dog", "Cat", "blue"],
    ["3.5", "1,000", "50%", "x"],
    ["leaf", "red apple"],
    ["<image 1>", "<image 2>", "none", "The answer", "USA", "yes", "no"],
    ["a long option\nover two lines", "B. in a text", "$x = 3$, (A) and (B)"],
]


@pytest.fixture(scope="module")
def mmmu() -> Any:
    from lmms_eval.tasks.mmmu import utils

    return utils


class DrawnError(Exception):
    """The reference was about to draw a letter at random."""


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.tasks._task_utils import mmmu_mcq_utils

    def refuse(_: list[str]) -> str:
        raise DrawnError

    monkeypatch.setattr(mmmu_mcq_utils.random, "choice", refuse)


def test_choices_equal_lmms_evals_and_what_it_draws_is_none(mmmu: Any, no_chance: None) -> None:
    drawn = found = 0
    for options in OPTIONS:
        index2ans, letters = mmmu.get_multi_choice_info(options)
        for answer in generated(1500, len(options), [*options, "It is clearly the", "rather large and"]):
            try:
                expected = mmmu.parse_multi_choice_response(answer.strip(), letters, index2ans)
                found += 1
            except DrawnError:
                expected, drawn = None, drawn + 1
            assert choice_of(answer.strip(), index2ans) == expected, (answer, options)
    assert found > 2000
    assert drawn > 1000


def test_open_answers_equal_lmms_evals(mmmu: Any) -> None:
    rng = random.Random(5)
    answers = list(dict.fromkeys(generated(8000, 5)))
    assert len(answers) >= 5000
    references = [answer.strip() for answer in generated(300, 6) if answer.strip()]
    right = 0
    for answer in answers:
        theirs, ours = mmmu.parse_open_response(answer.strip()), candidates_of(answer.strip())
        assert {repr(one + 0.0 if isinstance(one, float) else one) for one in theirs} == {repr(one) for one in ours}
        part = answer.strip()[: rng.randint(1, 6)]
        for gold in (rng.choice(references), part, [part, rng.choice(references)], ["3.5", "x"]):
            expected = mmmu.eval_open(gold, theirs)
            assert open_is_right(gold, ours) == expected, (answer, gold)
            right += expected
    assert right > 500


def log_line(mmmu: Any, doc: Row, answer: str, interleaved: bool, kwargs: Row) -> Row:
    """A line as lmms-eval logs it."""
    mmmu.config["metadata"]["interleaved_format"] = interleaved
    logged = mmmu.mmmu_process_results(doc, [answer.strip()])
    prompt = mmmu.mmmu_doc_to_text(doc, kwargs)
    return json.loads(json.dumps({**sample(0, answer, None), "exact_match": None, "input": prompt, **logged}))


PROMPTS = {
    "default": {
        "prompt_type": "format",
        "multiple_choice_prompt": "Answer with the option's letter from the given choices directly.",
        "open_ended_prompt": "Answer the question using a single word or phrase.",
    },
    "qwen": {
        "format": "qwen3_vl",
        "pre_prompt": "Question: ",
        "post_prompt": "Answer with the option letter only.",
        "open_ended_prompt": "Please answer the question directly.",
    },
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_options_are_read_back_from_the_prompt(mmmu: Any, prompt: str) -> None:
    for options in OPTIONS[:3] if prompt == "qwen" else OPTIONS:
        doc = {
            "question": "Which of\nA. these, or\n\nB. those? <image 1>",
            "question_type": "multiple-choice",
            "options": repr(options),
        }
        mmmu.config["metadata"]["interleaved_format"] = False
        found = options_of(mmmu.mmmu_doc_to_text(doc, PROMPTS[prompt]))
        assert found == {chr(ord("A") + i): option for i, option in enumerate(options)}


def test_prompts_without_options_leave_the_letters() -> None:
    options = options_of("What is it?\nAnswer.")
    assert list(options) == list("ABCD")
    assert choice_of("well, (C)", options) == "C"
    assert choice_of("a sentence of more than five words", options) is None


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_line_gets_lmms_evals_verdict(mmmu: Any, no_chance: None, interleaved: bool) -> None:
    adapter, rng = adapter_for("mmmu_val"), random.Random(9)
    for i, answer in enumerate(generated(1200, 9)):
        options = OPTIONS[i % 3]
        doc = {"id": "validation_Art_1", "question": "Q? <image 1>", "options": repr(options),
               "question_type": "multiple-choice", "answer": rng.choice("ABC")}  # fmt: skip
        if i % 5 == 0:
            doc |= {"question_type": "open", "options": "[]", "answer": rng.choice(["3.5", ["yes", "no"], "leaf"])}
        try:
            row = log_line(mmmu, doc, answer, interleaved, PROMPTS["default"])
        except DrawnError:
            doc["question_type"], parsed = "open", [["X"]]
            row = log_line(mmmu, doc, answer, interleaved, PROMPTS["default"])
            doc["question_type"] = "multiple-choice"
            row["input"] = mmmu.mmmu_doc_to_text(doc, PROMPTS["default"])
            row["mmmu_acc"] |= {"question_type": "multiple-choice", "parsed_pred": parsed}
        verdict = judge_line(row, adapter, "mmmu_acc")
        _, accuracy = mmmu.evaluate_mmmu([row["mmmu_acc"]])
        assert verdict.score == accuracy["acc"], (answer, doc)
        if doc["question_type"] == "multiple-choice":
            drawn = row["mmmu_acc"]["parsed_pred"] == [["X"]]
            assert (verdict.prediction == "unparsable") == drawn
            assert drawn or [verdict.prediction] == row["mmmu_acc"]["parsed_pred"]


def test_random_letters_make_no_divergence() -> None:
    def line(answer: str, drawn: str) -> Row:
        record = {"question_type": "multiple-choice", "answer": "A", "parsed_pred": [drawn], "id": "validation_Art_1"}
        return {**sample(0, answer, None), "input": "Q\nA. x\nB. y\n\nPick one.", "mmmu_acc": record}

    adapter = adapter_for("mmmu_val")
    lines = [line("no idea", "A"), line("no idea", "B"), line("hm", "A")]
    verdicts = {judge_line(one, adapter, "mmmu_acc") for one in lines}
    assert verdicts == {Verdict("unparsable", 0.0, False, "unparsable")}
    assert judge_line(line("", "A"), adapter, "mmmu_acc").status == "empty"


def test_open_answers_that_mean_the_same_are_one_prediction() -> None:
    def prediction(answer: str) -> str:
        record = {"question_type": "open", "answer": "3.5", "parsed_pred": [[3.5]], "id": "validation_Art_1"}
        row = {**sample(0, answer, None), "mmmu_acc": record}
        return judge_line(row, adapter_for("mmmu_val"), "mmmu_acc").prediction

    assert prediction("3.5") == prediction("The answer is 3.50") == "[3.5]"
    assert prediction("3.5") != prediction("35")


@pytest.mark.parametrize("record", [None, "A", {}, {"parsed_pred": ["A", "B"]}, {"parsed_pred": ["A"]}])
def test_records_of_another_kind_are_unscored_not_errors(record: object) -> None:
    verdict = judge_line({**sample(0, "A", None), "mmmu_acc": record}, adapter_for("mmmu_val"), "mmmu_acc")
    assert verdict.status == "unscored"
