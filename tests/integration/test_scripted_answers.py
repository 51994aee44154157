"""Every adapter on lines that lmms-eval wrote about right, wrong, partly right and unreadable answers.

The tasks are lmms-eval's own YAMLs and this package's, their data the stand-ins; see `scripted.py` for the answers.
What must come out is what lmms-eval itself found: its scores, and the verdict that each line states or that its own
code gives on it.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import (
    ADAPTERS,
    DOCUMENTS,
    TIMEOUT,
    TWINS,
    ZERO_OR_ONE,
    Compared,
    Output,
    base_of,
    compare,
    compared,
    metric_of,
    run_lmms_eval,
)

pytestmark = pytest.mark.timeout(TIMEOUT)
SEEDS = (1, 2, 3, 4)
LARGE = ("pope", "shapes_vqa")
#: All but those that are perturbed pictures of 2,000 questions.
SMALL = (*(task for task in DOCUMENTS if task not in LARGE), *(twin for twin in TWINS if "shapes" not in twin))
THRESHOLD = 0.9 - 1e-6


def arguments(seed: int, tasks: tuple[str, ...], empty: float = 0) -> list[str]:
    return ["--model", "scripted", "--model_args", f"seed={seed},empty={empty}", "--tasks", ",".join(tasks)]


@pytest.fixture(scope="module")
def outputs(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    commands = {f"small_{seed}": arguments(seed, SMALL) for seed in (0, *SEEDS)}
    commands |= {f"large_{seed}": arguments(seed, LARGE) for seed in (0, 1)}
    commands["empty"] = arguments(9, ("gqa", "mmmu_val"), empty=0.5)
    return run_lmms_eval(commands, hub, tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def small(outputs: dict[str, Output], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    runs = [outputs[f"small_{seed}"].folder for seed in (0, *SEEDS)]
    return compared(tmp_path_factory.mktemp("small"), *runs)


@pytest.fixture(scope="module")
def large(outputs: dict[str, Output], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return compared(tmp_path_factory.mktemp("large"), outputs["large_0"].folder, outputs["large_1"].folder)


@pytest.fixture(scope="module")
def cases(
    small: Compared, large: Compared, outputs: dict[str, Output]
) -> list[tuple[str, Compared, int, Output, Output]]:
    """(task, comparison, number of the run in it, the baseline's output, the run's) for every task and run."""
    found = [(t, small, i, outputs["small_0"], outputs[f"small_{s}"]) for t in SMALL for i, s in enumerate(SEEDS)]
    return found + [(task, large, 0, outputs["large_0"], outputs["large_1"]) for task in LARGE]


def test_every_task_is_compared_by_its_own_adapter(
    cases: list[tuple[str, Compared, int, Output, Output]], small: Compared, large: Compared
) -> None:
    for task, comparison, i, *_ in cases:
        row = comparison.records(i)[task]
        documents = DOCUMENTS[base_of(task)]
        found = (row["adapter"], row["metric"], row["n"], len(comparison.pairs_of(i, task)))
        assert found == (ADAPTERS[base_of(task)], metric_of(task), documents, documents), task
        assert row["same_prediction_flips"] == 0, task
    assert set(small.records(0)) == {*SMALL, "average"}
    assert set(large.records(0)) == {*LARGE, "average"}
    for comparison in (small, large):
        for run in comparison.summary["runs"]:
            assert (run["accepted"], run["confounders"]) == ([], [])
            # of six answers it happens that none changes
            assert [warning for warning in run["warnings"] if "byte-identical" not in warning] == []


def test_scores_are_lmms_evals(cases: list[tuple[str, Compared, int, Output, Output]]) -> None:
    for task, comparison, i, base, run in cases:
        row = comparison.records(i)[task]
        for side, output in (("baseline", base), ("run", run)):
            ours, native = row[f"score_{side}"], output.native(task)
            if task == "mmmu_val":  # draws a letter for what it cannot read, and rounds
                assert ours - 1e-5 <= native <= ours + row[f"unparsable_{side}"] / row["n"] + 1e-5
            else:
                assert ours == pytest.approx(native, abs=1e-12), (task, side)
        assert row["drop"] == pytest.approx(row["score_baseline"] - row["score_run"], abs=1e-12)
        if base_of(task) in ZERO_OR_ONE:
            assert row["drop"] == pytest.approx(row["ndr"] - row["pdr"], abs=1e-12), task


def test_verdicts_are_lmms_evals(cases: list[tuple[str, Compared, int, Output, Output]]) -> None:
    seen: dict[str, Counter[str]] = {task: Counter() for task in (*SMALL, *LARGE)}
    for task, comparison, i, *outputs in cases:
        pairs = comparison.pairs_of(i, task)
        for side, output in zip(("baseline", "run"), outputs, strict=True):
            lines = output.lines(task)
            assert list(lines) == pairs.index.tolist()
            for verdict, line in zip(pairs.itertuples(), lines.values(), strict=True):
                prediction = getattr(verdict, f"prediction_{side}")
                score, correct = getattr(verdict, f"score_{side}"), getattr(verdict, f"correct_{side}")
                expected = logged_score(base_of(task), line, prediction)
                assert score == pytest.approx(expected, abs=1e-12), (task, line)
                assert correct == (expected >= THRESHOLD), (task, line)
                kind = "right" if correct else "partly" if score else "wrong"
                seen[task]["unparsable" if prediction == "unparsable" else kind] += 1
        changed = pairs["prediction_baseline"].astype(str) != pairs["prediction_run"].astype(str)
        assert (changed == pairs["changed"]).all()
    for task, kinds in seen.items():
        assert kinds["right"], task
        assert kinds["wrong"], task
        assert kinds["unparsable"] or not ADAPTERS[base_of(task)].startswith("MM"), task
        assert kinds["partly"] or ADAPTERS[base_of(task)] not in ("soft VQA score",), task


def logged_score(task: str, line: dict[str, Any], prediction: str) -> float:
    """What lmms-eval logged about the answer; where it logs no score, what its own code finds."""
    if task.startswith("mmbench"):
        return float(mmbench_letter(line["gpt_eval_score"], static=task.endswith("static")) == line["target"])
    if task == "mmmu_val":
        from lmms_eval.tasks.mmmu import utils

        record = line["mmmu_acc"]
        if record["question_type"] == "open":
            return float(utils.eval_open(record["answer"], record["parsed_pred"][0]))
        # an unreadable answer is wrong here, and a letter drawn at random there
        return float(prediction != "unparsable" and utils.eval_multi_choice(record["answer"], record["parsed_pred"][0]))
    if task == "pope":
        return float(line["pope_accuracy"]["score"])
    return float(line[metric_of(task)])


def mmbench_letter(record: dict[str, Any], static: bool) -> str | None:
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    letter = MMBench_Evaluator().prefetch_answer(dict(record))
    return extract_mcq_answer(record["prediction"], choices=list("ABCD")) if static and not letter else letter or None


def test_predictions_are_those_that_lmms_eval_logged(
    cases: list[tuple[str, Compared, int, Output, Output]],
) -> None:
    for task, comparison, i, _, run in cases:
        lines, predictions = run.lines(task), comparison.pairs_of(i, task)["prediction_run"]
        for document, line in lines.items():
            if task == "pope":
                assert predictions[document] == line["pope_accuracy"]["prediction"]
            elif task.startswith("vqa_rad"):
                assert predictions[document] == line["vqa_rad_record"]["pred"]
            elif "submission" in line and "answer" in line["submission"] and not task.startswith("mmbench"):
                assert predictions[document] == line["submission"]["answer"]
            elif task == "mmmu_val" and line["mmmu_acc"]["question_type"] == "open":
                ours = json.loads(predictions[document])
                assert sorted(map(str, ours)) == sorted(map(str, line["mmmu_acc"]["parsed_pred"][0]))
            elif task == "mmmu_val" and predictions[document] != "unparsable":
                assert predictions[document] == line["mmmu_acc"]["parsed_pred"][0]
            elif not task.startswith("mm"):  # nothing is logged: what its code compares
                assert predictions[document] == compared_text(base_of(task), line["filtered_resps"])


def compared_text(task: str, answer: str) -> str:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    text = answer.strip()
    if task == "vqav2_val":
        rules = EvalAIAnswerProcessor()
        return str(rules.process_digit_article(rules.process_punctuation(text)))
    if task == "scienceqa_img":
        return text[0].lower() if text[0].isupper() and text[1:2] == "." else text.lower()
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def test_native_metrics_beside_the_score(small: Compared, large: Compared, outputs: dict[str, Output]) -> None:
    found = {(m["task"], m["metric"]): m for m in small.summary["runs"][0]["benchmark_metrics"]}
    for task in ("vqa_rad", "vqa_rad_test"):
        for name, key in (("open recall", "vqa_rad_open_recall"), ("closed accuracy", "vqa_rad_closed_accuracy")):
            native = outputs["small_1"].results[task][f"{key},none"]
            assert found[task, name]["score_run"] == pytest.approx(native)
    assert found["mmbench_en_dev", "circular accuracy"]["n"] == 3
    assert found["mmmu_val", "open accuracy"]["n"] == 2
    found = {m["metric"]: m for m in large.summary["runs"][0]["benchmark_metrics"]}
    for name, key in (("F1", "f1_score"), ("precision", "precision"), ("recall", "recall")):
        native = outputs["large_1"].results["pope"][f"pope_{key},none"]
        assert found[name]["score_run"] == pytest.approx(native)
        assert 0 < native < 1


def test_categories_and_clusters(small: Compared, large: Compared) -> None:
    assert large.categories(0, "pope", "split") == dict.fromkeys(("adversarial", "popular", "random"), 3000)
    assert len(large.categories(0, "shapes_vqa", "kind")) > 1
    assert small.categories(0, "mmmu_val", "subject") == {"Accounting": 2, "Art": 2, "Math": 2}
    assert small.categories(0, "mmmu_val", "question type") == {"multiple-choice": 4, "open": 2}
    for task in ("mmbench_en_dev", "mmbench_en_dev_static"):
        assert small.categories(0, task, "ability") == {"attribute": 4, "perception": 4}
        by_category = {"identity_reasoning": 4, "attribute_recognition": 3, "image_scene": 1}
        assert small.categories(0, task, "category") == by_category
        assert small.records(0)[task]["clusters"] == 3
    assert small.categories(0, "vqa_rad", "kind") == {"closed": 3, "open": 3}
    assert large.records(0)["pope"]["clusters"] == 500
    for task in SMALL:
        if task in TWINS:
            assert sum(small.categories(0, task, "perturbation").values()) == 6
            assert small.categories(0, task, "perturbed input")["changed"] >= 4


def test_an_answer_is_never_lost(outputs: dict[str, Output], tmp_path: Path) -> None:
    """Empty ones are refused by name, and compared when accepted."""
    base, empty = outputs["small_0"].folder, outputs["empty"]
    tasks = ("--task", "gqa", "--task", "mmmu_val")
    refused = compare(base, empty.folder, *tasks)
    assert refused.exit_code == 2
    for task in ("gqa", "mmmu_val"):
        count = sum(not line["filtered_resps"] for line in empty.lines(task).values())
        assert 0 < count < 6
        assert f"task {task}, " in refused.output
        assert f": {count} empty answers" in refused.output
    accepted = compared(tmp_path, base, empty.folder, *tasks, "--accept", "empty").records(0)
    assert [accepted[task]["n"] for task in ("gqa", "mmmu_val")] == [6, 6]
    assert math.isclose(accepted["gqa"]["score_run"], empty.native("gqa"))
