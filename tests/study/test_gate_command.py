"""The `gate` command on real reports: exit codes, files, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from lmms_eval_stability.cli import main
from lmms_eval_stability.gate import METRICS
from lmms_eval_stability.gate_report import SCHEMA_VERSION
from lmms_eval_stability.report import machine

from .conftest import run_writer, sample

PAGE = Path(__file__).parents[2] / "docs" / "commands" / "gate.md"
FASTV = "llava_fastv (r=0.5)"
Gate = Callable[..., Result]


def answers(n: int, wrong: int, changed: int = 0) -> list[dict[str, Any]]:
    """n samples whose first `wrong` are wrong, and whose next `changed` are right with another answer."""
    return [
        sample(i, "bad" if i < wrong else "other" if i < wrong + changed else "good", float(i >= wrong))
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DR 2.5 % and NDR 1 % on gqa, DR and NDR 10 % on pope, 1,000 samples each; the re-run changes 1 of 1,000."""
    folder = tmp_path_factory.mktemp("compared")
    write_run = run_writer(folder)
    base = write_run("base", {"gqa": answers(1000, 0), "pope": answers(1000, 0)})
    again = write_run("again", {"gqa": answers(1000, 0, 1), "pope": answers(1000, 0, 1)})
    fastv = write_run(
        "fastv", {"gqa": answers(1000, 10, 15), "pope": answers(1000, 100)}, model="llava_fastv", args="r=0.5"
    )
    out = folder / "report"
    # without an adapter's metrics, both tasks compare their answers in the same way
    args = ["compare", base, fastv, "--rerun", again, "-o", out, "--metric", "exact_match"]
    result = CliRunner().invoke(main, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def report(compared: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    return Path(shutil.copytree(compared, tmp_path / "report"))


@pytest.fixture
def gate(report: Path, tmp_path: Path) -> Gate:
    def run(policy: str, *args: object, results: Path | None = None) -> Result:
        file = tmp_path / "policy.yaml"
        file.write_text(policy, encoding="utf-8")
        words = ["gate", str(file), str(results or report), *map(str, args)]
        return CliRunner().invoke(main, words, catch_exceptions=False)

    return run


@pytest.mark.parametrize(
    ("policy", "code", "headline"),
    [
        ("tasks: {gqa: {ndr: 2}}", 0, "PASS: 1 PASS"),
        ("tasks: {gqa: {ndr: 2, dr: 4%}}", 0, "PASS: 2 PASS"),
        ("tasks: {gqa: {ndr: 1.5}}", 3, "INCONCLUSIVE: 1 INCONCLUSIVE"),
        ("tasks: {gqa: {ndr: {max: 1.5, judge: point}}}", 0, "PASS: 1 PASS"),
        ("judge: point\ntasks: {gqa: {ndr: 1.5, dr: 2}}", 1, "FAIL: 1 PASS, 1 FAIL"),
        ("tasks: {'*': {ndr: 2}}", 1, "FAIL: 1 PASS, 1 FAIL"),
        ("tasks: {'*': {ndr: 2}, pope: {ndr: 15}}", 0, "PASS: 2 PASS"),
        ("average: {ndr: {max: 6, judge: point}}", 0, "PASS: 1 PASS"),
        ("average: {ndr: {max: 5, judge: point}}", 1, "FAIL: 1 FAIL"),
        ("tasks: {gqa: {excess_dr: {max: 2.4, judge: point}}}", 0, "PASS: 1 PASS"),
        ("tasks: {gqa: {excess_dr: {max: 2.3, judge: point}}}", 1, "FAIL: 1 FAIL"),
        (f"tasks: {{gqa: {{ndr: 2}}}}\nruns: {{{FASTV}: {{tasks: {{gqa: {{ndr: 0.1%}}}}}}}}", 1, "FAIL: 1 FAIL"),
        ("runs: {llava_fastv: {tasks: {gqa: {ndr: 2}}}}", 0, "PASS: 1 PASS"),
        ("missing: inconclusive\ntasks: {gqa: {ndr: 2}, nowhere: {ndr: 99}}", 3, "1 PASS, 1 INCONCLUSIVE"),
        ("missing: inconclusive\nruns: {nobody: {tasks: {gqa: {ndr: 2}}}}", 3, "INCONCLUSIVE: 1 INCONCLUSIVE"),
    ],
)
def test_verdicts_and_exit_codes(gate: Gate, policy: str, code: int, headline: str) -> None:
    result = gate(policy)
    assert result.exit_code == code, result.output
    assert headline in result.stdout.splitlines()[-1]


def test_the_summary_itself_may_be_named(gate: Gate, report: Path) -> None:
    assert gate("tasks: {gqa: {ndr: 2}}", results=report / "summary.json").exit_code == 0


@pytest.mark.parametrize(
    ("policy", "line", "message"),
    [
        ("tasks:\n  gqa:\n    ndr: 2\n    nrd: 3\n", 4, "task 'gqa' does not know 'nrd'"),
        ("tasks:\n  gqa:\n    ndr: 2\n    ndr: 3\n", 4, "'ndr' twice"),
        ("judge: interval\ntask: {}\n", 2, "does not know 'task'"),
        ("tasks:\n  gqa: {ndr: 0.02}\n", 2, "is 0.02 a fraction? Limits are in percent points: write 2 "),
        ("tasks:\n  gqa: {ndr: 100}\n", 2, "cannot be exceeded"),
        ("tasks:\n  gqa: {ndr: -1}\n", 2, "at least 0"),
        ("tasks:\n  gqa: {ndr: 0}\n", 2, "no number of samples can show 0"),
        ("tasks:\n  gqa: {ndr_high: 0}\n", 2, "no number of samples can show 0"),
        ("tasks:\n  gqa: {ndr_high: {max: 2, judge: point}}\n", 2, "no 'judge'"),
        ("tasks:\n  gqa: {ndr: {judge: point}}\n", 2, "lacks 'max'"),
        ("tasks:\n  gqa: {ndr: two}\n", 2, "not 'two'"),
        ("tasks:\n  gqa: {ndr: .nan}\n", 2, "not '.nan'"),
        ("tasks:\n  gqa: {ndr: true}\n", 2, "not 'true'"),
        ("tasks:\n  gqa: {ndr: 1:30}\n", 2, "not '1:30'"),
        ("tasks:\n  gqa: {ndr: 010}\n", 2, "not '010'"),
        ("tasks:\n  gqa: {ndr: [2]}\n", 2, "not a list"),
        ("tasks:\n  gqa: {ndr: }\n", 2, "not nothing"),
        ("tasks:\n  gqa:\n", 2, "must be a mapping"),
        ("tasks:\n  - gqa\n", 2, "must be a mapping"),
        ("judge: pont\ntasks: {gqa: {ndr: 2}}\n", 1, "'judge' is interval or point, not 'pont'"),
        ("tasks:\n  qga: {ndr: 2}\n", 2, "the report has no task 'qga', only 'gqa', 'pope'; did you mean 'gqa'?"),
        ("runs:\n  llava_fastw:\n    tasks: {gqa: {ndr: 2}}\n", 2, "did you mean 'llava_fastv'?"),
        ("runs:\n  llava_fastv:\n    tasks: {other: {ndr: 2}}\n", 3, "the report has no task 'other'"),
        ("tasks: {gqa: {ndr: 2}}\n---\ntasks: {}\n", 2, "not YAML"),
        ("tasks:\n  gqa: {ndr: 2\n", 3, "not YAML"),
        ("judge: point\n", 1, "no limit"),
        ("? [a]\n: 2\n", 1, "a key must be a name"),
        ("tasks: &t {gqa: {<<: {ndr: 2}}}\n", 1, "does not know '<<'"),
        ("- tasks\n", 1, "must be a mapping"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_line(
    gate: Gate, tmp_path: Path, policy: str, line: int, message: str
) -> None:
    result = gate(policy)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path / 'policy.yaml'}:{line}: "), result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 5000, b"&a [*a]", b"a: \x00"])
def test_a_file_that_is_no_policy_is_refused(gate: Gate, report: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    result = CliRunner().invoke(main, ["gate", str(tmp_path / "odd.yaml"), str(report)], catch_exceptions=False)
    assert result.exit_code == 2
    assert "odd.yaml" in result.stderr
    assert CliRunner().invoke(main, ["gate", str(tmp_path / "none.yaml"), str(report)]).exit_code == 2


def change(report: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = report / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    edit(summary)
    file.write_text(json.dumps(summary), encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("schema_version"), "no schema_version"),
        (lambda s: s.update(schema_version=2), "schema_version is 2"),
        (lambda s: s.update(schema_version=True), "schema_version is True"),
        (lambda s: s.update(comparisons=[]), "not empty"),
        (lambda s: s["comparisons"][0].update(ndr=1.0001), "ndr must be a fraction"),
        (lambda s: s["comparisons"][0].update(ndr="0"), "ndr must be a number or null"),
        (lambda s: s["comparisons"][0].update(ndr=False), "ndr must be a number or null"),
        (lambda s: s["comparisons"][0].update(ndr=0.9), "ndr does not lie within its interval"),
        (lambda s: s["comparisons"][0].update(n=-1), "n must be a count"),
        (lambda s: s["comparisons"][0].update(run="another"), "no record of one of the runs"),
        (lambda s: s["comparisons"][0].update(run=["another"]), "names no run and task"),
        (lambda s: s["comparisons"].append(s["comparisons"][0]), "has gqa twice"),
        (lambda s: s["runs"].append(s["runs"][0]), "'label' of its own"),
    ],
)
def test_an_impossible_report_is_refused(
    gate: Gate, report: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(report, edit)
    result = gate("tasks: {gqa: {ndr: 2}}")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "summary.json" in result.stderr


@pytest.mark.parametrize("content", [b"", b"[]", b"NaN", b'{"schema_version": 1}', b"\xff"])
def test_a_file_that_is_no_report_is_refused(gate: Gate, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    assert gate("tasks: {gqa: {ndr: 2}}", results=tmp_path / "odd.json").exit_code == 2
    assert "compare" in gate("tasks: {gqa: {ndr: 2}}", results=tmp_path / "nowhere").stderr
    assert "compare" in gate("tasks: {gqa: {ndr: 2}}", results=tmp_path).stderr


@pytest.mark.parametrize("metric", list(METRICS))
def test_a_rate_that_is_null_or_gone_is_open(gate: Gate, report: Path, metric: str) -> None:
    policy = f"tasks: {{gqa: {{{metric}: 99}}}}"
    change(report, lambda s: s["comparisons"][0].update({metric: None}))
    assert gate(policy).exit_code == 3
    change(report, lambda s: s["comparisons"][0].pop(metric))
    assert gate(policy).exit_code == 3


def test_a_report_without_rerun_is_open_about_excess(gate: Gate, report: Path) -> None:
    change(report, lambda s: s["comparisons"][0].update(excess_dr=None, excess_dr_low=None, excess_dr_high=None))
    result = gate("tasks: {gqa: {excess_dr: {max: 50, judge: point}}}")
    assert result.exit_code == 3
    assert "--rerun" in result.stdout


def test_an_interval_of_excess_is_used_where_the_report_has_one(gate: Gate, report: Path) -> None:
    change(report, lambda s: s["comparisons"][0].update(excess_dr_low=0.015, excess_dr_high=0.034))
    assert gate("tasks: {gqa: {excess_dr: 3.5}}").exit_code == 0
    assert gate("tasks: {gqa: {excess_dr: 3}}").exit_code == 3
    assert gate("tasks: {gqa: {excess_dr: 1.4}}").exit_code == 1


def test_other_averages_are_no_tasks(gate: Gate, report: Path) -> None:
    change(report, lambda s: s["comparisons"].append({**s["comparisons"][-1], "task": "average over samples"}))
    assert gate("tasks: {'*': {ndr: 15}}").stdout.splitlines()[-1] == "PASS: 2 PASS"


MIXED = "tasks: {gqa: {ndr: 2, dr: 2.5}, pope: {ndr: 2}}\n"


def test_junit(gate: Gate, tmp_path: Path) -> None:
    assert gate(MIXED, "--junit", tmp_path / "gate.xml").exit_code == 1
    root = ET.parse(tmp_path / "gate.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")} == {
        "name": FASTV,
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {
        "gqa: NDR ≤ 2 %, by interval": [],
        "gqa: DR ≤ 2.5 %, by interval": ["error"],
        "pope: NDR ≤ 2 %, by interval": ["failure"],
    }
    assert suite.find("testcase/failure").get("message").startswith("the whole interval [8.29")  # type: ignore[union-attr]


def test_markdown(gate: Gate, tmp_path: Path) -> None:
    result = gate(MIXED, "--format", "markdown", "--markdown", tmp_path / "gate.md")
    text = (tmp_path / "gate.md").read_text(encoding="utf-8")
    assert text == result.stdout
    lines = text.splitlines()
    assert lines[0] == "### ❌ FAIL: 1 PASS, 1 FAIL, 1 INCONCLUSIVE"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {8}
    assert table[2] == (
        "| ✅ PASS | llava\\_fastv (r=0.5) | gqa | NDR ≤ 2 %, by interval | 1000 | 1.00 \\[0.54, 1.83\\] | "
        "the whole interval \\[0.5441, 1.831\\] is within the limit |"
    )


def test_json(gate: Gate) -> None:
    found = json.loads(gate(MIXED, "--format", "json").stdout)
    assert (found["verdict"], found["exit_code"]) == ("FAIL", 1)
    assert [check["verdict"] for check in found["checks"]] == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert found["checks"][0] | {"reason": "", "low": 0, "high": 0} == {
        "run": FASTV,
        "task": "gqa",
        "metric": "ndr",
        "max": 2.0,
        "judge": "interval",
        "line": 1,
        "verdict": "PASS",
        "reason": "",
        "n": 1000,
        "found": 1.0,
        "low": 0,
        "high": 0,
    }


def test_hostile_names_stay_data(gate: Gate, report: Path, tmp_path: Path) -> None:
    odd = "[red]<b>|\x00\x1b[31m\ud800 ]]>&"

    def rename(summary: dict[str, Any]) -> None:
        summary["runs"][0]["label"] = odd.replace("\ud800", "")
        for record in summary["comparisons"]:
            record["run"] = odd.replace("\ud800", "")

    change(report, rename)
    result = gate(MIXED, "--junit", tmp_path / "gate.xml", "--markdown", tmp_path / "gate.md")
    assert result.exit_code == 1
    ET.parse(tmp_path / "gate.xml")
    table = [line for line in (tmp_path / "gate.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in table)
    assert "<b>" not in "".join(table).replace("\\<b\\>", "")


def test_a_file_that_cannot_be_written_is_named(gate: Gate, tmp_path: Path) -> None:
    result = gate(MIXED, "--junit", tmp_path / "no" / "gate.xml")
    assert result.exit_code == 2
    assert "error: --junit" in result.stderr


def test_the_policy_of_the_page_is_one(gate: Gate, report: Path) -> None:
    (policy,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    change(report, lambda s: s["runs"][0].update(model="llava_int8"))
    result = gate(policy, "--format", "json")
    found = {(one["task"], one["metric"]): one["max"] for one in json.loads(result.stdout)["checks"]}
    assert found == {
        ("gqa", "ndr"): 3,
        ("gqa", "dr"): 12,
        ("gqa", "excess_dr_high"): 15,
        ("pope", "ndr"): 3,
        ("average", "ndr"): 2,
    }
    assert all(f"`{metric}`" in PAGE.read_text(encoding="utf-8") for metric in METRICS)


def test_gate_and_compare_mean_the_same_summary() -> None:
    assert machine.SCHEMA_VERSION == SCHEMA_VERSION
