"""`check-table`: files, layouts, exit codes, and input that is no table."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lmms_eval_stability.cli import main
from lmms_eval_stability.plausibility import CHECKS

from .conftest import WriteRun, sample

HEADER = "method,benchmark,metric,value\n"
WRONG = HEADER + "fastv,gqa,DR,1.0\nfastv,gqa,NDR,2.0\n"


def check(*args: object) -> Result:
    """The command in this process; a traceback instead of an error message fails the test."""
    result = CliRunner().invoke(main, ["check-table", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


Write = Callable[[str], Path]


def test_errors_end_with_1_and_none_with_0(write: Write) -> None:
    result = check(write(WRONG))
    assert result.exit_code == 1
    assert "dr-below-ndr" in result.output
    assert "1 errors, 0 suspicious" in result.output
    result = check(write(WRONG.replace("2.0", "1.0")))
    assert result.exit_code == 0
    assert "0 errors" in result.output


def test_suspicious_numbers_are_no_errors(write: Write) -> None:
    result = check(write("method,perturbation,benchmark,metric,value\na,none,b,score,58.31\na,text,b,score,58.31\n"))
    assert result.exit_code == 0
    assert "identical-scores" in result.output
    assert "1 suspicious" in result.output


def test_json_has_the_same_findings_with_lines(write: Write) -> None:
    result = check(write(WRONG), "--format", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["schema_version"], document["errors"], document["suspicious"]) == (1, 1, 0)
    (finding,) = document["findings"]
    assert (finding["check"], finding["method"], finding["benchmark"]) == ("dr-below-ndr", "fastv", "gqa")
    assert finding["numbers"] == {"DR": "1.0", "NDR": "2.0"}
    assert finding["lines"] == [2, 3]
    assert [entry["check"] for entry in document["checks"]] == list(CHECKS)
    compared = {entry["check"]: entry["compared"] for entry in document["checks"]}
    assert (compared["rate-range"], compared["dr-below-ndr"], compared["units"]) == (2, 1, 0)


def test_names_are_data_in_every_layout(write: Write) -> None:
    """No mark-up of rich, no cell or HTML of Markdown."""
    path = write(WRONG.replace("fastv", "[red]a|b<i>"))
    assert "[red]a|b<i>" in check(path).output
    assert r"\[red\]a\|b\<i\>" in check(path, "--format", "markdown").output


def test_options_reach_the_checks(write: Write) -> None:
    rate = write(HEADER + "fastv,b,DR,9.45\n")
    assert check(rate).exit_code == 0
    assert "of 900 samples" in check(rate, "--size", "b=900").output
    # as a fraction, 945 % is no rate
    assert "rate-range" in check(rate, "--unit", "fraction").output
    drop = write(HEADER + "fastv,b,NDR,1.0\nfastv,b,drop,2.0\n")
    assert check(drop).exit_code == 0
    assert check(drop, "--binary", "b").exit_code == 1
    scores = write(HEADER + "dense,b,score,50\nfastv,b,score,40\nfastv,b,drop,3\n")
    assert check(scores).exit_code == 0
    assert "drop-not-difference" in check(scores, "--baseline", "dense").output


@pytest.mark.parametrize("size", ["gqa", "gqa=", "=5", "gqa=0", "gqa=-1", "gqa=1e3"])
def test_a_size_is_a_name_and_a_number(size: str, write: Write) -> None:
    result = check(write(WRONG), "--size", size)
    assert result.exit_code == 2
    assert "is not BENCHMARK=N" in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: the header lacks method, benchmark, metric, value"),
        ("method,benchmark,value\na,b,1\n", ":1: the header lacks metric"),
        ("method,benchmark,metric,value,value\n", ":1: the header names 'value' twice"),
        (HEADER, "has no rows"),
        (HEADER + "a,b,DR,1,000\n", ":2: 5 fields where the header has 4; quote"),
        (HEADER + "a,b,DR,1.0\na,b,NDR,twelve\n", ":3: column 'value': 'twelve' is no number"),
        (HEADER + "a,b,DR,nan\n", ":2: column 'value': 'nan' is no finite number"),
        (HEADER + "a,b,DR,1e999999999\n", ":2: column 'value': '1e999999999' is beyond"),
        (HEADER + "a,b,DR,1.0\na,c,DR,1.0\na,b,dr,1.1\n", ":4: DR of this method and benchmark is in line 2 already"),
        (HEADER + "a,,DR,1.0\n", ":2: column 'benchmark' is empty"),
        (HEADER.strip() + ",n\na,b,DR,1.0,many\n", ":2: column 'n': 'many' is no number of samples"),
        (HEADER.strip() + ",n\na,b,DR,1.0,0\n", ":2: column 'n': '0' is no number of samples"),
        (HEADER.strip() + ",n\na,b,DR,1,50\na,b,NDR,1,60\n", ":3: 60 samples, but 50 in an earlier row"),
        (HEADER.strip() + ",scoring\na,b,DR,1.0,hard\n", ":2: column 'scoring': 'hard' is neither of binary, soft"),
        (HEADER + 'a,b,DR,"1.0\n', "is not CSV"),
        (HEADER.encode() + b"a,b,DR,\xff\n", "is not UTF-8"),
        (b"\x00\x01\x02", ":1:"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(content: str, message: str, write: Write) -> None:
    path = write(content)
    result = check(path)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output
    assert str(path) in result.output


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path):
        result = check(path)
        assert result.exit_code == 2
        assert f"{path}: cannot be read" in result.output


def test_spreadsheets_byte_order_mark_blank_lines_and_dashes_are_fine(write: Write) -> None:
    text = "\ufeff" + WRONG.replace("\n", "\r\n") + "\r\nfastv,gqa,PDR,\r\n"
    result = check(write(text), "--format", "json")
    assert [finding["check"] for finding in json.loads(result.stdout)["findings"]] == ["dr-below-ndr"]


def test_metrics_that_no_check_knows_are_named(write: Write) -> None:
    result = check(write(WRONG + "fastv,gqa,BLEU,30\n"))
    assert "1 rows have metrics that no check knows (BLEU)" in result.output


@pytest.fixture
def divergence(write_run: WriteRun, run_compare: Callable[..., Result], tmp_path: Path) -> Path:
    """The divergence.csv of random answers to three tasks, one of them with soft scores and one that is incomplete."""
    rng = random.Random(7)
    rows: dict[str, dict[str, list[dict[str, object]]]] = {"base": {}, "a": {}, "b": {}}
    for task, scores in {"gqa": [0.0, 1.0], "textvqa": [0.0, 0.3, 0.6, 0.9, 1.0], "mmmu_val": [0.0, 1.0]}.items():
        for run, tasks in rows.items():
            kept = [i for i in range(137) if not (run == "b" and task == "gqa" and i % 7 == 0)]
            tasks[task] = [sample(i, f"answer {rng.randrange(4)}", rng.choice(scores)) for i in kept]
            for i, row in zip(kept, tasks[task], strict=True):
                row["target"], row["submission"] = f"t{i}", {"answer": row["filtered_resps"]}
    folders = [write_run(name, tasks, model=f"llava_{name}") for name, tasks in rows.items()]
    result = run_compare(*folders, "-o", tmp_path / "report", "--accept", "unpaired")
    assert result.exit_code == 0, result.output
    return tmp_path / "report" / "divergence.csv"


def test_our_own_tables_have_no_errors(divergence: Path) -> None:
    """Random verdicts, among them many that changed although the answer did not."""
    result = check(divergence, "--format", "json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["errors"]) == (0, 0), document["findings"]
    compared = {entry["check"]: entry["compared"] for entry in document["checks"]}
    for name in ("rate-range", "dr-below-flips", "no-count", "drop-not-difference", "average-not-mean"):
        assert compared[name] > 0


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("dr", lambda row: 0.5 * row["ndr"], "dr-below-ndr"),
        ("ndr", lambda row: row["ndr"] + 1e-4, "no-count"),
        ("drop", lambda row: row["drop"] + 1e-6, "drop-not-difference"),
        ("pdr", lambda row: 1.2, "rate-range"),
    ],
)
def test_a_changed_number_of_our_own_tables_is_found(
    divergence: Path, column: str, change: Callable[[dict[str, float]], float], expected: str
) -> None:
    with divergence.open(newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["task"] == "gqa")
    row["same_prediction_flips"] = "0"
    row[column] = repr(change({name: float(row[name]) for name in ("dr", "ndr", "drop", "pdr")}))
    with divergence.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(rows)
    result = check(divergence, "--format", "json")
    assert result.exit_code == 1
    assert expected in {finding["check"] for finding in json.loads(result.stdout)["findings"]}


def test_published_tables_by_name() -> None:
    result = check("paper", "--format", "markdown")
    assert result.exit_code == 1
    assert "18 errors, 13 suspicious" in result.output
    page = (Path(__file__).parents[2] / "docs" / "commands" / "check-table.md").read_text(encoding="utf-8")
    assert "finds 18 errors and 13 suspicious places" in page
    for name in ("paper:2", "paper:table2", "PAPER:2"):
        assert "6 errors, 6 suspicious" in check(name).output
    for number in (1, 3, 4, 5, 6, 8, 9):
        assert check(f"paper:{number}").exit_code == (1 if number == 1 else 0)
    result = check("paper:13")
    assert result.exit_code == 2
    assert "the paper has no table 13; there are tables 1 to 12" in result.output


def test_no_torch_lmms_eval_or_pandas_is_imported() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from lmms_eval_stability.cli import main;"
        "assert CliRunner().invoke(main, ['check-table', 'paper']).exit_code == 1;"
        "print([name for name in ('torch', 'lmms_eval', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
