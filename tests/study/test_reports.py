from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from lmms_eval_stability import compare_runs
from lmms_eval_stability.divergence import Rate
from lmms_eval_stability.errors import OutputError
from lmms_eval_stability.report.figure import save_figure, short_names
from lmms_eval_stability.report.folder import ReportFolder
from lmms_eval_stability.report.markdown import escape
from lmms_eval_stability.report.terminal import print_comparison
from lmms_eval_stability.report.values import p_value, percent, rate

from .conftest import BASE, FASTV, WriteRun, sample, samples_file

Compare = Callable[..., Result]
FILES = {"summary.json", "divergence.csv", "divergence.md", "divergence.png", "divergence.svg", "pairs.csv"}
FILES |= {"pairs.parquet", "tables.tex", "manifest.json", "leaderboard_llava_fastv_k=3_r=0.5.json"}


def test_all_files_of_the_report(base: Path, fastv: Path, tmp_path: Path, run_compare: Compare) -> None:
    out = tmp_path / "deep" / "report"
    result = run_compare(base, fastv, "-o", out, "--format", "json")
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "summary.json").read_text(encoding="utf-8") == result.stdout
    assert "written to" in result.stderr
    with (out / "divergence.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    record = json.loads(result.stdout)["comparisons"][0]
    assert list(row) == list(record)
    assert float(row["dr_low"]) == record["dr_low"]
    assert (out / "divergence.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "divergence.svg").read_text()


def test_the_page_and_its_figures_on_request(base: Path, fastv: Path, tmp_path: Path, run_compare: Compare) -> None:
    out = tmp_path / "report"
    result = run_compare(base, fastv, "-o", out, "--html")
    figures = {path.name for path in out.iterdir()} - FILES
    assert {"report.html", "score_drop.svg", "score_drop.png"} <= figures
    assert {path.rpartition(".")[0] for path in figures if path.endswith("svg")} == {
        path.rpartition(".")[0] for path in figures if path.endswith("png")
    }
    assert "report.html" in result.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert "<svg" in (out / "score_drop.svg").read_text()


def test_the_pages_pictures_come_from_a_folder(base: Path, fastv: Path, tmp_path: Path, run_compare: Compare) -> None:
    images = tmp_path / "images" / "gqa"
    images.mkdir(parents=True)
    Image.new("RGB", (400, 300), (1, 2, 3)).save(images / "1.png")
    run_compare(base, fastv, "-o", tmp_path / "report", "--html", "--images", images.parent)
    assert "data:image/jpeg;base64," in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_a_folder_and_pictures_need_the_page(
    base: Path, fastv: Path, tmp_path: Path, run_compare: Compare
) -> None:
    out = tmp_path / "report"
    for options, reason in (
        (("--html",), "name it with -o"),
        (("-o", out, "--images", "dataset"), "add --html"),
        (("-o", out, "--html", "--images", tmp_path / "nowhere"), "neither a folder nor"),
    ):
        result = run_compare(base, fastv, *options)
        assert result.exit_code == 2
        assert reason in result.stderr
        assert not out.exists()


def test_pairs_by_hand(base: Path, fastv: Path, tmp_path: Path, run_compare: Compare) -> None:
    run_compare(base, fastv, "-o", tmp_path / "report")
    assert (tmp_path / "report" / "pairs.csv").read_text().splitlines() == [
        "task,doc_id,run,target,prediction_baseline,prediction_run,score_baseline,score_run,"
        "correct_baseline,correct_run,changed,flip",
        'gqa,0,"llava_fastv (k=3, r=0.5)",t0,red,red,1.0,1.0,True,True,False,',
        'gqa,1,"llava_fastv (k=3, r=0.5)",t1,blue,green,1.0,0.0,True,False,True,negative',
        'gqa,2,"llava_fastv (k=3, r=0.5)",t2,two,2,0.0,1.0,False,True,True,positive',
        'gqa,3,"llava_fastv (k=3, r=0.5)",t3,yes,yes,1.0,1.0,True,True,False,',
        'gqa,4,"llava_fastv (k=3, r=0.5)",t4,no,maybe,0.0,0.0,False,False,True,',
    ]


def test_answers_with_commas_quotes_and_new_lines_survive(
    write_run: WriteRun, tmp_path: Path, run_compare: Compare
) -> None:
    odd = 'a "b", c\nd | é'
    rows = [sample(0, odd, 1.0)]
    run_compare(
        write_run("a", {"some_task": rows}), write_run("b", {"some_task": rows}, model="x"), "-o", tmp_path / "report"
    )
    with (tmp_path / "report" / "pairs.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["prediction_run"] == odd


def test_refused_runs_leave_nothing_and_older_files_alone(
    base: Path, fastv: Path, tmp_path: Path, run_compare: Compare
) -> None:
    out = tmp_path / "report"
    run_compare(base, fastv, "-o", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    samples_file(fastv).write_bytes(b"")
    assert run_compare(base, fastv, "-o", out).exit_code == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run_compare(base, fastv, "-o", tmp_path / "new").exit_code == 2
    assert not (tmp_path / "new").exists()


def test_an_interrupt_while_writing_leaves_nothing(base: Path, fastv: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"

    def interrupted() -> None:
        with ReportFolder(out) as folder:
            compare_runs(base, [fastv], on_pairs=folder.add_pairs)
            assert any(out.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not out.exists()


def test_the_same_comparison_gives_the_same_files(
    base: Path, fastv: Path, tmp_path: Path, run_compare: Compare
) -> None:
    for name in ("one", "two"):
        run_compare(base, fastv, "-o", tmp_path / name)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_output_that_cannot_be_written_is_named(base: Path, fastv: Path, tmp_path: Path, run_compare: Compare) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run_compare(base, fastv, "-o", tmp_path / "file")
    assert result.exit_code == 2
    assert f"error: -o {tmp_path / 'file'}: cannot write there" in result.stderr
    with pytest.raises(OutputError, match="cannot write there"), ReportFolder(tmp_path / "file" / "below"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_does_not_hide_why_the_comparison_ended(tmp_path: Path) -> None:
    def refused_with_a_row_still_to_be_written() -> None:
        with ReportFolder(tmp_path / "report") as folder:
            folder._pairs.close()
            folder._pairs = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
            folder._pairs.write("a row")
            raise OutputError("refused")

    with pytest.raises(OutputError, match="refused"):
        refused_with_a_row_still_to_be_written()
    assert not (tmp_path / "report").exists()


def test_labels_are_data_in_every_layout(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    run = write_run("odd", {"gqa": FASTV}, model="[red]x[/red]|<b>", args="pretrained=demo,note=$a_b$")
    assert run_compare(base, run).stdout.startswith("[red]x[/red]|<b> (note=$a_b$) against")
    markdown = run_compare(base, run, "--format", "markdown").stdout
    assert r"\[red\]x\[/red\]\|\<b\>" in markdown


def test_nothing_is_cut_off_in_a_pipe(base: Path, write_run: WriteRun, run_compare: Compare) -> None:
    task = "a_task_with_a_very_long_name_" * 6
    out = run_compare(
        write_run("a", {task: BASE}), write_run("b", {task: FASTV}, model="m" * 200, config={"model": "m" * 200})
    ).stdout
    assert task in out
    assert "m" * 200 in out
    assert "…" not in out


@pytest.mark.parametrize("columns", [10, 40, 50, 60, 70, 80, 90, 200])
def test_a_narrow_terminal_moves_intervals_and_loses_nothing(
    base: Path, fastv: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    print_comparison(compare_runs(base, [fastv]), terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "…" not in text
    assert ("60.0 [23.1, 88.2]" in text) == (columns == 200)
    words = text.split()
    assert [word for word in words if word in ("DR", "NDR", "PDR", "McNemar")] == ["DR", "NDR", "PDR", "McNemar"]
    assert [words.count(word) for word in ("60.0", "20.0", "[23.1,", "62.4]", "1")] == [3, 2, 1, 2, 1]


def test_names_in_the_figure_have_no_more_arguments_than_needed() -> None:
    assert short_names(["a (k=3, r=0.5)", "a (k=3, r=0.75)", "b (tokens=192)", "c", "d (x=1) [folder]"]) == {
        "a (k=3, r=0.5)": "a (r=0.5)",
        "a (k=3, r=0.75)": "a (r=0.75)",
        "b (tokens=192)": "b",
        "c": "c",
        "d (x=1) [folder]": "d [folder]",
    }
    assert short_names(["a", "a (k=3)"]) == {"a": "a", "a (k=3)": "a (k=3)"}


def test_figure_with_native_scores_only_says_what_is_missing(write_run: WriteRun, tmp_path: Path) -> None:
    rows = [sample(i, "a", 80.0) for i in range(3)]
    comparison = compare_runs(write_run("a", {"mme": rows}), [write_run("b", {"mme": rows}, model="x")])
    save_figure(comparison, tmp_path / "f.svg", "svg")
    assert (tmp_path / "f.svg").stat().st_size > 1000
    assert any("scores are not within 0 to 1" in warning for warning in comparison.runs[0].warnings)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.126, "12.6"), (0.0, "0.0"), (-0.0001, "0.0"), (-0.004, "-0.4"), (float("nan"), "–"), (1, "100.0")],
)
def test_percent(value: float, text: str) -> None:
    assert percent(value, 1) == text


def test_rates_and_p_values() -> None:
    assert rate(Rate(0.126, 0.1, 0.158), 1) == "12.6 [10.0, 15.8]"
    assert rate(Rate(0.126, float("nan"), float("nan")), 2) == "12.60"
    assert [p_value(p) for p in (0.3712, 1.0, 1.234e-7, float("nan"))] == ["0.37", "1", "1.2e-07", "–"]


def test_markdown_escape() -> None:
    assert escape("a|b\n<i>_x_ `y`") == r"a\|b \<i\>\_x\_ \`y\`"
