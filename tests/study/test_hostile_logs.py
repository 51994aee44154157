"""Damaged and mismatched logs: always a named error with exit code 2, never a traceback, never a quietly smaller n."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import BASE, FASTV, STAMP, WriteRun, results_json, sample, samples_file

Compare = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    """The command ended with exit code 2 and one error that holds all the words."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_truncated_last_line(base: Path, fastv: Path, run_compare: Compare) -> None:
    path = samples_file(fastv)
    path.write_bytes(path.read_bytes()[:-40])
    result = run_compare(base, fastv)
    refused(
        result, str(path), "line 5: cut off: the line has no end", "--accept unparsable", "--accept unpaired", "doc 4"
    )
    accepted = run_compare(base, fastv, "--accept", "unparsable,unpaired", "--format", "json")
    record = json.loads(accepted.stdout)["comparisons"][0]
    assert record["n"] == 4
    assert record["accepted"] == {"unparsable": 1, "unpaired": 1}
    assert record["score_source"] == "pairs"


def test_reordered_lines_change_nothing(base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare) -> None:
    other = write_run("other", {"gqa": FASTV[::2] + FASTV[1::2]}, model="llava_fastv", args="pretrained=demo,k=3,r=0.5")
    straight, mixed = (run_compare(base, run, "--format", "csv") for run in (fastv, other))
    assert straight.exit_code == mixed.exit_code == 0
    assert straight.stdout == mixed.stdout


def test_duplicated_line(base: Path, fastv: Path, run_compare: Compare) -> None:
    path = samples_file(fastv)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[2]]))
    refused(
        run_compare(base, fastv),
        "task gqa",
        "1 lines that repeat a document: doc 2 again in line 6",
        "--accept duplicate",
    )


def test_appended_second_run(base: Path, fastv: Path, run_compare: Compare) -> None:
    path = samples_file(fastv)
    path.write_bytes(path.read_bytes() * 2)
    refused(run_compare(base, fastv), "every document is there 2 times", "--accept duplicate")


def test_empty_answers_as_a_swallowed_exception_leaves_them(
    base: Path, write_run: WriteRun, run_compare: Compare
) -> None:
    broken = [sample(i, "", 0.0, token_counts=[None]) for i in range(5)]
    run = write_run("broken", {"gqa": broken}, model="llava_fastv")
    refused(
        run_compare(base, run), "5 empty answers: doc 0 (line 1); doc 1 (line 2); doc 2 (line 3), ...", "--accept empty"
    )


def test_failed_rows(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    rows = [*FASTV[:4], sample(4, "", 0.0, token_counts=[{"error": "ValueError: boom\x1b[31m"}])]
    run = write_run("failed", {"gqa": rows}, model="llava_fastv")
    result = run_compare(base, run)
    refused(result, "1 rows in which the model failed: doc 4 (line 5): 'ValueError: boom\\x1b[31m'", "--accept failed")
    assert "\x1b" not in result.stderr


def test_wrong_documents(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    rows = [{**row, "input": f"another {row['input']}", "target": "x"} for row in FASTV]
    run = write_run("wrong", {"gqa": rows}, model="llava_fastv")
    refused(
        run_compare(base, run),
        "5 documents whose prompts differ between the runs: doc 0: 'question 0",
        "5 documents whose targets differ between the runs: doc 0: 't0' against 'x'",
        "accept all of these with --accept input,target",
    )


def test_nan_scores(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("nan", {"gqa": [*FASTV[:4], sample(4, "x", float("nan"))]}, model="llava_fastv")
    refused(
        run_compare(base, run), "1 rows without a finite score: doc 4 (line 5): exact_match is nan", "--accept unscored"
    )


def test_mixed_tasks_in_one_file(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    foreign = [{k: v for k, v in sample(i, "x", 0).items() if k != "exact_match"} | {"anls": 0.5} for i in (10, 11)]
    run = write_run("mixed", {"gqa": FASTV + foreign}, model="llava_fastv")
    refused(run_compare(base, run), "2 rows without a finite score: doc 10 (line 6)", "2 documents that only one")


def test_tasks_in_one_run_only(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("more", {"gqa": FASTV, "pope": BASE}, model="llava_fastv")
    refused(run_compare(base, run), "task pope", "1 task that only one of the two runs holds", "--accept task")
    refused(run_compare(run, base), "task pope", "not in ", "--accept task")
    accepted = run_compare(base, run, "--accept", "task")
    assert accepted.exit_code == 0
    assert "accepted: task pope" in accepted.stdout
    assert run_compare(base, run, "--task", "gqa").exit_code == 0


def test_no_task_in_common(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("other", {"pope": BASE}, model="llava_fastv")
    refused(run_compare(base, run, "--accept", "task"), "no task in common")


def test_another_task_version(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("v2", {"gqa": FASTV}, model="llava_fastv", versions={"gqa": 2.0})
    refused(run_compare(base, run), "task whose version differs between the runs: 0.0 against 2.0", "--accept version")
    assert run_compare(base, run, "--accept", "version").exit_code == 0


def test_crlf_and_bom_are_no_damage(base: Path, fastv: Path, run_compare: Compare) -> None:
    clean = run_compare(base, fastv)
    path = samples_file(fastv)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    results = path.with_name(f"{STAMP}_results.json")
    results.write_bytes(b"\xef\xbb\xbf" + results.read_bytes())
    assert run_compare(base, fastv).stdout == clean.stdout
    assert clean.exit_code == 0


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_named(base: Path, fastv: Path, run_compare: Compare, encoding: str) -> None:
    path = samples_file(fastv)
    path.write_bytes(path.read_text().replace("green", "grün").encode(encoding))
    refused(run_compare(base, fastv), str(path), "not UTF-8", "--accept unparsable")


def test_empty_file(base: Path, fastv: Path, run_compare: Compare) -> None:
    samples_file(fastv).write_bytes(b"")
    refused(run_compare(base, fastv), "0 usable sample records", "no option accepts this", "5 documents that only one")


def test_binary_rubbish(base: Path, fastv: Path, run_compare: Compare) -> None:
    samples_file(fastv).write_bytes(bytes(range(256)) * 50)
    refused(run_compare(base, fastv), "lines that are not complete sample records")


def test_results_json_missing(base: Path, fastv: Path, run_compare: Compare) -> None:
    missing = samples_file(fastv).with_name(f"{STAMP}_results.json")
    missing.unlink()
    refused(
        run_compare(base, fastv),
        f"{missing}: 1 results JSON that does not describe the run: missing",
        "--accept results",
    )
    accepted = run_compare(base, fastv, "--accept", "results")
    assert accepted.exit_code == 0
    assert "accepted: " in accepted.stdout


def test_results_json_of_another_task(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    other = results_json({"pope": BASE}, "llava_fastv", "pretrained=demo")
    run = write_run("other", {"gqa": FASTV}, results=other)
    refused(run_compare(base, run), "task gqa", "results JSON that does not describe the run: it describes pope")
    assert run_compare(base, run, "--accept", "results").exit_code == 0


def test_no_pair_left_is_an_error(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("none", {"gqa": [{**row, "doc_id": row["doc_id"] + 10} for row in FASTV]}, model="x")
    refused(run_compare(base, run, "--accept", "unpaired"), "task gqa", "0 pairs left to compare", "no option accepts")


def test_results_json_broken(base: Path, fastv: Path, run_compare: Compare) -> None:
    broken = samples_file(fastv).with_name(f"{STAMP}_results.json")
    broken.write_text('{"results": {')
    refused(run_compare(base, fastv), str(broken), "not a results JSON", "was the run interrupted?", "--accept results")
    accepted = run_compare(base, fastv, "--accept", "results")
    assert accepted.exit_code == 0
    assert f"accepted: {broken}: 1 results JSON that does not describe the run: not a results JSON" in accepted.stdout


def test_folder_with_two_models(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    folder = write_run("two", {"gqa": FASTV}, home="llava")
    write_run("two", {"gqa": FASTV}, home="qwen")
    refused(run_compare(base, folder), "holds the runs of 2 folders", str(folder / "llava"), str(folder / "qwen"))


def test_no_such_folder_and_a_folder_without_runs(base: Path, tmp_path: Path, run_compare: Compare) -> None:
    refused(run_compare(base, tmp_path / "none"), "none: no such file or folder")
    (tmp_path / "bare").mkdir()
    refused(run_compare(base, tmp_path / "bare"), "no lmms-eval output here")


def test_a_run_is_not_compared_with_itself(base: Path, fastv: Path, run_compare: Compare) -> None:
    refused(run_compare(base, base / "demo"), "are the same run", "FOLDER@TIMESTAMP")
    refused(run_compare(base, fastv, fastv), "are the same run")
    refused(run_compare(base, fastv, "--rerun", base), "are the same run")


def test_unusual_numbers_of_the_log_do_not_crash(base: Path, fastv: Path, run_compare: Compare) -> None:
    path = samples_file(fastv)
    text = path.read_text().splitlines()
    text[0] = text[0].replace('"exact_match": 1.0', '"exact_match": 1e999')
    path.write_text("\n".join(text))
    refused(run_compare(base, fastv), "1 rows without a finite score")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--accept", "everything"), "--accept does not know everything; known are unpaired"),
        (("--task", "nope"), "--task nope: not in these runs; they have gqa"),
        (("--metric", "nope"), "no metric 'nope' in the log, which has exact_match; name one with --metric"),
        (("--metric", "gqa=nope"), "no metric 'nope' in the log"),
        (("--metric", "gqq=exact_match"), "--metric for gqq: not in these runs; they have gqa"),
        (("--metric", ""), "--metric '': names no metric"),
        (("--metric", "gqa="), "--metric 'gqa=': names no metric"),
        (("--correct-at", "nan"), "--correct-at nan: must be a finite number"),
    ],
)
def test_options_that_make_no_sense(
    base: Path, fastv: Path, run_compare: Compare, options: tuple[str, str], words: str
) -> None:
    refused(run_compare(base, fastv, *options), words)


def test_lower_is_better_is_refused(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("wer", {"gqa": FASTV}, model="x", higher_is_better={"gqa": {"exact_match": False}})
    refused(run_compare(base, run), "less exact_match is better", "--metric")


def test_different_metrics_are_refused(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    rows = [{**{k: v for k, v in row.items() if k != "exact_match"}, "anls": 1.0} for row in FASTV]
    configs = {"gqa": {"metric_list": [{"metric": "anls"}]}}
    run = write_run("anls", {"gqa": rows}, model="x", configs=configs)
    refused(run_compare(base, run), "logs exact_match", "logs anls", "--metric")


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.sampled_from(["flip", "cut", "insert"]), st.integers(0, 255)), max_size=4
    )
)
def test_a_damaged_log_is_an_error_or_all_pairs_are_there(
    base: Path, fastv: Path, run_compare: Compare, damages: list[tuple[int, str, int]]
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in FASTV).encode()
    data = bytearray(lines)
    for where, how, byte in damages:
        at = where % max(1, len(data))
        if how == "flip":
            data[at : at + 1] = bytes([byte])
        elif how == "cut":
            del data[at : at + 1 + byte]
        else:
            data[at:at] = bytes([byte])
    samples_file(fastv).write_bytes(bytes(data))
    result = run_compare(base, fastv, "--format", "json")
    if result.exit_code == 0:
        assert json.loads(result.stdout)["comparisons"][0]["n"] == 5
    else:
        refused(result)


def test_a_real_process_prints_the_error_and_ends_with_2(base: Path, fastv: Path) -> None:
    path = samples_file(fastv)
    path.write_bytes(path.read_bytes()[:-40])
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval_stability.cli", "compare", str(base), str(fastv)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the runs cannot be compared as they are")
    assert f"{path}: 1 lines that are not complete sample records: line 5" in done.stderr
    assert "Traceback" not in done.stderr
