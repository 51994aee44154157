"""`paper compare`: numbers by hand, footnotes, settings, what is missing, and input that is none."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lmms_eval_stability.errors import OptionError
from lmms_eval_stability.paper import reports
from lmms_eval_stability.paper.beside import CellPair, compare_table
from lmms_eval_stability.paper.names import base_model
from lmms_eval_stability.paper.ours import OurCell
from lmms_eval_stability.paper.reports import read_reports, stated_table
from lmms_eval_stability.report import machine
from lmms_eval_stability.study import load_study, plan_study
from lmms_eval_stability.study.folder import describe

from ..study.conftest import Row, sample
from .conftest import BASELINE, FASTV, GQA_BASE, GQA_FASTV, VQA_RAD, Study, Tasks

Paper = Callable[..., Result]
Key = tuple[str, str, str]


def rows_of(result: Result) -> list[dict[str, str]]:
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


def cells(result: Result) -> dict[Key, dict[str, str]]:
    """By method, benchmark (and state of the input) and metric: those of the table's first base model."""
    rows = rows_of(result)
    return {
        (row["method"], f"{row['benchmark']} {row['perturbation']}".removesuffix(" none"), row["metric"]): row
        for row in rows
        if row["base_model"] == rows[0]["base_model"]
    }


def test_numbers_by_hand(study: Path, paper: Paper) -> None:
    found = cells(paper("compare", study, "--format", "csv"))
    dr = found["FastV", "GQA", "DR"]
    assert (float(dr["ours"]), dr["n"], dr["published"], dr["status"]) == (20.0, "20", "10.85", "compared")
    # Wilson for 4 of 20
    assert float(dr["ours_low"]) == pytest.approx(8.0657, abs=1e-3)
    assert float(dr["ours_high"]) == pytest.approx(41.6017, abs=1e-3)
    assert float(dr["difference"]) == pytest.approx(9.15)
    assert dr["within"] == "True"
    assert float(found["FastV", "GQA", "NDR"]["ours"]) == pytest.approx(10.0)
    assert float(found["FastV", "GQA", "drop"]["ours"]) == pytest.approx(5.0)
    assert float(found["FastV", "GQA", "score"]["ours"]) == pytest.approx(55.0)
    assert float(found["baseline", "GQA", "score"]["ours"]) == pytest.approx(60.0)


def test_pope_is_f1_and_mmbench_circular(study: Path, paper: Paper) -> None:
    found = cells(paper("compare", study, "--format", "csv"))
    score = found["FastV", "POPE", "score"]
    assert (float(score["ours"]), score["ours_low"], score["within"]) == (50.0, "", "")  # F1 has no interval
    assert float(found["FastV", "POPE", "drop"]["ours"]) == pytest.approx(30.0)
    assert float(found["baseline", "POPE", "score"]["ours"]) == pytest.approx(80.0)
    assert (float(found["FastV", "POPE", "DR"]["ours"]), found["FastV", "POPE", "DR"]["n"]) == (50.0, "6")
    circular, rows = found["FastV", "MMBench", "score"], found["FastV", "MMBench", "DR"]
    assert (float(circular["ours"]), circular["n"]) == (50.0, "2")
    assert (float(rows["ours"]), rows["n"]) == (25.0, "4")


def test_missing_cells_are_named_and_never_filled(study: Path, paper: Paper) -> None:
    found = cells(paper("compare", study, "--format", "csv"))
    assert len(found) == 462 // 2  # methods and benchmarks of one base model
    average = found["FastV", "Average", "DR"]
    assert (average["status"], average["ours"], average["within"]) == ("missing", "", "")
    text = paper("compare", study).stdout
    names = "VQAv2, AI2D, ScienceQA, TextVQA, OKVQA, VizWiz, MMMU, Average"
    assert f"Missing: LLaVA-1.5 FastV score, drop, DR, NDR: {names}\n" in text
    assert "Missing: LLaVA-1.5 HiRED: all 44 cells\n" in text
    assert "Missing: LLaVA-Next: all 231 cells\n" in text
    # a run of another setting is not the paper's FastV
    assert "Not in this table: LLaVA-1.5 fastv_r75\n" in text


def test_settings_that_the_paper_leaves_open(study: Path, paper: Paper) -> None:
    text = paper("compare", study).stdout
    assert "Setting: least soft score that counts as correct: 0.9 here, not stated in the paper\n" in text
    assert "Setting: answers compared as: scored here; not stated in the paper (raw, filtered or extracted)\n" in text
    assert "Setting: LLaVA-1.5 is llava_baseline (pretrained=llava-hf/llava-1.5-7b-hf, dtype=float16)\n" in text
    assert "Setting: GQA: 20 samples here, 12578 in the paper\n" in text
    assert "Setting: MMBench: 4 samples here, 4329 in the paper\n" in text
    assert "DR: 3 cells compared, mean absolute difference " in text


def test_all_formats_have_the_same_cells(study: Path, paper: Paper, tmp_path: Path) -> None:
    out = tmp_path / "beside"
    table = paper("compare", study, "-o", out)
    markdown, latex = (paper("compare", study, "--format", name).stdout for name in ("markdown", "latex"))
    assert "| GQA | DR | 20 | 20.00 | \\[8.07, 41.60\\] | 10.85 | +9.15 | yes |" in markdown
    assert r"GQA & DR & 20 & 20.00 & {[}8.07, 41.60{]} & 10.85 & $+$9.15 & yes \\" in latex
    line = ["GQA", "DR", "20", "20.00", "[8.07,", "41.60]", "10.85", "+9.15", "yes"]
    assert line in [text.split() for text in table.stdout.splitlines()]
    assert sorted(path.name for path in out.iterdir()) == ["paper_table1.csv", "paper_table1.md", "paper_table1.tex"]
    assert (out / "paper_table1.md").read_text(encoding="utf-8") == markdown
    assert (out / "paper_table1.tex").read_text(encoding="utf-8") == latex
    assert "written: " in table.stderr
    assert r"{[}$-$13.17, 22.26{]}" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2


def test_a_report_of_compare_and_names_that_say_nothing(study: Path, make_study: Study, paper: Paper) -> None:
    report = study / "report" / "llava_1_5_7b"
    assert cells(paper("compare", report, "--table", 1, "--format", "csv"))["FastV", "GQA", "DR"]["n"] == "20"
    file = paper("compare", report / "summary.json", "--table", 1, "--format", "csv")
    assert cells(file)["FastV", "GQA", "DR"]["n"] == "20"
    other = make_study("other", {"baseline": BASELINE, "mine": FASTV}, base="my_base", args="pretrained=folder")
    refused = paper("compare", other)
    assert refused.exit_code == 2
    assert "nothing here is in table 1" in refused.stderr
    assert "with mine" in refused.stderr
    named = paper("compare", other, "--as", "my_base=LLaVA-Next", "--as", "mine=HiRED", "--format", "csv")
    row = next(one for one in rows_of(named) if one["ours"] and (one["method"], one["benchmark"]) == ("HiRED", "GQA"))
    assert (row["base_model"], row["metric"], float(row["ours"])) == ("LLaVA-Next", "score", pytest.approx(55.0))


def full(changed: int) -> Tasks:
    """Every benchmark of table 1 on 10 documents; the first `changed` answers of each became wrong."""
    tasks: Tasks = {}
    names = "vqav2_val ai2d gqa scienceqa_img textvqa_val ok_vqa_val2014 vizwiz_vqa_val"
    for task in names.split():
        tasks[task] = [sample(i, "B" if i < changed else "A", float(i >= changed)) for i in range(10)]
    rows = []
    for i in range(10):
        letter = "B" if i < changed else "A"
        record = {
            "id": f"validation_Art_{i}",
            "question_type": "multiple-choice",
            "answer": "A",
            "parsed_pred": [letter],
        }
        row = sample(i, letter, None, input=f"Q{i}\nA. a cat\nB. a dog\n\nPick.", mmmu_acc=record)
        del row["exact_match"]
        rows.append(row)
    return {**tasks, **BASELINE, "gqa": tasks["gqa"], "mmmu_val": rows}


def test_averages_are_unweighted_over_the_benchmarks_own_scores(make_study: Study, paper: Paper) -> None:
    study = make_study("full", {"baseline": full(0), "fastv": full(1), "hired": full(2)}, table=1)
    found = cells(paper("compare", study, "--format", "csv"))
    # nine benchmarks lose nothing but one answer of ten in eight of them; POPE (F1 80) and MMBench (100) lose none
    assert float(found["baseline", "Average", "score"]["ours"]) == pytest.approx((8 * 100 + 80 + 100) / 10)
    assert float(found["FastV", "Average", "drop"]["ours"]) == pytest.approx(8.0)
    assert float(found["FastV", "Average", "NDR"]["ours"]) == pytest.approx(8.0)
    assert found["FastV", "Average", "NDR"]["within"] == ""
    # TextVQA of HiRED is left out, and with it the published average; ours is still shown
    text, average = found["HiRED", "TextVQA", "DR"], found["HiRED", "Average", "DR"]
    assert (text["status"], text["published"], text["printed"]) == ("left out", "", "42.58")
    assert (average["status"], average["published"], float(average["ours"])) == ("left out", "", pytest.approx(16.0))
    shown = paper("compare", study).stdout
    assert "left out: on TextVQA, HiRED, AWQ and GPTQ of LLaVA-1.5 are a group apart" in shown
    assert "doubtful: a score of 35.60 is no multiple of 1/900" in shown


def test_table_10_averages_without_vqav2(make_study: Study, paper: Paper) -> None:
    base, run = full(1), full(1)
    run["vqav2_val"] = [{**row, "exact_match": 0.0} for row in run["vqav2_val"]]
    study = make_study("t10", {"baseline": base, "awq": run}, base="qwen2_vl_7b", table=10, family="qwen2_vl")
    found = cells(paper("compare", study, "--format", "csv"))
    assert float(found["AWQ", "VQAv2", "score"]["ours"]) == 0.0
    assert float(found["AWQ", "Average", "score"]["ours"]) == pytest.approx((7 * 90 + 80 + 100) / 9)
    assert float(found["AWQ", "Average", "drop"]["ours"]) == pytest.approx(0.0)


def test_the_reordered_row_is_compared_in_its_right_order(make_study: Study, paper: Paper) -> None:
    runs = {"baseline": {"gqa": GQA_BASE}, "gptq": {"gqa": GQA_FASTV}}
    study = make_study("t2", runs, base="llava_next_7b", table=2)
    result = paper("compare", study, "--format", "csv")
    row = next(
        one for one in rows_of(result) if (one["method"], one["metric"], one["status"]) == ("GPTQ", "DR", "corrected")
    )
    assert (row["benchmark"], row["published"], row["printed"], row["base_model"]) == (
        "GQA",
        "6.95",
        "6.38",
        "LLaVA-Next",
    )
    assert "corrected: the DR of LLaVA-Next GPTQ is printed in alphabetical order" in paper("compare", study).stdout


def test_clean_and_perturbed_runs_of_two_studies(study: Path, make_study: Study, paper: Paper) -> None:
    tasks = ("gqa_image_perturbed", "gqa_text_perturbed")
    runs = {"baseline": dict.fromkeys(tasks, GQA_BASE), "fastv": dict.fromkeys(tasks, GQA_FASTV)}
    other = make_study("t3", runs, table=3, perturbation={"set": "paper-96", "seed": 7})
    refused = paper("compare", study, other)
    assert refused.exit_code == 2
    assert "they name tables 1, 3; say which one with --table N" in refused.stderr
    result = paper("compare", study, other, "--table", 3)
    assert (
        "Setting: gqa_image_perturbed: set paper-96, seed 7 here; the paper states neither seed nor assignment\n"
        in (result.stdout)
    )
    found = cells(paper("compare", study, other, "--table", 3, "--format", "csv"))
    state = {name: found["FastV", name, "DR"]["status"] for name in ("GQA", "GQA vision", "GQA text", "VQAv2 text")}
    assert state == {"GQA": "compared", "GQA vision": "compared", "GQA text": "compared", "VQAv2 text": "missing"}
    assert found["FastV", "GQA text", "DR"]["task"] == "gqa_text_perturbed"  # the 72 levels, not the paper's 87
    drops = cells(paper("compare", other, "--table", 11, "--format", "csv"))["FastV", "GQA vision", "drop"]
    assert (float(drops["ours"]), float(drops["published"]), drops["printed"]) == (pytest.approx(5.0), 1.8, "0.018")


def test_mispaired_cells_are_left_out(make_study: Study, paper: Paper) -> None:
    runs = {"baseline": {"gqa_text_perturbed": GQA_BASE}, "hired": {"gqa_text_perturbed": GQA_FASTV}}
    study = make_study("t3", runs, table=3)
    cell = cells(paper("compare", study, "--format", "csv"))["HiRED", "GQA text", "DR"]
    assert (cell["status"], cell["published"], cell["printed"], cell["difference"]) == ("left out", "", "47.06", "")
    text = paper("compare", study).stdout
    assert "– [1]" in text
    assert "[1] left out: the published score is the same on different inputs" in text
    assert "seed not recorded" in text or "set not recorded" in text


def test_table_6_has_recall_accuracy_and_the_drop_over_all_questions(make_study: Study, paper: Paper) -> None:
    runs: dict[str, Tasks] = {run: {"vqa_rad": rows} for run, rows in VQA_RAD.items()}
    study = make_study("t6", runs, base="llava_med_7b", args="pretrained=llava-med", table=6)
    found = cells(paper("compare", study, "--format", "csv"))
    numbers = {key[1:]: (float(row["ours"]), row["n"]) for key, row in found.items() if key[0] == "VisionZip"}
    assert numbers == {
        ("VQA-RAD/open", "recall"): (100.0, "2"),
        ("VQA-RAD/closed", "score"): (pytest.approx(200 / 3), "3"),
        ("VQA-RAD", "drop"): (pytest.approx(10.0), "5"),
        ("VQA-RAD", "DR"): (40.0, "5"),
        ("VQA-RAD", "NDR"): (20.0, "5"),
    }
    assert float(found["baseline", "VQA-RAD/open", "recall"]["ours"]) == 75.0


def judged(scores: list[float]) -> list[Row]:
    rows = []
    for i, score in enumerate(scores):
        kind, domain = ("conversation", "chest_xray") if i % 2 else ("description", "mri")
        row = sample(i, f"answer {score}", None, llava_med_overall=score)
        del row["exact_match"]
        rows.append({**row, "llava_med_record": {"kind": kind, "domain": domain, "image_id": str(i)}})
    return rows


def test_table_5_is_by_kind_and_domain_on_the_judges_scale(make_study: Study, paper: Paper) -> None:
    runs: dict[str, Tasks] = {
        "baseline": {"llava_med_conversation": judged([50.0, 100.0, 70.0, 120.0])},
        "visionzip": {"llava_med_conversation": judged([40.0, 90.0, 60.0, 130.0])},
    }
    study = make_study("t5", runs, base="llava_med_7b", args="pretrained=llava-med", table=5)
    found = cells(paper("compare", study, "--format", "csv"))
    ours = {key[1]: row["ours"] for key, row in found.items() if key[0] == "VisionZip"}
    assert {name: float(value) for name, value in ours.items() if value} == {
        "Conversation": 110.0, "Description": 50.0, "Chest-Xray": 110.0, "MRI": 50.0, "Overall": 80.0,
    }  # fmt: skip
    assert found["VisionZip", "CT", "score"]["status"] == "missing"
    assert float(found["baseline", "Overall", "score"]["ours"]) == 85.0
    assert found["VisionZip", "Overall", "score"]["within"] == ""


@pytest.mark.parametrize(("text", "within"), [("8.06", True), ("8.05", False), ("41.61", False), ("41.6", True)])
def test_a_printed_number_stands_for_all_that_round_to_it(study: Path, text: str, within: bool) -> None:
    from dataclasses import replace

    comparison = compare_table(1, read_reports([study], {}))
    pair = next(
        one for one in comparison.pairs
        if (one.published.method, one.published.benchmark, one.published.metric) == ("FastV", "GQA", "DR")
    )  # fmt: skip
    ours = OurCell(replace(pair.ours.rate, low=8.0649, high=41.6017), 20, "gqa")
    assert CellPair(replace(pair.published, text=text), ours).within is within


def test_the_summary_that_is_understood_is_the_one_that_is_written() -> None:
    assert reports.SCHEMA_VERSION == machine.SCHEMA_VERSION


def test_a_study_without_report(tmp_path: Path, paper: Paper) -> None:
    (tmp_path / "study.json").write_text("{}")
    (tmp_path / "report" / "llava_1_5_7b").mkdir(parents=True)
    result = paper("compare", tmp_path, "--table", 1)
    assert result.exit_code == 2
    assert "the study there has no report yet" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 2}', "schema_version is 2, and this version understands 1"),
        ('{"schema_version": 1}', "baseline must be an object"),
        ('{"schema_version": 1, "baseline": {}}', "'comparisons' must be a list"),
        ('{"schema_version": 1, "baseline": {}, "comparisons": [], "correct_at": 0.9}', "'runs' must be a list"),
        (
            '{"schema_version": 1, "baseline": {}, "comparisons": [3], "correct_at": 0.9, "runs": []}',
            "comparisons must be an object",
        ),
    ],
)
def test_broken_summaries(tmp_path: Path, paper: Paper, text: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    result = paper("compare", tmp_path, "--table", 1)
    assert result.exit_code == 2
    assert message in result.stderr
    assert str(tmp_path / "summary.json") in result.stderr


def test_numbers_that_are_none_are_missing_cells(study: Path, tmp_path: Path, paper: Paper) -> None:
    """A report of a later version may leave something out; nothing may be made up for it."""
    summary = json.loads((study / "report" / "llava_1_5_7b" / "summary.json").read_text(encoding="utf-8"))
    for record in summary["comparisons"]:
        record["dr"] = "much"
        if record["task"] == "mmbench_en_dev_static":
            del record["n"]
    for run in summary["runs"]:
        del run["benchmark_metrics"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = cells(paper("compare", tmp_path, "--table", 1, "--format", "csv"))
    assert float(found["FastV", "GQA", "NDR"]["ours"]) == pytest.approx(10.0)
    for key in (("GQA", "DR"), ("POPE", "score"), ("MMBench", "score"), ("MMBench", "NDR")):
        assert found[("FastV", *key)]["status"] == "missing", key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "7"], "table 7 holds no results of runs; there are tables 1, 2, 3, 4, 5, 6, 10, 11, 12"),
        (["--table", "99"], "table 99 holds no results of runs"),
        (["--table", "10"], "nothing here is in table 10, which is about AWQ, GPTQ on Qwen2-VL"),
        (["--as", "fastv"], "--as 'fastv' is not FOLDER=NAME"),
        (["--as", "fastv=Fast"], "--as: the paper has no Fast; it has LLaVA-Med, LLaVA-1.5"),
        (["--as", "fastv_r75=FastV"], "fastv and fastv_r75 both stand for FastV"),
    ],
)
def test_bad_options(study: Path, paper: Paper, arguments: list[str], message: str) -> None:
    result = paper("compare", study, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_same_cells_twice(study: Path, make_study: Study, paper: Paper) -> None:
    other = make_study("again", {"baseline": BASELINE, "fastv": FASTV})
    result = paper("compare", study, other)
    assert result.exit_code == 2
    assert "both have LLaVA-1.5 FastV on gqa; compare them one by one" in result.stderr
    assert paper("compare", study, study).exit_code == 0  # one report, named twice


def test_a_report_without_a_table(make_study: Study, paper: Paper) -> None:
    for table in (None, "3_4"):
        study = make_study(f"none{table}", {"baseline": BASELINE, "fastv": FASTV}, table=table)
        result = paper("compare", study)
        assert result.exit_code == 2
        assert "no study there names a table; say which one with --table N" in result.stderr


def test_output_that_cannot_be_written(study: Path, paper: Paper, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = paper("compare", study, "-o", tmp_path / "file" / "below")
    assert result.exit_code == 2
    assert "error: cannot write into" in result.stderr


def test_baselines_that_differ_between_reports_are_named(study: Path, make_study: Study, paper: Paper) -> None:
    """The baseline is in the study of table 1 and in that of table 2, perhaps with another batch size."""
    other = make_study("other", {"baseline": {"gqa": GQA_FASTV}, "hired": {"gqa": GQA_FASTV}})
    text = paper("compare", study, other, "--table", 1).stdout
    assert "LLaVA-1.5 baseline on GQA is not the same in all reports: 60.00 (" in text
    assert "), 55.00 (" in text
    assert "not the same in all reports" not in paper("compare", study, study).stdout


@pytest.mark.parametrize(("name", "table"), [("table1", 1), ("table3_4", 3), ("table6", 6), ("figure3", None)])
def test_the_table_is_read_from_a_real_studys_folder(tmp_path: Path, name: str, table: int | None) -> None:
    plan = plan_study(load_study(Path(__file__).parents[2] / "configs" / "paper" / f"{name}.yaml"))
    describe(tmp_path, plan)
    if table is None:
        with pytest.raises(OptionError, match="no study there names a table"):
            stated_table([tmp_path])
    else:
        assert stated_table([tmp_path]) == table


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("llava_1_5_7b", "llava-hf/llava-1.5-7b-hf"), "LLaVA-1.5"),
        (("report", "llava-hf/llava-v1.6-vicuna-7b-hf"), "LLaVA-Next"),
        (("mine", "Qwen/Qwen2.5-VL-7B-Instruct"), "Qwen2.5-VL"),
        (("mine", "Qwen/Qwen2-VL-7B-Instruct"), "Qwen2-VL"),
        (("x", "checkpoints/llava-med-v1.5-mistral-7b-hf"), "LLaVA-Med"),
        # the paper's are all of 7B, whatever the label says
        (("llava_1_5", "llava-hf/llava-1.5-13b-hf"), ""),
        (("qwen2_vl_7b", "Qwen/Qwen2-VL-2B-Instruct"), ""),
        (("demo", "demo", ""), ""),
    ],
)
def test_which_base_model_a_name_speaks_of(names: tuple[str, ...], expected: str) -> None:
    assert base_model(*names) == expected
