"""What is said about a comparison that is not refused: warnings, confounders, and the baseline's re-run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from .conftest import BASE, FASTV, STAMP, Row, WriteRun, sample, samples, samples_file
from .test_hostile_logs import refused

Compare = Callable[..., Result]
OTHER_BATCH: Row = {
    "model": "llava_baseline",
    "model_args": "pretrained=demo",
    "batch_size": "8",
    "limit": None,
    "gen_kwargs": "",
}


def measured(rows: list[Row], **facts: object) -> list[Row]:
    """The rows as our own models log them: fingerprints everywhere, facts of the run in the second line."""
    counts: list[Row] = [{"output_tokens": 1, "input_fingerprint": f"{row['doc_id']:x}"} for row in rows]
    counts[1]["run"] = facts
    return [{**row, "token_counts": [one]} for row, one in zip(rows, counts, strict=True)]


def test_a_rerun_must_be_the_same_model(base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare) -> None:
    other = write_run("other", {"gqa": BASE}, args="pretrained=other")
    refused(run_compare(base, fastv, "--rerun", other), "no re-run of", "pretrained demo against other")
    model = write_run("model", {"gqa": BASE}, model="llava_fastv")
    refused(run_compare(base, fastv, "--rerun", model), "model llava_baseline against llava_fastv")
    refused(run_compare(base, fastv, "--rerun", fastv), "are the same run")


def test_a_rerun_must_use_the_method_in_the_same_way(write_run: WriteRun, run_compare: Compare) -> None:
    base, again = (write_run(f"k{k}", {"gqa": measured(BASE, method_args={"k": k})}) for k in (3, 9))
    run = write_run("run", {"gqa": FASTV}, model="x")
    refused(run_compare(base, run, "--rerun", again), "method arguments {'k': 3} against {'k': 9}")


def test_confounders_of_the_rerun_are_printed(
    base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare
) -> None:
    again = write_run("again", {"gqa": BASE}, config=OTHER_BATCH)
    assert "\nre-run confounders: batch_size 1 against 8\n" in run_compare(base, fastv, "--rerun", again).stdout
    assert "re-run confounders: none" in run_compare(base, fastv, "--rerun", write_run("same", {"gqa": BASE})).stdout
    summary = json.loads(run_compare(base, fastv, "--rerun", again, "--format", "json").stdout)
    assert summary["rerun"]["confounders"] == [{"name": "batch_size", "baseline": "1", "run": "8"}]


def test_confounders_of_the_rerun_are_those_of_its_own_tasks(write_run: WriteRun, run_compare: Compare) -> None:
    def configs(*tasks: str) -> Row:
        return {task: {"generation_kwargs": {"max_new_tokens": 8}} for task in tasks}

    base = write_run("base", {"gqa": BASE, "pope": BASE}, configs=configs("gqa", "pope"))
    run = write_run("run", {"gqa": FASTV, "pope": FASTV}, model="x", configs=configs("gqa", "pope"))
    again = write_run("again", {"gqa": BASE}, configs=configs("gqa"))
    assert "re-run confounders: none" in run_compare(base, run, "--rerun", again, "--accept", "task").stdout


def test_answers_from_a_cache_are_no_rerun_to_trust(write_run: WriteRun, run_compare: Compare) -> None:
    base, run = write_run("base", {"gqa": measured(BASE)}), write_run("run", {"gqa": measured(FASTV)}, model="x")
    cached = write_run("again", {"gqa": [{**row, "token_counts": [None]} for row in BASE]})
    out = run_compare(base, run, "--rerun", cached).stdout
    assert f"{cached}: 5 of 5 rows carry no measurements, all of {base} do (answers from a response cache" in out
    assert "carry no" not in run_compare(base, run).stdout


def test_tasks_that_only_the_rerun_holds_are_mentioned(
    base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare
) -> None:
    again = write_run("again", {"gqa": BASE, "pope": BASE})
    assert (
        f"{again} (re-run) holds tasks that the baseline lacks: pope"
        in run_compare(base, fastv, "--rerun", again).stdout
    )


def test_without_results_json_the_logs_say_what_differs(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"gqa": measured(BASE, batch_size=1, dtype="float16")})
    run = write_run("run", {"gqa": measured(FASTV, batch_size=8, dtype="float16")}, model="x")
    (run / "demo" / f"{STAMP}_results.json").unlink()
    out = run_compare(base, run, "--accept", "results").stdout
    assert "confounders: batch_size 1 against 8\n" in out
    assert f"settings not checked: no results JSON for {run}\n" in out


def test_some_fingerprints_are_not_all(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"gqa": measured(BASE)})
    half = [*measured(FASTV)[:3], *FASTV[3:]]
    out = run_compare(base, write_run("run", {"gqa": half}, model="x")).stdout
    assert "input fingerprints: 3 of 5 pairs have fingerprints in both logs; all equal" in out


def test_copies_are_noticed(base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare) -> None:
    copy = write_run("copy", {"gqa": BASE}, model="llava_fastv")
    assert "are byte-identical: a copy?" in run_compare(base, copy).stdout
    path = samples_file(copy)
    path.write_bytes(path.read_bytes().replace(b"question", b"questiom"))
    assert "byte-identical" not in run_compare(base, copy, "--accept", "input").stdout


@pytest.mark.parametrize(("at", "word"), [("2", "no"), ("0.1", "every")])
def test_a_threshold_on_one_side_of_all_scores(write_run: WriteRun, run_compare: Compare, at: str, word: str) -> None:
    base = write_run("base", {"gqa": samples("a b", [1.0, 0.5])})
    run = write_run("run", {"gqa": samples("a c", [1.0, 0.2])}, model="x")
    out = run_compare(base, run, "--correct-at", at).stdout
    assert f"{word} answer of both runs is correct at --correct-at {at}, although scores go from 0.2 to 1" in out
    assert "NDR and PDR say nothing" not in run_compare(base, run).stdout


def test_native_scores_in_percent_are_no_doubt(write_run: WriteRun, run_compare: Compare) -> None:
    runs = []
    for name, rows, native in (("base", BASE, 60.0), ("run", FASTV, 60.0)):
        runs.append(write_run(name, {"gqa": rows}, model=name))
        path = runs[-1] / "demo" / f"{STAMP}_results.json"
        path.write_text(path.read_text().replace('"exact_match,none": 0.6', f'"exact_match,none": {native}'))
    out = run_compare(*runs).stdout
    assert "warning" not in out
    assert out.splitlines()[2].split()[:5] == ["gqa", "5", "60", "60", "0"]


def test_scores_beyond_one_still_ask_for_the_threshold(write_run: WriteRun, run_compare: Compare) -> None:
    base, run = (write_run(name, {"gqa": [sample(0, name, 80.0)]}, model=name) for name in "ab")
    assert "scores are not within 0 to 1; is --correct-at 0.9 what you mean?" in run_compare(base, run).stdout


def test_several_reruns_are_one_floor(base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare) -> None:
    same = write_run("same", {"gqa": BASE})
    other = write_run("other", {"gqa": [*BASE[:4], sample(4, "nope", 0.0)]}, config=OTHER_BATCH)
    result = run_compare(base, fastv, "--rerun", same, "--rerun", other)
    assert "2 re-runs of the baseline: DR 10.0 [" in result.stdout
    assert " -> excess DR 50.0 [" in result.stdout
    assert f"re-run confounders of {same}: none" in result.stdout
    assert f"re-run confounders of {other}: batch_size 1 against 8" in result.stdout
    summary = json.loads(run_compare(base, fastv, "--rerun", same, "--rerun", other, "--format", "json").stdout)
    assert [one["path"] for one in summary["reruns"]] == [str(same), str(other)]
    assert summary["rerun"] == summary["reruns"][0]
    (record,) = summary["comparisons"]
    assert (record["reruns"], record["rerun_n"], record["excess_dr"]) == (2, 5, 0.5)
    assert record["excess_dr_low"] < 0.5 < record["excess_dr_high"]
    refused(run_compare(base, fastv, "--rerun", same, "--rerun", same), "are the same run")
