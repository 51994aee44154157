"""`paper tables` and `paper check`, and what is known to be wrong with the published cells."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lmms_eval_stability.cli import main
from lmms_eval_stability.paper import SIZES, TABLES, read_table, table_path
from lmms_eval_stability.paper.corrections import AVERAGE, REMARKS, PublishedCell, published_cells
from lmms_eval_stability.plausibility import Options, check_table, read_results

Paper = Callable[..., Result]


@pytest.mark.parametrize("number", TABLES)
def test_every_printed_number_is_in_every_format(paper: Paper, number: int) -> None:
    """One cell per number, with its digits; nothing is cut off."""
    printed = sorted(read_table(number)["printed"])
    shown = {name: paper("tables", number, "--format", name) for name in ("table", "markdown", "latex", "csv")}
    assert {result.exit_code for result in shown.values()} == {0}
    assert shown["csv"].stdout == table_path(number).read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in shown["markdown"].stdout.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not set("".join(row)) <= set("-:")]
    found = [re.sub(r" \\\[\d+\\\]", "", cell).strip() for row in rows[1:] for cell in row]
    numbers = [cell for cell in found if re.fullmatch(r"-?\d+(\.\d+)?", cell)]
    assert sorted(numbers) == printed
    in_latex = re.sub(r"\$([-+])\$", r"\1", shown["latex"].stdout)
    for number_ in printed:
        assert number_ in shown["table"].stdout
        assert number_ in in_latex


def test_the_layout_is_the_papers(paper: Paper) -> None:
    lines = paper("tables", 3).stdout.splitlines()
    header = next(line for line in lines if line.startswith("method"))
    assert re.split(r"  +", header.strip())[2:] == [
        "GQA", "GQA vision", "GQA text", "VQAv2", "VQAv2 vision", "VQAv2 text",
    ]  # fmt: skip
    fastv = lines.index(header) + 1
    assert lines[fastv].split() == ["FastV", "DR", "10.85", "12.59", "8.78", "7.88", "9.94", "8.98"]
    assert lines[fastv + 1].split() == ["NDR", "4.41", "4.75", "2.76", "2.17", "2.86", "2.11"]
    assert [line for line in lines if line.startswith("LLaVA")] == ["LLaVA-1.5", "LLaVA-Next"]


def test_wrong_cells_have_a_footnote(paper: Paper) -> None:
    text = paper("tables", 3).stdout
    assert "47.06 [1]" in text
    assert "[1] left out: the published score is the same on different inputs" in text
    row = next(line for line in paper("tables", 2).stdout.splitlines() if "21.33 [" in line)
    assert "1.51 [" in row  # as printed, not as corrected


def test_without_a_number_the_tables_are_listed(paper: Paper) -> None:
    lines = paper("tables").stdout.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"\d", line)] == [str(number) for number in TABLES]
    refused = paper("tables", "--format", "csv")
    assert refused.exit_code == 2
    assert "lmms-eval-stability paper tables 1" in refused.stderr
    assert "| 12 | quantisation" in paper("tables", "--format", "markdown").stdout


@pytest.mark.parametrize("command", ["tables", "check"])
@pytest.mark.parametrize("number", ["0", "13", "1.5", "one"])
def test_tables_that_there_are_not(paper: Paper, command: str, number: str) -> None:
    result = paper(command, number)
    assert result.exit_code == 2
    assert "Invalid value for '[N]'" in result.stderr


@pytest.mark.parametrize("layout", ["table", "json", "markdown"])
def test_check_is_check_table(paper: Paper, layout: str) -> None:
    for number, name in ((2, "paper:2"), (None, "paper")):
        result = paper("check", *([number] if number else []), "--format", layout)
        same = CliRunner().invoke(main, ["check-table", name, "--format", layout])
        assert (result.exit_code, result.stdout) == (1, same.stdout)
    assert json.loads(paper("check", 7, "--format", "json").stdout)["errors"] == 1


def cell(cells: list[PublishedCell], *names: str) -> PublishedCell:
    keys = ("base_model", "method", "perturbation", "benchmark", "metric")
    (found,) = (one for one in cells if tuple(getattr(one, key) for key in keys) == names)
    return found


def test_every_remark_is_about_some_cell() -> None:
    cells = [one for number in range(1, 13) for one in published_cells(number)]
    for remark in REMARKS:
        assert any(remark in one.remarks for one in cells), remark.why
        named = {(name, getattr(one, key[:-1])) for one in cells for key, names in vars(remark).items()
                 if key in ("base_models", "methods", "benchmarks", "metrics") for name in names
                 if getattr(one, key[:-1]) == name}  # fmt: skip
        wanted = remark.base_models | remark.methods | remark.benchmarks | remark.metrics
        assert {name for name, _ in named} == wanted


def test_the_row_in_alphabetical_order() -> None:
    """The printed numbers, sorted by benchmark, and nothing else."""
    row = [one for one in published_cells(2) if one.row == ("LLaVA-Next", "GPTQ", "none", "DR")]
    single = [one for one in row if one.benchmark != AVERAGE]
    in_order = sorted(single, key=lambda one: one.benchmark.lower())
    assert [one.text for one in in_order] == [one.printed for one in single]
    average = next(one for one in row if one.benchmark == AVERAGE)
    assert (average.text, average.remarks) == ("10.22", ())


def test_cells_left_out() -> None:
    out = {number: {(*c.row[:3], c.benchmark) for c in published_cells(number) if c.left_out} for number in TABLES}
    hired = {
        ("LLaVA-1.5", "HiRED", "text", "GQA"),
        *(("LLaVA-Next", "HiRED", *place) for place in (("vision", "GQA"), ("vision", "VQAv2"), ("text", "VQAv2"))),
    }
    assert out[3] == out[11] == hired
    assert out[4] == {("Qwen2.5-VL", "GPTQ", "none", "GQA")}
    assert {place[:2] for place in out[1]} == {("LLaVA-1.5", "HiRED")}
    assert {place[3] for place in out[1] | out[2]} == {"TextVQA", "GQA", AVERAGE}
    assert all(not out[number] for number in (5, 6, 7, 8, 9, 10, 12))
    # the score and drop of the mispaired row stay, and so do their averages
    assert cell(published_cells(2), "Qwen2.5-VL", "GPTQ", "none", AVERAGE, "score").text
    assert not cell(published_cells(2), "Qwen2.5-VL", "GPTQ", "none", AVERAGE, "DR").text


def test_fractions_are_percent_with_the_same_digits() -> None:
    found = cell(published_cells(11), "LLaVA-1.5", "FastV", "vision", "GQA", "drop")
    assert (found.printed, found.text) == ("0.018", "1.8")
    found = cell(published_cells(12), "Qwen2.5-VL", "AWQ", "text", "VQAv2", "score")
    assert (found.printed, found.text) == ("0.632", "63.2")


@pytest.mark.parametrize("number", [2, 3, 4, 10, 11, 12])
def test_what_is_compared_holds_no_impossible_number(tmp_path: Path, number: int) -> None:
    """After corrections, and without what is left out, the plausibility checks find no error."""
    rows = [one for one in published_cells(number) if one.text and one.benchmark != AVERAGE]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["base_model", "method", "perturbation", "benchmark", "metric", "value"])
    writer.writerows([c.base_model, c.method, c.perturbation, c.benchmark, c.metric, c.text] for c in rows)
    (tmp_path / "table.csv").write_text(out.getvalue(), encoding="utf-8")
    table = read_results([tmp_path / "table.csv"], "table", Options(dict(SIZES), frozenset(), 100, "baseline"))
    found = [one for outcome in check_table(table) for one in outcome.findings if one.severity == "error"]
    assert found == []
