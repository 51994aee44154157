"""Benchmarks with rules of their own, seen through the command: logs as lmms-eval writes them, numbers by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from lmms_eval_stability import compare_runs
from lmms_eval_stability.verdicts import adapter_for

from .conftest import BASE, Row, WriteRun, results_json, sample, samples_file
from .test_hostile_logs import refused

Compare = Callable[..., Result]


def logged(result: Result) -> Row:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def configured(task: str, *metrics: str, native: dict[str, float] | None = None) -> Row:
    """A results JSON for `write_run`, of a task with a scoring of its own."""
    document = {
        **results_json({}, "model", "pretrained=demo"),
        "configs": {task: {"metric_list": [{"metric": one} for one in metrics], "process_results": "<function f>"}},
        "results": {task: {"alias": task, **{f"{name},none": value for name, value in (native or {}).items()}}},
        "higher_is_better": {task: dict.fromkeys(metrics, True)},
    }
    return {"results": document}


def line(doc_id: int, answer: str, **logged: Any) -> Row:
    row = {key: value for key, value in sample(doc_id, answer, 0).items() if key != "exact_match"}
    return {**row, **logged}


def pope(answers: str, targets: str) -> list[Row]:
    rows = []
    for i, (said, target) in enumerate(zip(answers.split(), targets.split(), strict=True)):
        record = {"question_id": i, "score": float(said.lower() == target), "prediction": said.lower(),
                  "ground_truth": target}  # fmt: skip
        names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
        rows.append(line(i, said, target=target, **{f"pope_{name}": record for name in names}))
    return rows


POPE_METRICS = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")


@pytest.fixture
def pope_runs(write_run: WriteRun) -> tuple[Path, Path]:
    truth = "yes yes yes no no no"
    # hits 2, alarms 0, misses 1; then hits 1, alarms 1, misses 1 and one answer that is neither
    answers = {"base": "yes yes no no no no", "run": "Yes no yes. yes no no"}
    native = {
        "base": {"pope_f1_score": 0.8, "pope_accuracy": 5 / 6},
        "run": {"pope_f1_score": 0.5, "pope_accuracy": 0.5},
    }
    base, run = (
        write_run(name, {"pope": pope(said, truth)}, **configured("pope", *POPE_METRICS, native=native[name]))
        for name, said in answers.items()
    )
    return base, run


def test_pope_has_f1_precision_recall_and_yes_rate(pope_runs: tuple[Path, Path], run_compare: Compare) -> None:
    summary = logged(run_compare(*pope_runs, "--format", "json"))
    metrics = {one["metric"]: one for one in summary["runs"][0]["benchmark_metrics"]}
    values = {name: (one["score_baseline"], one["score_run"]) for name, one in metrics.items()}
    assert values == {
        "F1": (pytest.approx(0.8), 0.5),
        "precision": (1.0, 0.5),
        "recall": (pytest.approx(2 / 3), 0.5),
        "yes rate": (pytest.approx(2 / 6), pytest.approx(2 / 6)),
        "neither yes nor no": (0.0, pytest.approx(1 / 6)),
    }
    assert metrics["F1"]["drop"] == pytest.approx(0.3)
    assert (metrics["F1"]["n"], metrics["F1"]["dr"]) == (6, None)
    assert summary["runs"][0]["warnings"] == []
    # the row itself is about accuracy: "yes." is another answer than "yes"
    assert (summary["comparisons"][0]["dr"], summary["comparisons"][0]["adapter"]) == (0.5, "POPE")


def test_pope_tables(pope_runs: tuple[Path, Path], run_compare: Compare) -> None:
    lines = run_compare(*pope_runs).stdout.splitlines()
    start = next(i for i, text in enumerate(lines) if text.startswith("benchmark metric"))
    assert lines[start].split() == ["benchmark", "metric", "n", "baseline", "run", "drop"]
    assert lines[start + 1].split() == ["F1", "6", "pairs", "80.0", "50.0", "30.0"]
    assert "| F1 | 6 pairs | 80.0 | 50.0 | 30.0 | – | – | – |" in run_compare(*pope_runs, "--format", "markdown").stdout


def test_f1_can_be_the_score_as_in_the_paper(pope_runs: tuple[Path, Path], run_compare: Compare) -> None:
    base, run = pope_runs
    row = logged(run_compare(base, run, "--metric", "pope=pope_f1_score", "--format", "json"))["comparisons"][0]
    assert (row["metric"], row["score_baseline"], row["score_run"]) == ("pope_f1_score", pytest.approx(0.8), 0.5)
    rows = pope("Yes no yes. yes no no", "yes yes yes no no no")
    samples_file(run, "pope").write_text("".join(json.dumps(one) + "\n" for one in rows[:4]))
    part = run_compare(base, run, "--metric", "pope_f1_score", "--accept", "unpaired", "--format", "json")
    row = logged(part)["comparisons"][0]
    assert (row["score_baseline"], row["score_run"]) == (pytest.approx(0.8), 0.5)  # of the pairs that there are


def test_a_metric_that_lmms_eval_has_otherwise_is_a_warning(pope_runs: tuple[Path, Path], run_compare: Compare) -> None:
    path = (
        pope_runs[1] / "demo" / samples_file(pope_runs[1], "pope").name.replace("_samples_pope.jsonl", "_results.json")
    )
    path.write_text(path.read_text().replace("0.5", "0.25", 1))
    assert "the results JSON says pope_f1_score 0.25, the log gives 0.5" in run_compare(*pope_runs).stdout


def mmmu(answers: list[str], drawn: str) -> list[Row]:
    rows = []
    for i, (answer, letter) in enumerate(zip(answers, drawn, strict=True)):
        record = {
            "id": f"validation_Art_{i}",
            "question_type": "multiple-choice",
            "answer": "A",
            "parsed_pred": [letter],
        }
        rows.append(line(i, answer, input=f"Q{i}\nA. a cat\nB. a dog\n\nPick.", mmmu_acc=record))
    record = {"id": "validation_Art_9", "question_type": "open", "answer": "3.5", "parsed_pred": [[3.5]]}
    return [*rows, line(len(rows), "3.5" if drawn < "B" else "It is 3.50", mmmu_acc=record)]


def test_mmmus_random_letters_make_no_divergence(write_run: WriteRun, run_compare: Compare) -> None:
    """Equal answers, other letters drawn; and one answer more that has no letter."""
    base, run = (
        write_run(name, {"mmmu_val": rows}, **configured("mmmu_val", "mmmu_acc", native={"mmmu_acc": score}))
        for name, rows, score in (
            ("base", mmmu(["A", "no idea", "hm", "B"], "AABB"), 0.6),
            ("run", mmmu(["(A)", "no idea", "well", "dunno"], "BBAA"), 0.8),
        )
    )
    summary = logged(run_compare(base, run, "--format", "json"))
    row = summary["comparisons"][0]
    assert (row["dr"], row["ndr"], row["pdr"], row["same_prediction_flips"]) == (0.2, 0.0, 0.0, 0)
    assert (row["unparsable_baseline"], row["unparsable_run"]) == (2, 3)
    assert (row["score_baseline"], row["score_run"], row["score_source"]) == (0.4, 0.4, "pairs")
    assert summary["runs"][0]["warnings"] == []  # two of five, or four with the letters drawn
    parts = {one["metric"]: (one["n"], one["score_run"], one["dr"]) for one in summary["runs"][0]["benchmark_metrics"]}
    assert parts == {"multiple-choice accuracy": (4, 0.25, 0.25), "open accuracy": (1, 1.0, 0.0)}
    out = run_compare(base, run).stdout
    assert "unparsable answers, one prediction and wrong: 2 of the baseline, 3 of the run (mmmu_val)" in out
    raw = logged(run_compare(base, run, "--prediction", "raw", "--format", "json"))["comparisons"][0]
    assert (raw["dr"], raw["unparsable_run"], raw["score_run"]) == (0.8, None, 0.4)


def test_a_score_that_no_draw_explains_is_a_warning(write_run: WriteRun, run_compare: Compare) -> None:
    rows = mmmu(["A", "no idea", "B", "B"], "AABB")
    base, run = (
        write_run(name, {"mmmu_val": rows}, **configured("mmmu_val", "mmmu_acc", native={"mmmu_acc": 0.61}))
        for name in ("base", "run")
    )
    assert "the results JSON says mmmu_acc 0.61, the samples average 0.4" in run_compare(base, run).stdout


def mmbench(answers: str) -> list[Row]:
    """Two questions of two rotations each; the right letters are A, B, A, B."""
    rows = []
    for i, (said, right) in enumerate(zip(answers.split(), "ABAB", strict=True)):
        record = {"index": i // 2 + 1_000_000 * (i % 2), "answer": right, "prediction": said, "A": "cat", "B": "dog",
                  "C": None, "D": None, "E": "nan"}  # fmt: skip
        rows.append(line(i, said, gpt_eval_score=record))
    return rows


def test_mmbench_has_rows_and_circular_questions(write_run: WriteRun, run_compare: Compare) -> None:
    config = configured("mmbench_en_dev", "gpt_eval_score", "submission", native={"gpt_eval_score": 100.0})
    base = write_run("base", {"mmbench_en_dev": mmbench("A B A B")}, **config)
    config["results"]["results"]["mmbench_en_dev"]["gpt_eval_score,none"] = 50.0
    run = write_run("run", {"mmbench_en_dev": mmbench("A B A nothing")}, **config)
    summary = logged(run_compare(base, run, "--format", "json"))
    row = summary["comparisons"][0]
    assert (row["n"], row["dr"], row["ndr"]) == (4, 0.25, 0.25)
    assert (row["score_baseline"], row["score_run"], row["score_unit"]) == (1.0, 0.5, "fraction")
    assert (row["unparsable_baseline"], row["unparsable_run"]) == (0, 1)
    circular, rows = summary["runs"][0]["benchmark_metrics"]
    assert (circular["n"], circular["unit"], circular["dr"], circular["ndr"]) == (2, "questions", 0.5, 0.5)
    assert (rows["n"], rows["score_run"], rows["drop"], rows["ndr"]) == (4, 0.75, 0.25, 0.25)
    assert rows["ndr_high"] > circular["ndr"]
    assert summary["runs"][0]["warnings"] == []
    lines = run_compare(base, run).stdout.splitlines()
    expected = ["circular", "accuracy", "2", "questions", "100.0", "50.0", "50.0"]
    assert any(text.split()[:7] == expected for text in lines)


def test_mmbenchs_guesses_are_named_where_scores_differ(write_run: WriteRun, run_compare: Compare) -> None:
    config = configured("mmbench_en_dev", "gpt_eval_score", native={"gpt_eval_score": 100.0})
    base = write_run("base", {"mmbench_en_dev": mmbench("A B A B")}, **config)
    run = write_run("run", {"mmbench_en_dev": mmbench("A B A nothing")}, **config)
    out = run_compare(base, run).stdout
    assert "says gpt_eval_score 100, the log gives 50 (1 unparsable answers, wrong here, got a letter there" in out


def vqa_rad(closed: str, recalls: list[float]) -> list[Row]:
    rows = [
        line(i, said, target="yes", vqa_rad_score=float(said == "yes"), vqa_rad_closed_accuracy=float(said == "yes"),
             vqa_rad_record={"pred": said, "kind": "closed"})
        for i, said in enumerate(closed.split())
    ]  # fmt: skip
    return rows + [
        line(len(rows) + i, f"text {recall}", target="left lung", vqa_rad_score=recall, vqa_rad_open_recall=recall,
             vqa_rad_record={"pred": f"text {recall}", "kind": "open"})
        for i, recall in enumerate(recalls)
    ]  # fmt: skip


def test_vqa_rad_by_kind_and_sample_weighted(write_run: WriteRun, run_compare: Compare) -> None:
    config = configured("vqa_rad", "vqa_rad_score", "vqa_rad_open_recall", "vqa_rad_closed_accuracy")
    base = write_run("base", {"vqa_rad": vqa_rad("yes yes yes", [0.5, 1.0])}, **config)
    run = write_run("run", {"vqa_rad": vqa_rad("yes no yes", [1.0, 1.0])}, **config)
    summary = logged(run_compare(base, run, "--format", "json"))
    opened, closed, both = summary["runs"][0]["benchmark_metrics"]
    assert (opened["n"], opened["score_baseline"], opened["drop"], opened["pdr"]) == (2, 0.75, -0.25, 0.5)
    assert (closed["n"], closed["drop"], closed["ndr"]) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert both["n"] == 5
    assert both["drop"] == pytest.approx((2 * opened["drop"] + 3 * closed["drop"]) / 5)
    assert both["drop"] == pytest.approx(summary["comparisons"][0]["drop"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("open_recall", "closed_accuracy", "printed"), [(30.89, 58.66, 0.15), (30.38, 58.81, 0.27), (31.24, 58.20, 0.26)]
)
def test_the_papers_drop_on_vqa_rad_is_sample_weighted(
    open_recall: float, closed_accuracy: float, printed: float
) -> None:
    """Sun et al., table 6: 949 open and 1,299 closed questions, baseline 30.29 and 59.35."""
    metrics = adapter_for("vqa_rad").pair_metrics
    assert metrics is not None
    closed = np.arange(949 + 1299) >= 949
    frame = pd.DataFrame(
        {
            "target": np.where(closed, "Yes", "left lung"),
            "score_baseline": np.where(closed, 59.35, 30.29),
            "score_run": np.where(closed, closed_accuracy, open_recall),
        }
    ).assign(correct_baseline=True, correct_run=True, changed=False)
    opened, shut, both = metrics(frame)
    assert (opened.n, shut.n, both.n) == (949, 1299, 2248)
    assert both.drop == pytest.approx(printed, abs=0.006)


def test_tasks_with_metrics_are_told_apart(
    pope_runs: tuple[Path, Path], write_run: WriteRun, run_compare: Compare
) -> None:
    more = {"vqa_rad": vqa_rad("yes", [0.5])}
    both = [
        write_run(name, {"pope": pope("yes no", "yes no"), **more}, model=name, results={}) for name in ("b2", "r2")
    ]
    out = run_compare(*both, "--accept", "results").stdout
    assert "pope F1" in out
    assert "vqa_rad open recall" in out


@pytest.mark.parametrize(
    ("policy", "dr", "heading"),
    [
        ("scored", 0.0, "answers as scored"),
        ("filtered", 0.25, "answers as filtered"),
        ("raw", 0.75, "answers as the model wrote them"),
    ],
)
def test_policies(write_run: WriteRun, run_compare: Compare, policy: str, dr: float, heading: str) -> None:
    before = [sample(0, "red", 1.0), sample(1, "red", 1.0), sample(2, "red", 1.0), sample(3, "red", 1.0)]
    after = [
        sample(0, "red", 1.0),
        sample(1, "Red.", 1.0),
        sample(2, "red", 1.0, resps="red\n"),
        sample(3, "red", 1.0, resps=["<think>x</think>red"]),
    ]
    base, run = write_run("base", {"gqa": before}), write_run("run", {"gqa": after}, model="x")
    summary = logged(run_compare(base, run, "--prediction", policy, "--format", "json"))
    row = summary["comparisons"][0]
    assert (summary["prediction"], row["prediction"], row["dr"], row["ndr"]) == (policy, policy, dr, 0.0)
    assert heading in run_compare(base, run, "--prediction", policy).stdout.splitlines()[0]


def test_policies_leave_the_choices_of_likelihoods(write_run: WriteRun, run_compare: Compare) -> None:
    def rows(noise: float) -> list[Row]:
        pair = [[1.2 + noise, "False"], [0.3 + noise, "True"]]
        return [sample(i, pair, 1.0, resps=[[one] for one in pair]) for i in range(4)]

    base, run = write_run("base", {"mcq": rows(0)}), write_run("run", {"mcq": rows(1e-4)}, model="x")
    for policy in ("raw", "filtered", "scored"):
        assert logged(run_compare(base, run, "--prediction", policy, "--format", "json"))["comparisons"][0]["dr"] == 0.0


def test_an_unknown_policy_is_refused(base: Path, fastv: Path, run_compare: Compare) -> None:
    result = run_compare(base, fastv, "--prediction", "clean")
    assert result.exit_code == 2
    assert "'scored', 'filtered', 'raw'" in result.output
    with pytest.raises(Exception, match="--prediction clean: expected one of scored, filtered, raw"):
        compare_runs(base, [fastv], prediction="clean")


@pytest.mark.parametrize("listed", [True, False])
def test_a_perturbed_task_is_judged_as_its_base_whatever_its_name(
    write_run: WriteRun, run_compare: Compare, listed: bool
) -> None:
    entry = {"base_task": "gqa", "perturbation": {"modality": "image"}}
    metadata = [{"version": 0.0}, entry] if listed else {"version": 0.0, **entry}
    configs = {"my_blurred": {"metric_list": [{"metric": "exact_match"}], "metadata": metadata}}
    base = write_run("base", {"my_blurred": BASE}, configs=configs)
    run = write_run("run", {"my_blurred": [{**row, "filtered_resps": f"{row['filtered_resps']}."} for row in BASE]},
                    model="x", configs=configs)  # fmt: skip
    row = logged(run_compare(base, run, "--format", "json"))["comparisons"][0]
    assert (row["dr"], row["adapter"]) == (0.0, "exact match")


def test_the_base_task_of_one_results_file_is_enough(write_run: WriteRun, run_compare: Compare) -> None:
    configs = {"my_mmmu": {"metric_list": [{"metric": "mmmu_acc"}],
                           "metadata": [{"base_task": "mmmu_val", "perturbation": {}}]}}  # fmt: skip
    rows = mmmu(["A", "no idea"], "AB")
    base = write_run("base", {"my_mmmu": rows}, configs=configs)
    run = write_run("run", {"my_mmmu": rows}, model="x", configs=configs)
    (next((run / "demo").glob("*_results.json"))).unlink()
    row = logged(run_compare(base, run, "--accept", "results", "--format", "json"))["comparisons"][0]
    assert (row["adapter"], row["n"], row["dr"], row["unparsable_run"]) == ("MMMU", 3, 0.0, 1)


def test_averages_add_up_unparsable_answers_and_leave_metrics_alone(write_run: WriteRun, run_compare: Compare) -> None:
    tasks = {"gqa": BASE, "mmmu_val": mmmu(["A", "no idea"], "AB")}
    both = [write_run(name, tasks, model=name, results={}) for name in ("b", "r")]
    summary = logged(run_compare(*both, "--accept", "results", "--format", "json"))
    rows = {row["task"]: row for row in summary["comparisons"]}
    assert rows["gqa"]["unparsable_run"] is None
    assert rows["average"]["unparsable_run"] == rows["mmmu_val"]["unparsable_run"] == 1
    assert {one["task"] for one in summary["runs"][0]["benchmark_metrics"]} == {"mmmu_val"}


def test_empty_answers_of_mmmu_are_empty_first(write_run: WriteRun, run_compare: Compare) -> None:
    rows = {name: mmmu(["A", said], "AB") for name, said in (("b", "no idea"), ("r", ""))}
    base, run = (write_run(name, {"mmmu_val": one}, model=name, results={}) for name, one in rows.items())
    refused(run_compare(base, run, "--accept", "results"), "1 empty answers", "--accept empty")
    row = logged(run_compare(base, run, "--accept", "results,empty", "--format", "json"))["comparisons"][0]
    assert (row["dr"], row["unparsable_run"]) == (0.0, 1)


def test_pairs_csv_has_the_letters(write_run: WriteRun, run_compare: Compare, tmp_path: Path) -> None:
    both = [write_run(name, {"mmbench_en_dev": mmbench(said)}, model=name, results={})
            for name, said in (("b", "A B A B"), ("r", "A. B a nothing"))]  # fmt: skip
    assert run_compare(*both, "--accept", "results", "-o", tmp_path / "out").exit_code == 0
    with (tmp_path / "out" / "pairs.csv").open() as stream:
        predictions = [row["prediction_run"] for row in csv.DictReader(stream)]
    assert predictions == ["A", "B", "unparsable", "unparsable"]


def test_tasks_without_metrics_of_their_own_have_no_second_table(base: Path, fastv: Path, run_compare: Compare) -> None:
    assert "benchmark metric" not in run_compare(base, fastv).stdout
