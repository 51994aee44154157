"""Sections beside the table of divergences: overlap between runs, categories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lmms_eval_stability.divergence import wilson

from .conftest import Row, WriteRun, samples

Compare = Callable[..., Result]


def log(answers: str) -> list[Row]:
    """Lines with one letter as answer; "y" is right."""
    return samples(" ".join(answers), [float(answer == "y") for answer in answers])


@pytest.fixture
def three(write_run: WriteRun) -> list[Path]:
    """A baseline that has 6 of 8 right; one run breaks 0 to 2, the other 2 and 3, and changes a wrong answer."""
    base = write_run("base", {"gqa": log("yyyyyynn")})
    one = write_run("one", {"gqa": log("nnnyyynn")}, model="one")
    two = write_run("two", {"gqa": log("yynnyyxn")}, model="two")
    return [base, one, two]


def test_overlap_by_hand(three: list[Path], run_compare: Compare) -> None:
    negative, changed = json.loads(run_compare(*three, "--format", "json").stdout)["overlap"]
    assert {key: value for key, value in negative.items() if key != "pairs"} == {
        "task": "gqa",
        "of": "negative",
        "runs": 2,
        "n": 6,
        "left_out": 0,
        "every": 1,
        "expected_every": pytest.approx(6 * (3 / 6) * (2 / 6)),
        "any": 4,
        "counts": [2, 3, 1],
        "every_doc_id": [2],
    }
    first, second = negative["pairs"]
    assert (first["run"], first["other"], first["n_run"], first["n_other"], first["both"]) == ("one", "two", 3, 2, 1)
    assert [first[key] for key in ("containment", "jaccard", "expected", "lift")] == pytest.approx([1 / 3, 1 / 4, 1, 1])
    assert (second["run"], second["containment"]) == ("two", 0.5)
    assert (changed["of"], changed["n"], changed["any"]) == ("changed", 8, 5)
    line = (
        "right to wrong under all 2 runs (gqa): 1 of 6 samples that the baseline has right, 1.0 by chance; under any: 4"
    )
    assert f"{line}; lift of two runs 1.0 to 1.0" in run_compare(*three).stdout
    markdown = run_compare(*three, "--format", "markdown").stdout
    assert f"- {line}" in markdown
    assert "| one | two | 3 | 2 | 1 | 33.3 | 50.0 | 25.0 | 1.0 | 1.0 |" in markdown
    assert "**Overlap of NDR, gqa: 6 samples that could diverge**" in markdown


def test_overlap_needs_two_runs_of_one_task(three: list[Path], write_run: WriteRun, run_compare: Compare) -> None:
    base, one, _ = three
    assert json.loads(run_compare(base, one, "--format", "json").stdout)["overlap"] == []
    assert "under all" not in run_compare(base, one).stdout
    other = write_run("other", {"pope": log("yy")}, model="other")
    both = write_run("both", {"gqa": log("yyyyyynn"), "pope": log("yy")})
    summary = json.loads(run_compare(both, one, other, "--accept", "task", "--format", "json").stdout)
    assert summary["overlap"] == []


def test_overlap_of_nothing_and_over_missing_samples(
    three: list[Path], write_run: WriteRun, run_compare: Compare
) -> None:
    base, one, _ = three
    same = write_run("same", {"gqa": log("yyyyyynn")[1:]}, model="same")
    result = run_compare(base, one, same, "--accept", "unpaired", "--format", "json")
    negative, _ = json.loads(result.stdout)["overlap"]
    assert (negative["n"], negative["left_out"], negative["every"], negative["expected_every"]) == (5, 1, 0, 0.0)
    assert {pair["lift"] for pair in negative["pairs"]} == {None}
    assert "under any: 2\n" in run_compare(base, one, same, "--accept", "unpaired").stdout


def perturbed(answers: str, changed: str, levels: str = "") -> list[Row]:
    """Lines of a perturbed task: "c" for a changed input, "u" for an unchanged one, "?" where it is not known."""
    known = {"c": True, "u": False, "?": None}
    levels = levels or "1" * len(answers)
    return [
        {**row, "perturbation": {"method": "blur", "severity": int(level), "changed": known[mark]}}
        for row, mark, level in zip(log(answers), changed, levels, strict=True)
    ]


def test_perturbed_inputs_with_and_without_the_unchanged(write_run: WriteRun, run_compare: Compare) -> None:
    marks, levels = "ccuucu", "112212"
    base = write_run("base", {"gqa_blur": perturbed("yyyyyy", marks, levels)})
    run = write_run("run", {"gqa_blur": perturbed("nyyyny", marks, levels)}, model="run")
    assert "perturbed inputs (gqa_blur): 3 of 6 unchanged; DR 66.7 [" in run_compare(base, run).stdout
    (compared,) = json.loads(run_compare(base, run, "--format", "json").stdout)["runs"]
    found = {(part["dimension"], part["category"]): part for part in compared["categories"]}
    assert list(found) == [
        ("perturbed input", "changed"),
        ("perturbed input", "unchanged"),
        ("severity", "1"),
        ("severity", "2"),
        ("perturbation level", "blur 1"),
        ("perturbation level", "blur 2"),
    ]
    changed = found["perturbed input", "changed"]
    assert (changed["task"], changed["n"], changed["ndr"]) == ("gqa_blur", 3, pytest.approx(2 / 3))
    assert (changed["ndr_low"], changed["score_run"]) == (wilson(2, 3).low, pytest.approx(1 / 3))
    assert found["perturbed input", "unchanged"]["dr"] == 0
    markdown = run_compare(base, run, "--format", "markdown").stdout
    assert "**gqa\\_blur by severity (Wilson intervals)**" in markdown
    assert "| 1 | 3 | 100.0 | 33.3 | 66.7 | 66.7 [" in markdown


def test_what_is_not_known_of_inputs_is_not_said(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"gqa_blur": perturbed("yyy", "ccc"), "gqa_fog": perturbed("yyy", "???")})
    run = write_run("run", {"gqa_blur": perturbed("nyy", "ccc"), "gqa_fog": perturbed("yyy", "???")}, model="run")
    out = run_compare(base, run).stdout
    assert "perturbed inputs (gqa_blur): none of 3 is known to be unchanged" in out
    assert "(gqa_fog): none" not in out
    (compared,) = json.loads(run_compare(base, run, "--format", "json").stdout)["runs"]
    assert [(part["task"], part["category"]) for part in compared["categories"]] == [("gqa_blur", "changed")]


def test_many_categories_are_in_json_only(write_run: WriteRun, run_compare: Compare) -> None:
    def rows(answer: str) -> list[Row]:
        return [{**row, "shapes_record": {"kind": f"k{i}"}} for i, row in enumerate(log(answer * 41))]

    base, run = write_run("base", {"shapes_vqa": rows("y")}), write_run("run", {"shapes_vqa": rows("n")}, model="run")
    (compared,) = json.loads(run_compare(base, run, "--format", "json").stdout)["runs"]
    assert len(compared["categories"]) == 41
    assert "by kind" not in run_compare(base, run, "--format", "markdown").stdout
