from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import lmms_eval_stability
from lmms_eval_stability import cli, compare_runs, load_run
from lmms_eval_stability.multiplicity import minimum_detectable_effect

from .conftest import BASE, FASTV, STAMP, WriteRun, sample, samples

Compare = Callable[..., Result]


def test_summary_by_hand(base: Path, fastv: Path, run_compare: Compare) -> None:
    result = run_compare(base, fastv, "--format", "json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["schema_version"] == 1
    (record,) = summary["comparisons"]
    expected = {
        "task": "gqa",
        "baseline": "llava_baseline",
        "run": "llava_fastv (k=3, r=0.5)",
        "n": 5,
        "metric": "exact_match",
        "correct_at": 0.9,
        "score_unit": "fraction",
        "score_source": "results",
        "score_baseline": 0.6,
        "score_run": 0.6,
        "drop": 0.0,
        "dr": 0.6,
        "ndr": 0.2,
        "pdr": 0.2,
        "soft_ndr": 0.2,
        "soft_pdr": 0.2,
        "mcnemar_p": 1.0,
        "rerun_n": 0,
        "rerun_dr": None,
        "excess_dr": None,
        "tasks": 1,
        "accepted": {},
    }
    assert {key: record[key] for key in expected} == expected
    assert record["dr_low"] == pytest.approx(0.230724, abs=1e-6)
    assert record["dr_high"] == pytest.approx(0.882379, abs=1e-6)
    assert {"ndr_low", "ndr_high", "pdr_low", "pdr_high", "conditional_ndr", "rerun_dr_low"} <= set(record)


def test_table(base: Path, fastv: Path, run_compare: Compare) -> None:
    lines = run_compare(base, fastv).stdout.splitlines()
    assert lines[0] == "llava_fastv (k=3, r=0.5) against llava_baseline · answers as scored"
    assert lines[1].split() == ["task", "n", "baseline", "run", "drop", "DR", "NDR", "PDR", "McNemar", "p"]
    assert lines[2].split() == [
        "gqa",
        "5",
        "60.0",
        "60.0",
        "0.0",
        "60.0",
        "[23.1,",
        "88.2]",
        "20.0",
        "[3.6,",
        "62.4]",
        "20.0",
        "[3.6,",
        "62.4]",
        "1",
    ]
    assert lines[3].startswith("input fingerprints: not logged by both runs")
    assert lines[3].endswith("confounders: none")


def test_rerun_and_average_in_the_table(write_run: WriteRun, run_compare: Compare) -> None:
    tasks = {"gqa": BASE, "shapes_vqa": BASE}
    base = write_run("base", tasks)
    again = write_run("again", {"gqa": BASE, "shapes_vqa": samples("red blue two yes nope", [1.0, 1.0, 0.0, 1.0, 0.0])})
    fastv = write_run("fastv", {"gqa": FASTV, "shapes_vqa": BASE}, model="llava_fastv")
    out = run_compare(base, fastv, "--rerun", again).stdout
    average = next(line for line in out.splitlines() if line.startswith("average"))
    assert average.split() == ["average", "10", "60.0", "60.0", "0.0", "30.0", "10.0", "10.0", "–"]
    assert "re-run of the baseline (gqa): DR 0.0 [0.0, 43.4] -> excess DR 60.0" in out
    assert "re-run of the baseline (shapes_vqa): DR 20.0 [3.6, 62.4] -> excess DR -20.0" in out
    assert "re-run of the baseline (average): DR 10.0 -> excess DR 20.0" in out


def test_soft_scores_name_their_threshold(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"vqav2_val": samples("a b c", [1, 0.9, 0.3])})
    run = write_run("run", {"vqav2_val": samples("x y c", [0.6, 1, 0.3])}, model="fastv")
    out = run_compare(base, run, "--correct-at", "0.3").stdout
    assert "soft scores correct at 0.3" in out
    (record,) = json.loads(run_compare(base, run, "--format", "json").stdout)["comparisons"]
    assert record["soft_ndr"] - record["soft_pdr"] == pytest.approx(record["drop"])
    assert record["ndr"] == pytest.approx(1 / 3)


def test_confounders_and_other_runs_are_printed(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    config = {
        "model": "llava_fastv",
        "model_args": "pretrained=demo",
        "batch_size": "8",
        "limit": None,
        "gen_kwargs": "",
    }
    run = write_run("runs", {"gqa": FASTV}, config=config)
    write_run("runs", {"gqa": FASTV}, stamp="20240101_000000")
    out = run_compare(base, run).stdout
    assert "confounders: batch_size 1 against 8" in out
    assert f"holds other runs too (20240101_000000); compared is {STAMP}" in out


def test_facts_of_the_log_are_confounders(write_run: WriteRun, run_compare: Compare) -> None:
    def rows(dtype: str, k: int) -> list[dict[str, object]]:
        facts = {"dtype": dtype, "versions": {"torch": "2.6"}, "method": "m", "method_args": {"k": k}}
        return [sample(i, "a", 1.0, token_counts=[{"input_fingerprint": f"{i:x}", "run": facts}]) for i in range(3)]

    base = write_run("base", {"gqa": rows("float32", 0)})
    run = write_run("run", {"gqa": rows("float16", 3)}, model="fastv")
    out = run_compare(base, run).stdout
    assert "input fingerprints: 3 of 3 equal · confounders: dtype float32 against float16\n" in out


def test_a_native_score_that_is_not_the_mean_is_a_warning(base: Path, fastv: Path, run_compare: Compare) -> None:
    path = fastv / "demo" / f"{STAMP}_results.json"
    results = json.loads(path.read_text())
    results["results"]["gqa"]["exact_match,none"] = 0.5
    path.write_text(json.dumps(results))
    result = run_compare(base, fastv)
    assert result.exit_code == 0
    assert "the results JSON says exact_match 0.5, the samples average 0.6" in result.stdout


def test_logs_that_lost_the_same_documents_are_a_warning(write_run: WriteRun, run_compare: Compare) -> None:
    counts = {"n-samples": {"gqa": {"original": 12578, "effective": 5}}}
    base = write_run("base", {"gqa": BASE[:4]}, **counts)
    run = write_run("run", {"gqa": FASTV[:4]}, model="fastv", **counts)
    out = run_compare(base, run).stdout
    assert out.count("lmms-eval evaluated 5 documents, the log holds 4") == 2
    whole = run_compare(write_run("b", {"gqa": BASE}, **counts), write_run("r", {"gqa": FASTV}, model="f", **counts))
    assert "evaluated" not in whole.stdout


def test_several_runs_and_every_format(base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare) -> None:
    other = write_run("int8", {"gqa": BASE}, model="llava_int8")
    rows = list(csv.DictReader(io.StringIO(run_compare(base, fastv, other, "--format", "csv").stdout)))
    assert [(row["run"], row["dr"]) for row in rows] == [("llava_fastv (k=3, r=0.5)", "0.6"), ("llava_int8", "0.0")]
    assert rows[0]["rerun_dr"] == rows[0]["accepted"] == ""
    markdown = run_compare(base, fastv, other, "--format", "markdown").stdout
    assert markdown.count("### ") == 2
    assert "| gqa | 5 | 60.0 | 60.0 | 0.0 | 60.0 [23.1, 88.2] |" in markdown


def test_metric_can_be_chosen_per_task(write_run: WriteRun, run_compare: Compare) -> None:
    rows = [{**row, "anls": 0.5} for row in BASE]
    base, run = write_run("base", {"gqa": rows}), write_run("run", {"gqa": rows}, model="x")
    (record,) = json.loads(run_compare(base, run, "--metric", "gqa=anls", "--format", "json").stdout)["comparisons"]
    assert (record["metric"], record["score_baseline"], record["score_source"]) == ("anls", 0.5, "pairs")


def test_python_interface(base: Path, fastv: Path) -> None:
    seen = []
    comparison = compare_runs(load_run(base), [fastv], on_pairs=lambda run, pairs: seen.append((run, len(pairs.frame))))
    assert comparison.table.loc[0, "dr"] == 0.6
    assert seen == [("llava_fastv (k=3, r=0.5)", 5)]
    assert set(lmms_eval_stability.__all__) <= set(dir(lmms_eval_stability))
    for name in lmms_eval_stability.__all__:
        assert getattr(lmms_eval_stability, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lmms_eval_stability.nothing  # noqa: B018
    with pytest.raises(lmms_eval_stability.StabilityError, match="at least one RUN"):
        compare_runs(base, [])


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('MODULES', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_compare_imports_no_model_code(base: Path, fastv: Path, tmp_path: Path) -> None:
    args = ["compare", str(base), str(fastv), "-o", str(tmp_path / "report")]
    loaded = modules_after(f"from lmms_eval_stability.cli import main\nmain({args!r}, standalone_mode=False)")
    assert "pandas" in loaded
    assert (tmp_path / "report" / "summary.json").is_file()
    assert not loaded & {"torch", "lmms_eval", "transformers", "datasets", "scipy.stats", "matplotlib.pyplot"}


def test_help_imports_nothing_heavy() -> None:
    code = "from lmms_eval_stability.cli import main\nmain(['--help'], standalone_mode=False)"
    loaded = modules_after(code)
    assert not loaded & {"numpy", "pandas", "scipy", "rich", "matplotlib", "torch", "orjson", "lmms_eval"}
    assert not {name for name in loaded if name.startswith("lmms_eval_stability.commands")}


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(cli.main, ["--help"]).output
    for name, command in cli.COMMANDS.items():
        assert name in output
        assert command.help in output


def test_an_unknown_command_names_the_known_ones() -> None:
    result = CliRunner().invoke(cli.main, ["compere"])
    assert result.exit_code == 2
    assert f"no such command 'compere'; there are {', '.join(cli.COMMANDS)}" in result.output


def test_every_option_and_problem_is_documented() -> None:
    from lmms_eval_stability.commands.compare import compare
    from lmms_eval_stability.problems import KINDS

    page = (Path(__file__).parents[2] / "docs" / "commands" / "compare.md").read_text()
    for parameter in compare.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert f"`{parameter.opts[-1]}" in page, parameter.name
    for kind in KINDS:
        assert f"`{kind}`" in page


def test_every_key_of_a_record_is_documented(base: Path, fastv: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands" / "compare.md").read_text()
    for key in compare_runs(base, [fastv]).records()[0]:
        if not key.endswith(("_low", "_high")):
            assert f"`{key}`" in page, key


def test_many_tests_are_adjusted_together(write_run: WriteRun, run_compare: Compare) -> None:
    right, wrong = samples("y " * 12, [1.0] * 12), samples("n " * 12, [0.0] * 12)
    base = write_run("base", {"gqa": right, "pope": right})
    one = write_run("one", {"gqa": wrong[:7] + right[7:], "pope": right}, model="one")
    two = write_run("two", {"gqa": wrong[:6] + right[6:], "pope": wrong[:1] + right[1:]}, model="two")
    out = run_compare(base, one, two).stdout
    # p: 2 / 2^7 and 1, 2 / 2^6 and 1
    said = "McNemar tests: 4; p <= 0.05 in 2, adjusted for their number in 0 (Holm) and 0 (false discovery rate)"
    assert said in out.splitlines()
    records = json.loads(run_compare(base, one, two, "--format", "json").stdout)["comparisons"]
    by_task = {(record["run"], record["task"]): record for record in records}
    assert by_task["one", "gqa"]["mcnemar_p_holm"] == pytest.approx(4 * 2 / 2**7)
    assert by_task["two", "gqa"]["mcnemar_p_holm"] == pytest.approx(3 * 2 / 2**6)
    assert by_task["one", "gqa"]["mcnemar_p_fdr"] == by_task["two", "gqa"]["mcnemar_p_fdr"] == pytest.approx(0.0625)
    assert by_task["one", "pope"]["mcnemar_p_holm"] == 1
    assert by_task["one", "average"]["mcnemar_p_holm"] is by_task["one", "pope"]["minimum_detectable_effect"] is None
    effect = minimum_detectable_effect(12, 7 / 12)
    assert by_task["one", "gqa"]["minimum_detectable_effect"] == pytest.approx(effect)
    markdown = run_compare(base, one, two, "--format", "markdown").stdout
    row = next(line for line in markdown.splitlines() if line.startswith("| gqa | 12"))
    assert row.endswith(f" | 0.016 | 0.062 | 0.062 | {100 * effect:.1f} |")
    assert "McNemar tests" not in run_compare(base, one, "--task", "gqa").stdout
