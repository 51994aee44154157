"""What counts as the answer and as the score in tasks that no adapter names, seen through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from .conftest import BASE, FASTV, Row, WriteRun, sample
from .test_hostile_logs import refused

Compare = Callable[..., Result]
RULE = {"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}


def record(result: Result) -> Row:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["comparisons"][0]


def heading(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[0]


def test_multiple_choice_by_likelihood_changes_when_the_choice_does(write_run: WriteRun, run_compare: Compare) -> None:
    def rows(noise: float, third: float) -> list[Row]:
        choices = [[[1.2 + noise, "False"], [0.3 + noise, "True"]] for _ in range(4)]
        return [sample(i, pair, 1.0) for i, pair in enumerate(choices)] + [
            sample(4, [[1.0, "False"], [third, "False"]], 0.0)
        ]

    base = write_run("base", {"mcq": rows(0, 0.5)})
    run = write_run("run", {"mcq": rows(1e-4, 1.5)}, model="fastv")
    row = record(run_compare(base, run, "--format", "json"))
    assert (row["dr"], row["adapter"]) == (0.2, "most likely choice")
    assert "answers as scored" in heading(run_compare(base, run))


def test_answers_that_are_lists_are_refused_by_name(write_run: WriteRun, run_compare: Compare) -> None:
    rows = [sample(0, ["a"], 1.0), sample(1, ["a", "b"], 1.0)]
    base, run = write_run("base", {"odd": rows, "gqa": BASE}), write_run("run", {"odd": rows, "gqa": FASTV}, model="x")
    refused(run_compare(base, run), "task odd", "the answer in line 2 is a list", "--task")
    assert run_compare(base, run, "--task", "gqa").exit_code == 0


def test_one_element_lists_are_their_answer(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"odd": [sample(0, "yes", 1.0)]})
    run = write_run("run", {"odd": [sample(0, ["yes"], 1.0)]}, model="x")
    assert record(run_compare(base, run, "--format", "json"))["dr"] == 0.0


def test_exact_match_is_compared_by_the_tasks_own_options(write_run: WriteRun, run_compare: Compare) -> None:
    configs = {"ai2d": {"metric_list": [RULE]}}
    base = write_run("base", {"ai2d": [sample(i, "A", 1.0) for i in range(3)]}, configs=configs)
    run = write_run("run", {"ai2d": [sample(i, "a.", 1.0) for i in range(3)]}, model="x", configs=configs)
    row = record(run_compare(base, run, "--format", "json"))
    assert (row["dr"], row["adapter"]) == (0.0, "exact match")
    assert heading(run_compare(base, run)).endswith("answers as scored")


def test_answers_compared_as_text_are_not_called_scored(write_run: WriteRun, run_compare: Compare) -> None:
    """A function of the task scored these: what it compares is not known, even if it calls the score exact_match."""
    configs = {"own": {"metric_list": [RULE], "process_results": "<function f>"}, "gqa": {"metric_list": [RULE]}}
    base = write_run("base", {"own": [sample(0, "A", 1.0)], "gqa": BASE}, configs=configs)
    run = write_run("run", {"own": [sample(0, "A.", 1.0)], "gqa": FASTV}, model="x", configs=configs)
    one = run_compare(base, run, "--task", "own", "--format", "json")
    assert (record(one)["dr"], record(one)["adapter"]) == (1.0, "text")
    assert heading(run_compare(base, run, "--task", "own")).endswith("answers as text (no adapter for own)")
    assert heading(run_compare(base, run)).endswith("answers as scored, those of own as text (no adapter)")
    average = json.loads(run_compare(base, run, "--format", "json").stdout)["comparisons"][-1]
    assert average["adapter"] == "mixed"


def test_the_metric_is_named(base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare) -> None:
    assert "\nscore: exact_match\n" in run_compare(base, fastv).stdout
    rows = [{**row, "acc": 1.0} for row in BASE]
    two = [write_run(name, {"gqa": rows, "other": rows}, model=name) for name in "ab"]
    out = run_compare(*two, "--metric", "other=acc").stdout
    assert "\nscores: exact_match (gqa), acc (other)\n" in out


def test_a_number_that_is_no_metric_is_not_the_score(write_run: WriteRun, run_compare: Compare) -> None:
    rows = [
        {k: v for k, v in {**row, "question_id": 1000, "anls_x": 1.0}.items() if k != "exact_match"} for row in BASE
    ]
    configs = {"docvqa": {"metric_list": [{"metric": "ANLS"}]}}
    base, run = (write_run(name, {"docvqa": rows}, model=name, configs=configs) for name in "ab")
    refused(run_compare(base, run), "no metric 'ANLS' in the log, which has question_id, anls_x", "--metric")
    assert record(run_compare(base, run, "--metric", "anls_x", "--format", "json"))["metric"] == "anls_x"


def test_metrics_that_alternate_between_lines(write_run: WriteRun, run_compare: Compare) -> None:
    def rows(answer: str) -> list[Row]:
        names = ("mme_cognition_score", "mme_perception_score")
        plain = [{k: v for k, v in sample(i, answer, 0).items() if k != "exact_match"} for i in range(6)]
        return [{**row, names[i % 2]: {"score": 1.0}} for i, row in enumerate(plain)]

    configs = {"mme": {"metric_list": [{"metric": "mme_perception_score"}, {"metric": "mme_cognition_score"}]}}
    base, run = (write_run(name, {"mme": rows(name)}, model=name, configs=configs) for name in "ab")
    refused(run_compare(base, run), "3 rows without a finite score: doc 0 (line 1)", "--accept unscored")
    for metric in ("mme_perception_score", "mme_cognition_score"):
        done = run_compare(base, run, "--metric", metric, "--accept", "unscored", "--format", "json")
        assert (record(done)["metric"], record(done)["n"]) == (metric, 3)
