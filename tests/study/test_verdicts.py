from __future__ import annotations

import importlib.util
import math
import random
import re
import string
from pathlib import Path
from typing import Any

import numpy
import pytest

from lmms_eval_stability.samples import SampleTable, read_samples
from lmms_eval_stability.verdicts import adapter_for, judge, judge_line
from lmms_eval_stability.verdicts.exact_match import OPTIONS
from lmms_eval_stability.verdicts.exact_match import normalise as exact_match
from lmms_eval_stability.verdicts.generic import normalise as generic
from lmms_eval_stability.verdicts.soft_vqa import CONTRACTIONS, normalise, normalise_vqav2

from .conftest import Row, sample


@pytest.fixture(scope="module")
def reference() -> Any:
    """lmms-eval's own answer processor, loaded by its file: importing lmms_eval takes ten seconds."""
    package = importlib.util.find_spec("lmms_eval")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "tasks" / "_task_utils" / "vqa_eval_metric.py"
    spec = importlib.util.spec_from_file_location("reference_vqa_eval_metric", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EvalAIAnswerProcessor()


def generated(n: int) -> list[str]:
    """Answers with everything the clean-up reacts to: contractions, numbers, articles, marks in all positions."""
    rng = random.Random(7)
    words = [
        *CONTRACTIONS,
        *CONTRACTIONS.values(),
        *["none", "zero", "one", "two", "ten", "a", "an", "the", "The", "A", "yes", "No", "red", "3.5", "1,000", "10"],
    ]
    words += [
        "u.s.",
        "10,000,000",
        ".5",
        "5.",
        "mr.",
        "it's",
        "dogs'",
        "I'm",
        "Im",
        "lets",
        "let's",
        "somebody'd",
        "É",
        "٣,٤",
    ]
    marks = [*list(string.punctuation), "...", " - ", ", ", "?!", "\n", "\t", "  ", "."]
    answers = []
    for _ in range(n):
        parts = []
        for _ in range(rng.randint(0, 6)):
            word = rng.choice(words)
            parts.append(word.upper() if rng.random() < 0.1 else word)
            parts.append(rng.choice(marks) if rng.random() < 0.5 else " ")
        answers.append("".join(parts))
    return [*answers, "." * 60, "a.b." * 40, "", " ", "the"]


def test_soft_vqa_clean_up_equals_lmms_evals(reference: Any) -> None:
    answers = generated(8000)
    assert len(set(answers)) >= 5000
    for answer in answers:
        stripped = answer.strip()  # lmms-eval strips every answer before a task sees it
        assert normalise(answer) == reference(stripped), repr(answer)
        flat = stripped.replace("\n", " ").replace("\t", " ").strip()
        expected = reference.process_digit_article(reference.process_punctuation(flat))
        assert normalise_vqav2(answer) == expected, repr(answer)


def test_contractions_equal_lmms_evals(reference: Any) -> None:
    # entries with a capital are never looked up, an entry that maps to itself changes nothing
    theirs = {key: value for key, value in reference.CONTRACTIONS.items() if key.islower() and key != value}
    assert theirs == CONTRACTIONS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("dont know", "don't know"),
        ("None", "0"),
    ],
)
def test_vqav2_clean_up_by_hand(answer: str, expected: str) -> None:
    assert normalise_vqav2(answer) == expected


def test_exact_match_ignores_case_and_punctuation_only() -> None:
    assert exact_match(" Red. ") == exact_match("red") == "red"
    assert exact_match("a red one") == "a red one"


def test_exact_match_equals_lmms_evals_rule() -> None:
    table = str.maketrans("", "", string.punctuation)
    for answer in generated(2000):
        lowered = numpy.char.lower(numpy.asarray([answer.strip()]))
        assert exact_match(answer) == str(numpy.char.translate(lowered, table=table)[0])


@pytest.mark.parametrize("ignore", [(), ("ignore_case",), ("ignore_punctuation",), ("ignore_numbers",), OPTIONS[1:]])
def test_exact_match_by_options_equals_lmms_evals_rule(ignore: tuple[str, ...]) -> None:
    adapter = adapter_for(
        "any", {"metric": "exact_match", **dict.fromkeys(ignore, True), "regexes_to_ignore": [r"\.5"]}
    )
    answers = [answer.strip() for answer in generated(2000)]
    expected = numpy.array([re.sub(r"\.5", "", answer) for answer in answers])
    if "ignore_case" in ignore:
        expected = numpy.char.lower(expected)
    for option, characters in (("ignore_punctuation", string.punctuation), ("ignore_numbers", string.digits)):
        if option in ignore:
            expected = numpy.char.translate(expected, table=str.maketrans("", "", characters))
    assert [adapter.normalise(answer) for answer in answers] == expected.tolist()


@pytest.mark.parametrize("pattern", ["(", 3, [3]])
def test_broken_options_of_exact_match_leave_the_text(pattern: object) -> None:
    assert adapter_for("any", {"regexes_to_ignore": pattern}).name == "text"
    assert adapter_for("any", {"regexes_to_ignore": [pattern]}).name == "text"


def test_the_generic_prediction_keeps_what_may_matter() -> None:
    assert generic("  The  Answer\nis 3.5 ") == "the answer is 3.5"
    assert generic("3.5") != generic("35")


@pytest.mark.parametrize(
    ("task", "like"),
    [
        ("gqa_lite", "gqa"),
        ("gqa_perturbed_image", "gqa"),
        ("shapes_vqa_perturbed_text", "shapes_vqa"),
        ("vqav2_val_lite", "vqav2_val"),
        ("vqav2_perturbed", "vqav2_val"),
        ("textvqa_val_lite", "textvqa_val"),
        ("ok_vqa_val2014_perturbed", "ok_vqa"),
        ("vizwiz_vqa_val", "vizwiz_vqa"),
    ],
)
def test_lite_and_perturbed_tasks_are_judged_like_their_base(task: str, like: str) -> None:
    assert adapter_for(task) is adapter_for(like)
    assert adapter_for(task).tasks


@pytest.mark.parametrize("task", ["mme", "gqasomething", "my_gqa", ""])
def test_of_any_other_task_the_text_is_compared(task: str) -> None:
    assert adapter_for(task).name == "text"


def test_vqav2_and_textvqa_differ_in_the_server_rule() -> None:
    assert adapter_for("vqav2_val").normalise("what's, that?") != adapter_for("textvqa_val").normalise("what's, that?")


@pytest.mark.parametrize(
    ("row", "prediction", "score", "correct", "status"),
    [
        (sample(0, "The Dog", 0.8999999999999999), "dog", 0.9, True, "ok"),
        (sample(0, "The Dog", 0.6), "dog", 0.6, False, "ok"),
        (sample(0, "x", 1, submission={"answer": "as submitted"}), "as submitted", 1.0, True, "ok"),
        (sample(0, "x", 1, submission={"image": 3}), "x", 1.0, True, "ok"),
        (sample(0, " \n", 0.0), "", 0.0, False, "empty"),
        (sample(0, " ", 1.0), "", 1.0, True, "empty"),
        (sample(0, "", 1.0, token_counts=[{"error": "boom"}]), "", 1.0, False, "failed"),
        (sample(0, "dog", math.nan), "dog", math.nan, False, "unscored"),
        (sample(0, "dog", math.inf), "dog", math.inf, False, "unscored"),
    ],
)
def test_a_line_and_a_table_get_the_same_verdict(
    tmp_path: Path, row: Row, prediction: str, score: float, correct: bool, status: str
) -> None:
    import json

    adapter = adapter_for("textvqa_val")
    verdict = judge_line(row, adapter, "exact_match")
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    frame = judge(read_samples(path, "textvqa_val", adapter, ("exact_match",)), adapter).frame
    for found in (verdict, frame.iloc[0]):
        assert (found.prediction, bool(found.correct), found.status) == (prediction, correct, status)
        assert found.score == pytest.approx(score, nan_ok=True)


def test_the_threshold_is_an_option() -> None:
    row = sample(0, "dog", 0.3)
    adapter = adapter_for("vqav2_val")
    assert [judge_line(row, adapter, "exact_match", at).correct for at in (0.3, 0.300002, 0.9)] == [True, False, False]


def test_judging_keeps_the_table(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("")
    adapter = adapter_for("gqa")
    judged = judge(read_samples(path, "gqa", adapter), adapter)
    assert isinstance(judged, SampleTable)
    assert judged.frame.empty
    assert {"prediction", "correct", "status"} <= set(judged.frame.columns)
