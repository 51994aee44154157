"""`compare --reliability` from logs to every output, on logs whose numbers can be worked out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from lmms_eval_stability import compare_runs
from lmms_eval_stability.report.html import PageCollector, html_model
from lmms_eval_stability.report.html.page import render

from .conftest import WriteRun, sample
from .test_summary_schema import valid

Compare = Callable[..., Result]
N = 240


def logged(
    i: int, answer: str, score: float, sure: float, *, tokens: int = 1, kept: int = 100, **more: Any
) -> dict[str, Any]:
    """A line of a model of this package that was so sure; four questions share an image."""
    counts = {
        "output_tokens": tokens,
        "first_token_logprobs": [[5, "a", log(sure)], [6, "b", log(1 - sure)]],
        "answer_logprob": log(sure),
        "image_fingerprint": f"{i // 4:032x}",
        "visual_tokens": [100, kept],
        "visual_token_layers": [0, 2],
        "run": {"geometry": GEOMETRY},
    }
    return sample(i, answer, score, **{"token_counts": [counts], **more})


GEOMETRY = {
    "layers": 4, "hidden": 8, "intermediate": 16, "heads": 2, "kv_heads": 2, "head_dim": 4,
    "bytes_per_element": 2, "mlp_matrices": 3,
}  # fmt: skip


def rows(loss: float, kept: int = 100, seed: int = 0, words: str = "") -> list[dict[str, Any]]:
    """Answers of a model that is right with the chance it states, or less: `loss` of its right answers are wrong."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.55, 0.98, N).round(3)
    right = rng.random(N) < sure
    right &= np.random.default_rng(seed + 1).random(N) >= loss * (1.6 - sure)
    answers = [f"{'yes' if one else 'no'}{words}" for one in right]
    record = [{"shapes_record": {"kind": ("shape", "count")[i % 3 == 0]}} for i in range(N)]
    lines = zip(range(N), answers, right.astype(float).tolist(), sure.tolist(), record, strict=True)
    return [logged(i, answer, score, one, kept=kept, **kind) for i, answer, score, one, kind in lines]


@pytest.fixture
def runs(write_run: WriteRun) -> tuple[Path, Path, Path]:
    base = write_run("base", {"shapes_vqa": rows(0)})
    half = write_run("half", {"shapes_vqa": rows(0.3, 50, 1)}, model="llava_fastv", args="r=0.5")
    tenth = write_run("tenth", {"shapes_vqa": rows(0.7, 10, 2)}, model="llava_fastv", args="r=0.9")
    return base, half, tenth


def test_every_output(runs: tuple[Path, Path, Path], run_compare: Compare, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    done = run_compare(*runs, "--reliability", "-o", folder, "--html")
    assert done.exit_code == 0, done.output
    table = done.stdout
    for words in (
        "Reliability of answer confidence, shapes_vqa: n 240; intervals of 1,000 bootstrap replicates over 60 clusters",
        "confidence − accuracy",
        "Where the flips are, shapes_vqa",
        "lowest 10%",
        "Odds of a flip, shapes_vqa",
        "robust to 60 clusters",
        "kept tokens is the same for all samples: left out",
        "Odds of a flip, shapes_vqa, all 2 runs together",
        "first token: the same most probable one in 100.0",
    ):
        assert words in table
    summary = json.loads((folder / "summary.json").read_text())
    (task,) = summary["runs"][1]["reliability"]
    assert [one["kind"] for one in task["confidences"]] == ["answer", "first token"]
    scores = {one["name"]: one for one in task["confidences"][0]["scores"]}
    assert scores["confidence"]["difference"] == 0
    assert scores["gap"]["low"] > 0
    assert scores["ece_mass"]["low"] < scores["ece_mass"]["corrected"] < scores["ece_mass"]["high"]
    assert scores["ece_calibrated"]["low"] is scores["gap"]["corrected"] is None
    accuracy = {name: scores["accuracy"][name] for name in ("baseline", "run")}
    record = summary["comparisons"][1]
    assert accuracy == pytest.approx({"baseline": record["score_baseline"], "run": record["score_run"]})
    assert scores["accuracy"]["difference"] == pytest.approx(-record["drop"])
    assert task["missing"] == []
    pooled = {one["term"]: one for one in summary["flip_regressions"][0]["regression"]["ratios"]}
    assert pooled["kept tokens"]["high"] < 1  # fewer tokens, more flips
    lines = list(csv.DictReader((folder / "reliability.csv").open()))
    assert len(lines) == 2 * 2 * len(scores)
    assert float(lines[0]["difference"]) == pytest.approx(float(lines[0]["value"]) - float(lines[0]["baseline"]))
    markdown = (folder / "divergence.md").read_text()
    assert "Reliability of first token confidence" in markdown
    assert "| margin | +1 SD (" in markdown
    page = (folder / "report.html").read_text()
    assert '<section id="reliability"' in page
    assert '<a href="#reliability">' in page
    assert "Is confidence the chance to be right?" in page
    for name in ("reliability.svg", "risk_coverage.png"):
        assert (folder / name).stat().st_size > 1000


def test_the_summary_is_what_its_schema_says(runs: tuple[Path, Path, Path], run_compare: Compare) -> None:
    valid(run_compare(*runs, "--reliability", "--format", "json"))


def test_nothing_of_it_without_the_option(runs: tuple[Path, Path, Path], run_compare: Compare, tmp_path: Path) -> None:
    plain = run_compare(*runs, "-o", tmp_path / "plain")
    asked = run_compare(*runs, "--reliability")
    assert "Reliability" not in plain.stdout
    # what the option adds stands between and below what is there anyway, and changes none of it
    assert set(plain.stdout.splitlines()) <= set(asked.stdout.splitlines())
    summary = valid(run_compare(*runs, "--format", "json"))
    assert summary["flip_regressions"] == summary["runs"][0]["reliability"] == []
    assert not (tmp_path / "plain" / "reliability.csv").exists()


def test_the_plain_comparison_imports_no_regression(runs: tuple[Path, Path, Path]) -> None:
    code = (
        "import sys; from lmms_eval_stability import compare_runs; compare_runs(sys.argv[1], sys.argv[2:]);"
        "assert not {'statsmodels', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, runs)], check=True, timeout=60)


def bare(score: float = 1.0) -> list[dict[str, Any]]:
    return [sample(i, "yes", score) for i in range(20)]


def test_logs_without_log_probabilities_are_refused_with_their_names(write_run: WriteRun, run_compare: Compare) -> None:
    base, run = write_run("base", {"gqa": bare()}), write_run("run", {"gqa": bare(0.0)}, model="m")
    done = run_compare(base, run, "--reliability")
    assert done.exit_code == 2
    assert "--reliability: gqa, llava_baseline" in done.output
    assert "carries no log-probabilities" in done.output
    assert "leave the option out" in done.output
    assert "Traceback" not in done.output


def test_a_task_and_a_run_without_are_named_and_the_others_measured(
    runs: tuple[Path, Path, Path], write_run: WriteRun, run_compare: Compare
) -> None:
    base = write_run("base", {"gqa": bare()})  # beside shapes_vqa
    half = write_run("half", {"gqa": bare(0.0)}, model="llava_fastv", args="r=0.5")
    stripped = [{**row, "token_counts": [{"output_tokens": 1}]} for row in rows(0.3)]
    other = write_run("other", {"shapes_vqa": stripped, "gqa": bare()}, model="llava_hf")
    results = json.loads(next(half.rglob("*_results.json")).read_text())
    done = run_compare(base, half, other, "--reliability", "--accept", "results", "--format", "json")
    assert done.exit_code == 0, done.output
    assert results["config"]["model"] == "llava_fastv"
    found = {(run["label"], one["task"]): one for run in json.loads(done.stdout)["runs"] for one in run["reliability"]}
    texts = {key: " ".join(one["missing"]) for key, one in found.items()}
    by_task = {key: [task for label, task in found if label == key and found[label, task]["confidences"]] for key in
               {label for label, _ in found}}  # fmt: skip
    assert sorted(by_task.values()) == [[], ["shapes_vqa"]]
    assert sum("carries no log-probabilities" in text for text in texts.values()) == 3
    for (label, task), one in found.items():
        if task == "gqa":
            assert one["regression"] is None
            assert label in texts[label, task]


def test_broken_log_probabilities_are_counted_by_name(write_run: WriteRun, run_compare: Compare) -> None:
    lines = rows(0)
    lines[7]["token_counts"][0]["answer_logprob"] = 2.5
    base, run = write_run("base", {"x": lines}), write_run("run", {"x": rows(0.4)}, model="m")
    done = run_compare(base, run, "--reliability")
    assert done.exit_code == 0, done.output
    assert "1 lines hold no usable log-probabilities (first: document 7)" in done.stdout
    assert "confidence: 1 of 240 pairs have none in both logs and are left out" in done.stdout


def test_choices_of_a_question_are_no_answers(write_run: WriteRun, run_compare: Compare) -> None:
    choices = [["-1.0", "True"], ["-2.0", "False"]]
    lines = [sample(i, choices, 1.0, token_counts=2 * logged(i, "", 1, 0.6)["token_counts"]) for i in range(20)]
    base, run = write_run("base", {"x": lines}), write_run("run", {"x": lines[:]}, model="m")
    assert "no log-probabilities" in run_compare(base, run, "--reliability").output


def test_open_answers(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"x": rows(0, words=" it is one")})
    run = write_run("run", {"x": rows(0.5, words=" it is one")}, model="m")
    summary = valid(run_compare(base, run, "--reliability", "--format", "json"))
    (task,) = summary["runs"][0]["reliability"]
    dr = summary["comparisons"][0]["dr"]
    assert [one["kind"] for one in task["confidences"]] == ["answer", "first token", "per token"]
    answers = task["open_answers"]
    assert answers["same"]["value"] == pytest.approx(1 - dr)
    assert answers["first_divergent"] == 0
    assert answers["token_f1_changed"] == pytest.approx(0.75)
    assert answers["kept"] == pytest.approx(1 - dr)


def test_the_weighted_average_is_over_all_samples(write_run: WriteRun, run_compare: Compare) -> None:
    ten, thirty = [sample(i, "a", 1.0) for i in range(10)], [sample(i, "a", 1.0) for i in range(30)]
    lost = [sample(i, "b" if i < 5 else "a", float(i >= 5)) for i in range(10)]
    base, run = write_run("base", {"x": ten, "y": thirty}), write_run("run", {"x": lost, "y": thirty}, model="m")
    summary = valid(run_compare(base, run, "--format", "json"))
    plain, weighted = summary["comparisons"][-1], summary["runs"][0]["weighted_average"]
    assert (plain["task"], plain["ndr"]) == ("average", 0.25)
    assert (weighted["task"], weighted["ndr"], weighted["n"]) == ("average over samples", 5 / 40, 40)
    assert weighted["conditional_ndr"] == 5 / 40
    assert "average over samples" in run_compare(base, run).stdout
    assert "| average over samples | 40 |" in run_compare(base, run, "--format", "markdown").stdout
    assert [one["task"] for one in summary["comparisons"]] == ["x", "y", "average"]
    alone = valid(run_compare(base, run, "--task", "x", "--format", "json"))
    assert alone["runs"][0]["weighted_average"] is None


def test_changes_are_in_every_output(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"x": [sample(i, "a", float(i < 6)) for i in range(10)]})
    answers = [("b", 0.0), ("a", 1.0), ("a", 1.0), ("c", 1.0), ("a", 1.0), ("a", 1.0), ("b", 0.0), ("a", 1.0)]
    rest = [("a", 0.0), ("a", 0.0)]
    run = write_run("run", {"x": [sample(i, *one) for i, one in enumerate(answers + rest)]}, model="m")
    (found,) = valid(run_compare(base, run, "--format", "json"))["runs"][0]["changes"]
    groups = ("same", "right_to_wrong", "wrong_to_right", "wrong_to_other_wrong", "right_to_other_right")
    assert [found[name] for name in groups] == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1])
    assert "wrong → other wrong 10.0" in run_compare(base, run).stdout
    assert "wrong → other wrong" in run_compare(base, run, "--format", "markdown").stdout


def test_the_page_takes_names_for_text(write_run: WriteRun) -> None:
    evil = "<img src=x onerror=alert(1)>"
    lines = [{**row, "shapes_record": {"kind": evil if i % 2 else "b"}} for i, row in enumerate(rows(0))]
    broken = [{**row, "shapes_record": {"kind": evil if i % 2 else "b"}} for i, row in enumerate(rows(0.5))]
    base = write_run("base", {"shapes_vqa": lines}, model=evil)
    run = write_run("run", {"shapes_vqa": broken}, model=f"{evil}2")
    pairs = PageCollector()
    page = render(html_model(compare_runs(base, [run], reliability=True, on_pairs=pairs.add_pairs), pairs))
    section = page[page.index('<section id="reliability"') : page.index('<section id="answers"')]
    assert "&lt;img src=x onerror=alert(1)&gt;</td>" in section  # of two kinds, this one is the reference
    assert "&lt;img src=x onerror=alert(1)&gt;2" in section
    assert "<img src=x" not in page


def test_in_python(runs: tuple[Path, Path, Path]) -> None:
    found = compare_runs(runs[0], runs[1:], reliability=True)
    (task,) = found.runs[0].reliability
    assert task.margins is not None
    assert task.margins.n == N
    # the margin of two tokens is the log of their odds
    sure = max(row["token_counts"][0]["answer_logprob"] for row in rows(0))
    assert task.margins.bins[-1].high == pytest.approx(sure - log(1 - np.exp(sure)), rel=1e-5)
    assert task.first_tokens is not None
    assert task.first_tokens.mean_kl == pytest.approx(0, abs=1e-5)
