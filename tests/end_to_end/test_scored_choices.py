"""Multiple choice by likelihood: real lmms-eval processes on the embedded model, compared with one under FastV."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.plugin import task_dir
from tests.integration.running import Output, run_lmms_eval

LIMIT = 40
TASK = """
task: shapes_choice
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
process_docs: !function utils.with_two_answers
output_type: multiple_choice
doc_to_visual: !function lmms_eval_stability.tasks.shapes_vqa.utils.doc_to_visual
doc_to_text: !function lmms_eval_stability.tasks.shapes_vqa.utils.doc_to_text
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: "\\nAnswer the question using a single word or phrase."}}
"""
UTILS = """
def with_two_answers(docs):
    return docs.filter(lambda kind: kind == "exist", input_columns="kind")
"""


@dataclass(frozen=True)
class ScoredRun:
    folder: Path
    lines: dict[int, dict[str, Any]]
    accuracy: float
    output: str


BASELINE = ("llava_baseline", "pretrained=demo,batch_size=4")
FASTV = ("llava_fastv", "pretrained=demo,batch_size=4,k=1,r=0.9")


Scored = dict[str, ScoredRun]


def read_run(output: Output) -> ScoredRun:
    lines = output.lines("shapes_choice")
    assert len(lines) == LIMIT
    return ScoredRun(output.folder, lines, output.results["shapes_choice"]["acc,none"], output.printed)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The baseline, FastV, FastV filling lmms-eval's cache of answers, one after the other in one process; and again.

    The last, on the filled cache, has a process of its own.
    """
    tasks, folder = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("runs")
    (tasks / "shapes_choice.yaml").write_text(TASK.format(data=task_dir() / "shapes_vqa" / "shapes_vqa.parquet"))
    (tasks / "utils.py").write_text(UTILS)
    cached = ("--use_cache", str(folder / "cache"))
    models = {"baseline": BASELINE, "fastv": FASTV, "filling": (*FASTV, *cached), "again": (*FASTV, *cached)}
    task = ("--tasks", "shapes_choice", "--include_path", str(tasks), "--limit", str(LIMIT))
    commands = {
        name: ["--model", model, "--model_args", model_args, *more, *task]
        for name, (model, model_args, *more) in models.items()
    }
    last = {"again": commands.pop("again")}
    outputs = run_lmms_eval(commands, folder / "hub", folder) | run_lmms_eval(last, folder / "hub", folder)
    return {name: read_run(output) for name, output in outputs.items()}


def choice(line: dict[str, Any]) -> str:
    losses = [float(loss) for loss, _ in line["filtered_resps"]]
    return ("yes", "no")[losses.index(min(losses))]


@pytest.mark.parametrize(("model", "tokens"), [("baseline", [144]), ("fastv", [144, 14])])
def test_losses_and_accuracy_come_out(model: str, tokens: list[int], scored: Scored) -> None:
    run = scored[model]
    right = 0
    for line in run.lines.values():
        assert line["acc"] == float(choice(line) == line["target"])
        right += line["acc"]
        assert len(line["filtered_resps"]) == len(line["token_counts"]) == 2
        for (loss, is_greedy), counts in zip(line["filtered_resps"], line["token_counts"], strict=True):
            assert counts["answer_tokens"] == 1
            assert float(loss) == pytest.approx(-counts["answer_logprob"], abs=1e-6)
            assert counts["visual_tokens"] == tokens
            top, text, logprob = counts["first_token_logprobs"][0]
            assert is_greedy == str(float(loss) == pytest.approx(-logprob, abs=1e-6)), (top, text)
        assert line["token_counts"][0]["first_token_logprobs"] == line["token_counts"][1]["first_token_logprobs"]
    assert run.accuracy == pytest.approx(right / LIMIT)
    assert model != "baseline" or run.accuracy > 0.7  # the model is really trained
    assert sum("run" in line["token_counts"][0] for line in run.lines.values()) == 1


def test_compare_reads_the_choices(scored: Scored) -> None:
    base, fastv = scored["baseline"], scored["fastv"]
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "compare", str(base.folder), str(fastv.folder)]
    done = subprocess.run([*command, "-o", str(fastv.folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"input fingerprints: {LIMIT} of {LIMIT} equal" in done.stdout
    (record,) = json.loads((fastv.folder / "summary.json").read_text())["comparisons"]
    differs = [i for i in range(LIMIT) if choice(base.lines[i]) != choice(fastv.lines[i])]
    assert record["dr"] == pytest.approx(len(differs) / LIMIT)
    assert record["score_baseline"] == pytest.approx(base.accuracy)
    assert record["drop"] == pytest.approx(base.accuracy - fastv.accuracy)
    assert differs  # dropping nine of ten tokens tells


def test_scores_come_back_from_lmms_evals_cache(scored: Scored) -> None:
    first, second = scored["filling"], scored["again"]
    assert f"{2 * LIMIT}/{2 * LIMIT} cache hits" in second.output
    assert second.accuracy == first.accuracy == scored["fastv"].accuracy
    for i, line in second.lines.items():
        assert line["filtered_resps"] == first.lines[i]["filtered_resps"]
        assert line["token_counts"] == [None, None]
