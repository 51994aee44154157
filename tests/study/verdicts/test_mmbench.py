"""MMBench against lmms-eval's reading of letters and its circular scoring."""

from __future__ import annotations

import contextlib
import io
import math
import random
from typing import Any

import pandas as pd
import pytest

from lmms_eval_stability.verdicts import Adapter, adapter_for, judge_line
from lmms_eval_stability.verdicts.mmbench import ROTATION, generous_letter_of, letter_of, options_of

from ..conftest import Row, sample
from .answers import generated

OPTIONS: list[dict[str, Any]] = [
    {"A": "teddy bear", "B": "a dog", "C": "Cat", "D": "blue"},
    {"A": "leaf", "B": "red apple", "C": None, "D": None},
    {"A": "yes", "B": "no", "C": math.nan, "D": math.nan},
    {"A": "USA", "B": "nan", "C": "3.5", "D": "leaf"},
]


@pytest.fixture(scope="module")
def evaluator() -> Any:
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
    from loguru import logger

    logger.disable("lmms_eval")
    yield MMBench_Evaluator()
    logger.enable("lmms_eval")


def test_letters_equal_lmms_evals(evaluator: Any) -> None:
    answers = list(dict.fromkeys(answer.strip() for answer in generated(8000, 11)))
    assert len(answers) >= 5000
    found = 0
    for i, answer in enumerate(answers):
        record = OPTIONS[i % len(OPTIONS)]
        expected = evaluator.prefetch_answer({**record, "prediction": answer})
        assert letter_of(answer, dict(options_of(record))) == (expected or None), (answer, record)
        found += bool(expected)
    assert 1000 < found < len(answers) - 1000


def test_generous_letters_equal_lmms_evals() -> None:
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    answers = generated(8000, 12)
    found = 0
    for i, answer in enumerate(answers):
        letters = ("ABCD", "AB", "")[i % 3]
        expected = extract_mcq_answer(answer, choices=list(letters))
        assert generous_letter_of(answer, letters) == (expected or None), (answer, letters)
        found += bool(expected)
    assert 2000 < found < len(answers)


def log_lines(rng: random.Random, questions: int, readable: bool) -> list[Row]:
    """Lines of questions with one to four rotations each, most of them answered rightly, in any order."""
    odd = generated(300, rng.randint(0, 99))
    rows = []
    for question in range(questions):
        options = OPTIONS[question % len(OPTIONS)]
        there = [letter for letter in "ABCD" if isinstance(options[letter], str)]
        for turn in range(rng.choice([1, len(there)])):
            answer = there[turn % len(there)]
            said = answer if rng.random() < 0.8 else rng.choice(there if readable else odd).strip()
            record = {"index": question + ROTATION * turn, "question": "Q?", "answer": answer, "prediction": said,
                      "category": "c", "L2-category": "l", "split": "dev", "hint": "nan", "source": "s",
                      **options, "E": "nan"}  # fmt: skip
            rows.append({**sample(len(rows), said, None), "gpt_eval_score": record})
    rng.shuffle(rows)
    return rows


def frame_of(rows: list[Row], adapter: Adapter) -> pd.DataFrame:
    """Pairs of a run with itself."""
    assert adapter.extra is not None
    verdicts = [judge_line(row, adapter, "gpt_eval_score") for row in rows]
    columns: Row = {"changed": [False] * len(rows)}
    for side in ("baseline", "run"):
        columns[f"correct_{side}"] = [verdict.correct for verdict in verdicts]
        columns[f"score_{side}"] = [verdict.score for verdict in verdicts]
        columns[f"extra_{side}"] = [adapter.extra(row) for row in rows]
    return pd.DataFrame(columns)


@pytest.mark.parametrize(("task", "readable"), [("mmbench_en_dev", True), ("mmbench_en_dev_static", False)])
@pytest.mark.parametrize("seed", range(4))
def test_circular_accuracy_equals_lmms_evals(evaluator: Any, task: str, readable: bool, seed: int) -> None:
    rows = log_lines(random.Random(seed), 60, readable)
    adapter = adapter_for(task)
    assert adapter.pair_metrics is not None
    with contextlib.redirect_stdout(io.StringIO()):
        method = "static" if task.endswith("static") else "openai"
        expected, *_ = evaluator.eval_result([row["gpt_eval_score"] for row in rows], eval_method=method)
    circular, by_row = adapter.pair_metrics(frame_of(rows, adapter))
    assert circular.baseline == circular.run == pytest.approx(expected)
    assert circular.n == 60
    assert by_row.n == len(rows)
    assert by_row.baseline > circular.baseline > 0.2


def test_circular_divergence_by_hand() -> None:
    metrics = adapter_for("mmbench_en_dev").pair_metrics
    assert metrics is not None
    frame = pd.DataFrame(
        [  # index, right before, right after, changed
            (0, True, True, False),
            (0 + ROTATION, True, False, True),  # question 0: right -> wrong
            (1, False, True, True),
            (1 + ROTATION, True, True, False),  # question 1: wrong -> right
            (2, True, True, False),  # question 2: right in its only row
            (3 + ROTATION, True, False, True),  # question 3: its first row is missing, as with --limit
            (None, False, False, True),  # no index
        ],
        columns=["extra_baseline", "correct_baseline", "correct_run", "changed"],
    ).assign(score_baseline=1.0, score_run=0.0)
    circular, rows = metrics(frame)
    assert (circular.n, circular.unit) == (3, "questions")
    assert (circular.baseline, circular.run, circular.drop) == (2 / 3, 2 / 3, 0.0)
    assert (circular.dr.value, circular.ndr.value, circular.pdr.value) == (2 / 3, 1 / 3, 1 / 3)
    assert (rows.n, rows.dr.value, rows.ndr.value, rows.pdr.value) == (7, 4 / 7, 2 / 7, 1 / 7)


def test_what_no_rule_reads_is_unparsable_and_wrong() -> None:
    def verdict(task: str, said: str) -> Any:
        record = {"index": 1, "answer": "A", "prediction": said, "A": "cat", "B": "dog", "C": None, "D": None}
        row = {**sample(0, said, None), "gpt_eval_score": record}
        return judge_line(row, adapter_for(task), "gpt_eval_score")

    assert verdict("mmbench_en_dev", "It is clearly A here").status == "unparsable"
    assert verdict("mmbench_en_dev_static", "It is clearly A here").prediction == "A"
    for said in ("neither", "cat or dog"):
        found = verdict("mmbench_en_dev", said)
        assert (found.prediction, found.score, found.correct) == ("unparsable", 0.0, False)
    assert verdict("mmbench_en_dev", "a dog").score == 0.0
    assert verdict("mmbench_en_dev", "the CAT").score == 1.0


@pytest.mark.parametrize("record", [None, "A", {}, {"prediction": 3}])
def test_records_of_another_kind_are_unscored_not_errors(record: object) -> None:
    row = {**sample(0, "A", None), "gpt_eval_score": record}
    assert judge_line(row, adapter_for("mmbench_en_dev"), "gpt_eval_score").status == "unscored"
