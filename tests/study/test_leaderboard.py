"""leaderboard_<run>.json: lmms-eval's own file, with more metrics that lmms-eval's own printer shows."""

from __future__ import annotations

import json
import re
from math import isnan, nan, sqrt
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability import compare_runs
from lmms_eval_stability.leaderboard import leaderboards, with_divergence

from .conftest import BASE, FASTV, STAMP, WriteRun, results_json, sample


def written(base: Path, *runs: Path, **options: Any) -> dict[str, Any]:
    files = leaderboards(compare_runs(base, runs, **options))
    return {name: json.loads(text) for name, text in files.items()}


def test_numbers_by_hand(base: Path, fastv: Path) -> None:
    ((name, document),) = written(base, fastv).items()
    assert name == "leaderboard_llava_fastv_k=3_r=0.5.json"
    # 3 of 5 answers differ, 1 became wrong and 1 right; lmms-eval divides by n - 1
    assert document["results"]["gqa"] == {
        "alias": "gqa",
        "exact_match,none": 0.6,
        "dr,none": 0.6,
        "dr_stderr,none": pytest.approx(sqrt(0.6 * 0.4 / 4)),
        "ndr,none": 0.2,
        "ndr_stderr,none": pytest.approx(0.2),
        "pdr,none": 0.2,
        "pdr_stderr,none": pytest.approx(0.2),
    }
    assert document["lmms_eval_stability"] == {
        "baseline": "llava_baseline",
        "run": "llava_fastv (k=3, r=0.5)",
        "correct_at": 0.9,
        "prediction": "scored",
        "n": {"gqa": 5},
    }


def test_everything_else_is_what_lmms_eval_wrote(base: Path, fastv: Path) -> None:
    (file,) = fastv.rglob("*_results.json")
    before = json.loads(file.read_text())
    (document,) = written(base, fastv).values()
    assert json.loads(file.read_text()) == before
    del document["lmms_eval_stability"]
    document["higher_is_better"]["gqa"] = {"exact_match": True}
    document["results"]["gqa"] = {k: v for k, v in document["results"]["gqa"].items() if k in before["results"]["gqa"]}
    assert document == before


def test_the_table_printer_of_lmms_eval_shows_the_columns(base: Path, write_run: WriteRun) -> None:
    from lmms_eval.utils import make_table

    shots = {"n-shot": {"gqa": 0}}
    (document,) = written(base, write_run("run", {"gqa": FASTV}, model="m", **shots)).values()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in make_table(document).splitlines()]
    shown = {row[3]: row for row in rows if len(row) > 7}
    assert (shown["dr"][4], float(shown["dr"][5]), float(shown["dr"][7])) == ("↓", 0.6, 0.2449)
    assert (shown["ndr"][4], float(shown["ndr"][5]), float(shown["ndr"][7])) == ("↓", 0.2, 0.2)
    assert (shown["pdr"][4], float(shown["pdr"][5]), float(shown["pdr"][7])) == ("↑", 0.2, 0.2)
    assert float(shown["exact_match"][5]) == 0.6


def test_the_stderr_is_the_one_of_lmms_eval(base: Path, fastv: Path) -> None:
    from lmms_eval.api.metrics import mean_stderr

    (document,) = written(base, fastv).values()
    assert document["results"]["gqa"]["dr_stderr,none"] == pytest.approx(mean_stderr([0.0, 1.0, 1.0, 0.0, 1.0]))


def test_a_single_sample_has_no_stderr(write_run: WriteRun) -> None:
    rows = {"some": [sample(0, "a", 1.0)]}
    (document,) = written(write_run("a", rows), write_run("b", rows, model="m")).values()
    assert document["results"]["some"]["dr,none"] == 0
    assert document["results"]["some"]["dr_stderr,none"] == "N/A"


def test_several_tasks_and_groups(write_run: WriteRun) -> None:
    tasks = {"gqa": FASTV, "some": FASTV}
    results = results_json(tasks, "llava_fastv", "")
    results["results"]["group"] = {"alias": "group", "exact_match,none": nan}
    base = write_run("a", {"gqa": BASE, "some": BASE})
    (document,) = written(base, write_run("b", tasks, results=results)).values()
    assert [task for task, entry in document["results"].items() if "dr,none" in entry] == ["gqa", "some"]
    assert isnan(document["results"]["group"]["exact_match,none"])  # as it was: null would break the printer
    assert "average" not in document["results"]


def test_every_run_has_a_file_of_its_own(write_run: WriteRun) -> None:
    base = write_run("base", {"gqa": BASE})
    odd = ("a/../../b", "a .. .. b", "A/../../B", "é", "x" * 300)
    runs = [write_run(f"run{i}", {"gqa": FASTV}, model=model) for i, model in enumerate(odd)]
    files = written(base, *runs)
    assert len({name.lower() for name in files}) == len(odd)
    assert all(re.fullmatch(r"leaderboard_[A-Za-z0-9.=_-]{1,125}\.json", name) for name in files)
    assert [one["lmms_eval_stability"]["run"] for one in files.values()] == list(odd)


def test_a_run_without_results_has_no_file(base: Path, fastv: Path) -> None:
    (fastv / "demo" / f"{STAMP}_results.json").unlink()
    assert written(base, fastv, accept=["results"]) == {}


@pytest.mark.parametrize("results", [{}, {"results": None}, {"results": {"gqa": 1}, "higher_is_better": []}])
def test_a_results_json_that_lacks_the_task_gets_it(base: Path, fastv: Path, results: dict[str, Any]) -> None:
    rows = compare_runs(base, [fastv]).runs[0].rows
    document = with_divergence(results, rows)
    assert document["results"]["gqa"]["alias"] == "gqa"
    assert document["higher_is_better"]["gqa"]["ndr"] is False
