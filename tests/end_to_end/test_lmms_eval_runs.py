"""The main job: accelerated models through lmms-eval's command line, then DR, NDR and reports from its logs."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lmms_eval_stability.demo import model_path
from tests.end_to_end.conftest import FASTV, LIMIT, FinishedRun, run_lmms_eval

Pair = tuple[FinishedRun, FinishedRun]


def stability(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmms_eval_stability.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def answers(run: FinishedRun) -> dict[int, str]:
    return {doc_id: line["filtered_resps"] for doc_id, line in run.lines.items()}


def test_every_line_carries_its_measurements(pair: Pair) -> None:
    base, fastv = pair
    with_facts = 0
    for doc_id in range(LIMIT):
        (before,), (after,) = base.lines[doc_id]["token_counts"], fastv.lines[doc_id]["token_counts"]
        assert before["visual_tokens"] == [144]
        assert (after["visual_tokens"], after["visual_token_layers"]) == ([144, 36], [0, 3])
        assert before["input_fingerprint"] == after["input_fingerprint"]
        assert len(after["first_token_logprobs"]) == 5
        assert after["answer_logprob"] <= 0 < after["prefill_ms"]
        with_facts += "run" in after
    assert with_facts == 1
    assert fastv.lines[0]["token_counts"][0]["run"]["method_args"] == {"k": 3, "r": 0.75}


def test_the_baseline_answers_what_lmms_evals_own_model_answers(pair: Pair, tmp_path: Path) -> None:
    ours, _ = pair
    own_args = f"pretrained={model_path()},device_map=cpu,device=cpu"
    own = run_lmms_eval(tmp_path, "--model", "llava_hf", "--model_args", own_args)
    assert answers(ours) == answers(own)
    assert {i: line["input"] for i, line in ours.lines.items()} == {i: line["input"] for i, line in own.lines.items()}


def test_compare_reports_what_the_logs_say(pair: Pair, tmp_path: Path) -> None:
    base, fastv = pair
    done = stability("compare", base.folder, fastv.folder, "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "input fingerprints: 60 of 60 equal" in done.stdout
    (record,) = json.loads((tmp_path / "report" / "summary.json").read_text())["comparisons"]

    def norm(run: FinishedRun, i: int) -> str:
        return run.lines[i]["filtered_resps"].strip().lower().strip(".")

    def right(run: FinishedRun, i: int) -> bool:
        return run.lines[i]["exact_match"] == 1

    ids = range(LIMIT)
    assert record["n"] == LIMIT
    assert record["dr"] == pytest.approx(sum(norm(base, i) != norm(fastv, i) for i in ids) / LIMIT)
    assert record["ndr"] == pytest.approx(sum(right(base, i) and not right(fastv, i) for i in ids) / LIMIT)
    assert record["pdr"] == pytest.approx(sum(right(fastv, i) and not right(base, i) for i in ids) / LIMIT)
    assert record["score_baseline"] == pytest.approx(base.results["results"]["shapes_vqa"]["exact_match,none"])
    assert record["drop"] == pytest.approx(record["ndr"] - record["pdr"])
    assert record["dr"] > 0  # the demo really diverges
    assert record["score_baseline"] > 0.6
    with (tmp_path / "report" / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == LIMIT
    assert sum(pair["flip"] == "negative" for pair in pairs) == round(record["ndr"] * LIMIT)


def test_reports_of_real_runs(pair: Pair, tmp_path: Path) -> None:
    """A gate for pipelines, a leaderboard file, a summary as its schema says."""
    from lmms_eval.utils import make_table

    base, fastv = pair
    done = stability("compare", base.folder, fastv.folder, "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    schema = json.loads(files("lmms_eval_stability.report").joinpath("summary.schema.json").read_text("utf-8"))
    assert [error.message for error in Draft202012Validator(schema).iter_errors(summary)] == []
    (record,) = summary["comparisons"]

    (leaderboard,) = (tmp_path / "report").glob("leaderboard_*.json")
    document = json.loads(leaderboard.read_text(encoding="utf-8"))
    before, after = make_table(copy.deepcopy(fastv.results)), make_table(document)
    assert "|dr " not in before
    added = {line.split("|")[4].strip(): line.split("|") for line in after.splitlines() if line.startswith("|")}
    assert float(added["ndr"][6]) == round(record["ndr"], 4)
    assert float(added["dr"][8]) == pytest.approx((record["dr"] * (1 - record["dr"]) / (LIMIT - 1)) ** 0.5, abs=1e-4)

    loose, tight = tmp_path / "loose.yaml", tmp_path / "tight.yaml"
    loose.write_text("tasks: {shapes_vqa: {ndr: 60}}")
    tight.write_text("tasks: {shapes_vqa: {dr: {max: 0, judge: point}}}")
    assert record["dr"] > 0  # the demo really diverges
    assert stability("gate", loose, tmp_path / "report").returncode == 0
    assert stability("gate", tight, tmp_path / "report", "--junit", tmp_path / "gate.xml").returncode == 1
    assert "<failure" in (tmp_path / "gate.xml").read_text(encoding="utf-8")
    # no re-run, no excess DR
    tight.write_text("tasks: {shapes_vqa: {ndr_low: 99, excess_dr: 50}}")
    assert stability("gate", tight, tmp_path / "report").returncode == 3


def test_two_ranks_answer_what_one_process_answers(pair: Pair, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    model, model_args = FASTV
    two = run_lmms_eval(tmp_path, "--model", model, "--model_args", model_args, launcher=launcher, OMP_NUM_THREADS="1")
    _, one = pair
    assert answers(two) == answers(one)
    facts = [line["token_counts"][0]["run"] for line in two.lines.values() if "run" in line["token_counts"][0]]
    assert [run["world_size"] for run in facts] == [2, 2]
    done = stability("compare", one.folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "world_size 1 against 2" in done.stdout


def test_an_unusable_argument_ends_the_run_without_results(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_fastv", "--model_args", "pretrained=demo,keep=0.5"]
    command += ["--tasks", "shapes_vqa", "--limit", "2", "--log_samples", "--output_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "llava_fastv does not take keep; it takes pretrained" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.jsonl"))
    refused = stability("compare", tmp_path, tmp_path)
    assert refused.returncode == 2
    assert "error:" in refused.stderr
