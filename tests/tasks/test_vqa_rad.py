"""The `vqa_rad` tasks: scores, ids, and real lmms-eval runs on data laid out as on the hub."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import lmms_eval.tasks
import pytest
import yaml
from lmms_eval.tasks import TaskManager, get_task_dict

from lmms_eval_stability.plugin import task_dir
from lmms_eval_stability.samples import read_samples
from lmms_eval_stability.tasks.vqa_rad.utils import (
    UnexpectedSplitError,
    normalize,
    process_docs,
    process_results,
    token_recall,
)
from lmms_eval_stability.verdicts import adapter_for, judge_line
from tests.tasks.vqa_rad_data import TEST, TRAIN, write_repository, write_task

GOLDEN = Path(__file__).parents[1] / "golden" / "vqa_rad" / "recall.json"
DOC = {"question_id": "test_3", "split": "test", "image_id": "ab", "question": "?"}
PROMPT_END = "\nAnswer the question using a single word or phrase."


def score(response: str, answer: str) -> dict[str, Any]:
    return process_results({**DOC, "answer": answer}, [response])


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        ("yes", "Yes.", 1.0),
        ("No", "no", 1.0),
        ("no", "unknown", 0.0),  # LLaVA-Med's script finds "no" in it
        ("yes", "yes, on the left", 0.0),
        ("yes", "", 0.0),
        ("yes", "no", 0.0),
    ],
)
def test_closed_questions_are_scored_by_exact_match(answer: str, response: str, expected: float) -> None:
    result = score(response, answer)
    assert (result["vqa_rad_closed_accuracy"], result["vqa_rad_score"]) == (expected, expected)
    assert "vqa_rad_open_recall" not in result  # it would count in that mean
    assert result["vqa_rad_record"]["kind"] == "closed"


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        ("right upper lobe", "The upper lobe of the right lung", 1.0),
        ("right upper lobe", "upper", 1 / 3),
        ("x-ray", "Chest X Ray", 1.0),
        ("two", "2", 1.0),
        ("left lung", "lung lung lung", 3 / 4),  # LLaVA-Med counts a word as often as the answer has it
        ("left lung", "", 0.0),
        ("left or right", "no", 0.0),
        ("yes, both", "yes", 1 / 2),  # not a closed question: the answer says more
    ],
)
def test_open_questions_are_scored_by_token_recall(answer: str, response: str, expected: float) -> None:
    result = score(response, answer)
    assert result["vqa_rad_open_recall"] == result["vqa_rad_score"] == pytest.approx(expected)
    assert "vqa_rad_closed_accuracy" not in result
    assert result["vqa_rad_record"]["kind"] == "open"


def test_recall_equals_that_of_llava_med() -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(cases) == 240
    for case in cases:
        ours = token_recall(normalize(case["prediction"]), normalize(case["answer"]))
        assert ours == pytest.approx(case["recall"], abs=1e-12), case


def test_the_record_says_what_was_asked_and_answered() -> None:
    record = score(" The LEFT side.\n", "left")["vqa_rad_record"]
    assert record == {
        "question_id": "test_3",
        "split": "test",
        "image_id": "ab",
        "kind": "open",
        "score": 1.0,
        "pred": "left side",
        "answer": "left",
    }


def test_two_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="question test_3 has 2 answers"):
        process_results({**DOC, "answer": "yes"}, ["yes", "no"])


def test_the_comparison_predicts_what_the_task_compares() -> None:
    adapter = adapter_for("vqa_rad")
    assert adapter_for("vqa_rad_test") is adapter
    assert adapter.name == "VQA-RAD"
    rng = random.Random(5)
    pieces = ["yes", "No", "the", "two", "x-ray", "isnt", "1,000", "3.5", "\n", " ", "  ", *string.punctuation]
    answers = {"".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(4000)}
    assert len(answers) > 3000
    for answer in answers:
        assert adapter.normalise(answer) == normalize(answer), repr(answer)
    row = {"filtered_resps": "Left!", **score("Left!", "left lung")}
    verdict = judge_line({**row, "filtered_resps": "cut off elsewhere"}, adapter, "vqa_rad_score", correct_at=0.5)
    assert (verdict.prediction, verdict.score, verdict.correct) == ("left", 0.5, True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("hub") / "vqa-rad")


def load(repository: Path, cache: Path, name: str = "vqa_rad") -> datasets.Dataset:
    """Load as lmms-eval does: with the data arguments of the task's YAML."""
    config = yaml.safe_load((task_dir() / "vqa_rad" / f"{name}.yaml").read_text().replace("!function", ""))
    loaded = datasets.load_dataset(str(repository), cache_dir=str(cache), **config["dataset_kwargs"])
    return loaded["test"]


def test_both_parts_are_asked_and_named_by_part_and_row(repository: Path, tmp_path: Path) -> None:
    docs = process_docs(load(repository, tmp_path))
    names = [f"train_{i}" for i in range(len(TRAIN))] + [f"test_{i}" for i in range(len(TEST))]
    assert docs["question_id"][:] == names
    assert docs["split"][:] == ["train"] * len(TRAIN) + ["test"] * len(TEST)
    assert docs["question"][:] == [question for question, _ in (*TRAIN, *TEST)]
    images = docs["image_id"][:]
    assert images[0] == images[1] != images[2]
    assert len(set(images)) == 5
    assert docs[6]["image"].size == (64, 48)
    alone = process_docs(load(repository, tmp_path, "vqa_rad_test"))
    assert alone["question_id"][:] == names[len(TRAIN) :]
    assert alone["image_id"][:] == images[len(TRAIN) :]


def test_parts_of_splits_are_refused(repository: Path, tmp_path: Path) -> None:
    part = datasets.load_dataset(str(repository), split="test[:2]", cache_dir=str(tmp_path))
    with pytest.raises(UnexpectedSplitError, match=r"'test\[:2\]'.*--limit"):
        process_docs(part)


def test_the_task_names_the_hub_data_set_and_the_prompt_of_slake() -> None:
    folders = [str(task_dir() / "vqa_rad"), str(Path(lmms_eval.tasks.__file__).parent / "slake")]
    manager = TaskManager(include_path=folders, include_defaults=False)
    config = manager._get_config("vqa_rad")
    assert config["dataset_path"] == manager._get_config("vqa_rad_test")["dataset_path"] == "flaviagiammarino/vqa-rad"
    slake = manager._get_config("slake_en")["lmms_eval_specific_kwargs"]["default"]
    assert config["lmms_eval_specific_kwargs"]["default"] == slake
    assert config["metric_list"][0]["metric"] == "vqa_rad_score"  # what `compare` takes for the score


@pytest.fixture(scope="module")
def runs(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of real lmms-eval runs of two models on the miniature."""
    folder = tmp_path_factory.mktemp("vqa-rad-runs")
    tasks = write_task(folder / "tasks", repository, task_dir() / "vqa_rad" / "vqa_rad.yaml", "vqa_rad_small")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    for name, args in (("llava_baseline", "pretrained=demo"), ("llava_fastv", "pretrained=demo,k=3,r=0.75")):
        command = [sys.executable, "-m", "lmms_eval", "--model", name, "--model_args", args, "--device", "cpu"]
        command += ["--tasks", "vqa_rad_small", "--include_path", str(tasks), "--log_samples"]
        command += ["--output_path", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert list((folder / name).rglob("*_results.json")), (done.stdout + done.stderr)[-4000:]
    return {name: folder / name for name in ("llava_baseline", "llava_fastv")}


def logged(folder: Path) -> list[dict[str, Any]]:
    (log,) = folder.rglob("*_samples_vqa_rad_small.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_a_run_logs_kind_score_and_prediction_of_every_question(runs: dict[str, Path]) -> None:
    lines = logged(runs["llava_baseline"])
    assert [line["doc_id"] for line in lines] == list(range(len(TRAIN) + len(TEST)))
    for line, (question, answer) in zip(lines, (*TRAIN, *TEST), strict=True):
        record = line["vqa_rad_record"]
        assert line["input"] == question.strip() + PROMPT_END
        assert line["target"] == answer
        assert record["pred"] == normalize(line["filtered_resps"]) != ""
        assert record["kind"] == ("closed" if answer.lower() in ("yes", "no") else "open")
        assert record["score"] == line["vqa_rad_score"] == score(line["filtered_resps"], answer)["vqa_rad_score"]
    results = json.loads(next(runs["llava_baseline"].rglob("*_results.json")).read_text())
    reported = results["results"]["vqa_rad_small"]
    for metric in ("vqa_rad_score", "vqa_rad_open_recall", "vqa_rad_closed_accuracy"):
        values = [line[metric] for line in lines if metric in line]
        assert reported[f"{metric},none"] == pytest.approx(sum(values) / len(values))
        assert 0 < reported[f"{metric},none"] < 1  # the model gets some right
    assert sum("vqa_rad_closed_accuracy" in line for line in lines) == 4
    assert results["n-samples"]["vqa_rad_small"]["original"] == 8


def compare(runs: dict[str, Path], *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "compare", *map(str, runs.values()), *options]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["comparisons"]
    return dict(record)


def test_compare_reports_both_kinds_together_and_alone(runs: dict[str, Path]) -> None:
    both = compare(runs)
    assert (both["adapter"], both["metric"], both["n"]) == ("VQA-RAD", "vqa_rad_score", 8)
    pairs = zip(logged(runs["llava_baseline"]), logged(runs["llava_fastv"]), strict=True)
    changed = [a["vqa_rad_record"]["pred"] != b["vqa_rad_record"]["pred"] for a, b in pairs]
    assert both["dr"] == pytest.approx(sum(changed) / 8)
    assert any(changed)
    closed = compare(runs, "--metric", "vqa_rad_closed_accuracy", "--accept", "unscored")
    open_ones = compare(runs, "--metric", "vqa_rad_open_recall", "--accept", "unscored")
    assert (closed["n"], open_ones["n"]) == (4, 4)
    assert both["dr"] == pytest.approx((closed["dr"] + open_ones["dr"]) / 2)


def test_the_log_is_read_with_the_tasks_score(runs: dict[str, Path]) -> None:
    (log,) = runs["llava_baseline"].rglob("*_samples_*.jsonl")
    table = read_samples(log, "vqa_rad_small", adapter_for("vqa_rad_small"), ("vqa_rad_score",))
    assert table.metric == "vqa_rad_score"
    assert table.frame["logged_prediction"].notna().all()


def test_lmms_eval_builds_both_tasks(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ("vqa_rad", "vqa_rad_test")
    for name in names:
        write_task(tmp_path / "t", repository, task_dir() / "vqa_rad" / f"{name}.yaml", f"{name}_small")
    manager = TaskManager(include_path=str(tmp_path / "t"), include_defaults=False)
    built = get_task_dict([f"{name}_small" for name in names], manager, task_type="chat")
    assert [len(built[f"{name}_small"].eval_docs) for name in names] == [8, 3]
    (message,) = built["vqa_rad_test_small"].doc_to_messages(built["vqa_rad_test_small"].eval_docs[0])
    assert message["content"][1]["text"] == TEST[0][0] + PROMPT_END
