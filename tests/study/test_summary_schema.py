"""summary.json is what its JSON Schema and docs/summary.md say, whatever the logs hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from jsonschema import Draft202012Validator

from lmms_eval_stability.report.machine import SCHEMA_VERSION

from .conftest import BASE, FASTV, WriteRun, sample

PAGE = Path(__file__).parents[2] / "docs" / "summary.md"
SCHEMA = json.loads(files("lmms_eval_stability.report").joinpath("summary.schema.json").read_text("utf-8"))
Compare = Callable[..., Result]


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def valid(result: Result) -> dict[str, Any]:
    """The summary that a comparison printed; strictly JSON, and what the schema says."""
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout, parse_constant=no_constants)
    errors = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(summary)]
    assert errors == []
    return summary


def test_the_schema_is_one_and_names_the_version_that_is_written() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def pope(i: int, answer: str, truth: str) -> dict[str, Any]:
    score = {"question_id": str(i), "score": float(answer == truth), "prediction": answer, "ground_truth": truth}
    return sample(i, answer, float(answer == truth), pope_accuracy=score)


@pytest.fixture
def whole(write_run: WriteRun, run_compare: Compare) -> dict[str, Any]:
    """Two tasks, two runs, a re-run, a benchmark's own metrics, confounders, accepted problems."""
    asked = [pope(i, "yes", "yes") for i in range(5)]
    answered = [pope(i, "no" if i else "yes", "yes") for i in range(5)]
    base = write_run("base", {"gqa": BASE, "pope": asked})
    again = write_run("again", {"gqa": BASE, "pope": asked})
    fastv = write_run("fastv", {"gqa": FASTV[:4], "pope": answered}, model="llava_fastv", args="k=3")
    int8 = write_run("int8", {"gqa": FASTV, "pope": asked}, model="llava_int8", config={"batch_size": 8})
    args = (base, fastv, int8, "--rerun", again, "--accept", "unpaired", "--format", "json")
    return valid(run_compare(*args))


def test_a_whole_comparison_uses_every_part_of_the_schema(whole: dict[str, Any]) -> None:
    assert len(whole["comparisons"]) == 6
    assert whole["rerun"] is not None
    for key in ("accepted", "benchmark_metrics", "confounders", "warnings"):
        assert any(run[key] for run in whole["runs"]), key


def objects(schema: dict[str, Any], value: Any, where: str = "summary") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every object of a document that the schema describes key by key, with that description."""
    schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for other in schema.get("anyOf", ()):
        if value is not None and "$ref" in other:
            yield from objects(other, value, where)
    if isinstance(value, dict) and "properties" in schema:
        yield where, schema, value
        for key, inner in value.items():
            yield from objects(schema["properties"].get(key, {}), inner, f"{where}.{key}")
    for inner in value if isinstance(value, list) else ():
        yield from objects(schema.get("items", {}), inner, f"{where}[]")


def test_every_key_that_is_written_is_in_the_schema(whole: dict[str, Any]) -> None:
    unknown = {
        f"{where}.{key}"
        for where, schema, value in objects(SCHEMA, whole)
        for key in value.keys() - schema["properties"].keys()
    }
    assert not unknown, "describe them in report/summary.schema.json and docs/summary.md"


@pytest.mark.parametrize("name", ["", *SCHEMA["$defs"]])
def test_every_key_of_the_schema_is_on_its_page(name: str) -> None:
    described = SCHEMA["$defs"][name] if name else SCHEMA
    on_page = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    undocumented = described["properties"].keys() - on_page
    if name == "benchmark_metric":  # "with `_low` and `_high`"
        assert {"_low", "_high"} <= on_page
    assert not undocumented, f"docs/summary.md does not say what {', '.join(sorted(undocumented))} mean"


@pytest.mark.parametrize("score", [nan, inf, -inf, 1e308, "1.0", None, True])
def test_hostile_scores_become_null_or_are_left_out(write_run: WriteRun, run_compare: Compare, score: object) -> None:
    rows = [sample(0, "a", score), sample(1, "b", 1.0)]
    results = {"results": {"gqa": {"exact_match,none": score}}, "config": {"model": "m"}}
    base = write_run("a", {"gqa": rows}, results=results)
    run = write_run("b", {"gqa": rows}, results=results)
    valid(run_compare(base, run, "--accept", "unscored,unparsable", "--format", "json"))


def test_a_benchmark_that_nobody_gets_right_has_null_where_there_is_nothing(
    write_run: WriteRun, run_compare: Compare
) -> None:
    rows = [sample(0, "a", 0.0)]
    base, run = write_run("a", {"some": rows}), write_run("b", {"some": rows}, model="m")
    (record,) = valid(run_compare(base, run, "--format", "json"))["comparisons"]
    assert record["conditional_ndr"] is record["rerun_dr"] is record["excess_dr"] is record["prefill_flops"] is None
    assert (record["dr"], record["ndr"]) == (0, 0)


def test_without_results_and_with_odd_names(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("a", {"x": BASE}, model="\x00\ud7ff", args="note=é|<b>")
    run = write_run("b", {"x": FASTV})
    for file in run.rglob("*_results.json"):
        file.unlink()
    summary = valid(run_compare(base, run, "--accept", "results", "--format", "json"))
    assert summary["runs"][0]["model"] == ""


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.pop("runs"),
        lambda s: s.update(schema_version=2),
        lambda s: s["comparisons"][0].update(dr=12.5),
        lambda s: s["comparisons"][0].update(n=None),
        lambda s: s["comparisons"][0].pop("ndr_high"),
        lambda s: s["runs"][0].update(label=None),
        lambda s: s["runs"][0]["benchmark_metrics"].append({}),
    ],
)
def test_the_schema_refuses_what_it_should(whole: dict[str, Any], edit: Callable[[dict[str, Any]], object]) -> None:
    edit(whole)
    assert not Draft202012Validator(SCHEMA).is_valid(whole)
