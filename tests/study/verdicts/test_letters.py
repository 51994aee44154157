"""AI2D and ScienceQA against lmms-eval's filter, exact match and scoring."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from lmms_eval_stability.verdicts import adapter_for
from lmms_eval_stability.verdicts.letters import normalise_ai2d, normalise_scienceqa

from .answers import generated


@pytest.fixture(scope="module")
def ai2d() -> Any:
    from lmms_eval.tasks.ai2d import utils

    return utils.MultiChoiceRegexFilter(regex_pattern="([A-Z])\\.", ignore_case=True, ignore_punctuation=True)


@pytest.fixture(scope="module")
def exact_match() -> Any:
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    return exact_match_hf_evaluate


def test_ai2d_equals_lmms_evals_filter_and_exact_match(ai2d: Any, exact_match: Any) -> None:
    answers = list(dict.fromkeys(generated(9000, 1)))
    assert len(answers) >= 5000
    filtered = ai2d.apply([[answer] for answer in answers], [{}] * len(answers))
    hits = 0
    for answer, logged in zip(answers, filtered, strict=True):
        prediction = normalise_ai2d(logged)  # of the log, which is filtered
        assert prediction == normalise_ai2d(answer)
        for target in "ABCD":
            scored = exact_match([logged.strip()], [target], ignore_case=True, ignore_punctuation=True)["exact_match"]
            assert scored == (prediction == target.lower()), (answer, target)
            hits += int(scored)
    assert hits > 300


def test_scienceqa_equals_lmms_evals_scoring() -> None:
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results

    answers = list(dict.fromkeys(generated(9000, 2)))
    assert len(answers) >= 5000
    hits = 0
    for answer in answers:
        for i, target in enumerate("ABCDE"):
            doc = {"choices": ["x"] * 5, "answer": i}
            scored = sqa_process_results(doc, [answer.strip()])["exact_match"]
            assert scored == (normalise_scienceqa(answer) == target.lower()), (answer, target)
            hits += int(scored)
    assert hits > 300


@pytest.mark.parametrize(
    ("answer", "ai2d_prediction", "scienceqa_prediction"),
    [
        ("B", "b", "b"),
        ("b.", "b", "b."),
        ("B. a leaf", "b", "b"),
        (" B. a leaf", "b", "b"),
        ("(B)", "b", "(b)"),
        ("The answer is B", "the answer is b", "the answer is b"),
    ],
)
def test_letters_by_hand(answer: str, ai2d_prediction: str, scienceqa_prediction: str) -> None:
    assert normalise_ai2d(answer) == ai2d_prediction
    assert normalise_scienceqa(answer) == scienceqa_prediction


@pytest.mark.parametrize("task", ["ai2d", "ai2d_lite", "ai2d_no_mask", "ai2d_image_perturbed", "scienceqa_img"])
def test_which_tasks_ask_for_letters(task: str) -> None:
    assert adapter_for(task).pair_metrics is not None
    assert adapter_for(f"{task}_reasoning").name == "text"  # judged by a language model


def test_answers_that_are_no_letter_are_counted_where_letters_are_asked_for() -> None:
    metrics = adapter_for("ai2d").pair_metrics
    assert metrics is not None
    texts = {"extra_baseline": ["a", "a", "a leaf", ""], "extra_run": list("abcd")}
    frame = pd.DataFrame({"target": list("ABCD"), **texts})
    (metric,) = metrics(frame)
    assert (metric.name, metric.n, metric.baseline, metric.run) == ("answers that are no letter", 4, 0.5, 0.0)
    assert metrics(frame.assign(extra_baseline=list("abcd"))) == ()
    assert metrics(frame.assign(target=["leaf", "A", "B", "C"])) == ()
