"""Whatever happens to a log: a named error with exit code 2, or an answer in which every line is accounted for.

`LMMS_EVAL_STABILITY_FUZZ=20000 python -m pytest tests/fuzz` looks for longer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from lmms_eval_stability.cli import main
from lmms_eval_stability.problems import KINDS
from lmms_eval_stability.verdicts import adapter_for

from ..study.conftest import results_json, sample
from .damage import Damage, apply, damages, examples

STAMP = "20251120_140128"
N = 6
MEASURED = {"output_tokens": 2, "input_fingerprint": "ab", "image_fingerprint": "cd", "first_token_logprobs": None}
EVERYTHING = ",".join(KINDS)
Write = Callable[[str, str, bytes], Path]


def rows(answers: str) -> list[dict[str, Any]]:
    """Lines as models of this package write them; the first carries what the model says about its run."""
    lines = [
        sample(i, answer, float(answer == f"t{i}"), token_counts=[MEASURED], resps=f" {answer}")
        for i, answer in enumerate(answers.split())
    ]
    lines[0]["token_counts"] = [{**MEASURED, "run": {"versions": {"torch": "2"}, "method_args": {"k": 3}}}]
    return lines


BASE, RUN = rows("t0 t1 b c t4 ü"), rows("t0 x b t3 t4 y")


def encoded(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """write(name, task, log) -> the folder to give to `compare`, the same one for each name."""
    root = tmp_path_factory.mktemp("fuzz")

    def file(name: str, task: str, log: bytes) -> Path:
        home = root / f"{task}_{name}" / "demo"
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{STAMP}_samples_{task}.jsonl").write_bytes(log)
        results = home / f"{STAMP}_results.json"
        if not results.exists():
            results.write_text(json.dumps(results_json({task: BASE}, name, "pretrained=demo")))
        return home.parent

    return file


def compare(*args: object) -> Result:
    """The command in this process; a traceback instead of an error message fails the test."""
    result = CliRunner().invoke(main, ["compare", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code:
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: "), result.stderr
        assert result.stdout == ""
    return result


def lines_of(log: bytes) -> list[bytes]:
    return [line for line in log.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]


def check_numbers(base: bytes, run: bytes, record: dict[str, Any]) -> None:
    """Without any accepted problem, the numbers are those of a join written down plainly."""
    sides = [{row["doc_id"]: row for row in map(json.loads, lines_of(log))} for log in (base, run)]
    assert sides[0].keys() == sides[1].keys()
    assert record["n"] == len(sides[0]) == len(lines_of(base)) == len(lines_of(run))
    normalise = adapter_for(record["task"]).normalise
    answers = [[side[doc]["filtered_resps"] for doc in sides[0]] for side in sides]
    if all(isinstance(answer, str) for side in answers for answer in side):
        changed = sum(normalise(a) != normalise(b) for a, b in zip(*answers, strict=True))
        assert record["dr"] == changed / record["n"]
    scores = [[side[doc].get("exact_match") for doc in sides[0]] for side in sides]
    if all(type(score) is float for side in scores for score in side):
        lost = sum(a >= 0.9 > b for a, b in zip(*scores, strict=True))
        assert record["ndr"] == lost / record["n"]


def check_counts(logs: dict[Path, bytes], summary: dict[str, Any]) -> None:
    """With every problem accepted: pairs and counted problems make up all lines of each log."""
    (record,) = summary["comparisons"]
    counts: Counter[tuple[str, str]] = Counter()
    for problem in summary["runs"][0]["accepted"]:
        counts[problem["where"], problem["kind"]] += problem["count"]
    left_out = sum(n for (_, kind), n in counts.items() if kind in ("failed", "unscored"))
    for folder, log in logs.items():
        (path,) = (folder / "demo").glob("*.jsonl")
        lost = sum(counts[str(path), kind] for kind in ("unparsable", "duplicate", "unpaired"))
        assert record["n"] + lost <= len(lines_of(log)) <= record["n"] + lost + left_out, counts


@examples(150)
@given(base_harm=st.lists(damages, max_size=1), run_harm=st.lists(damages, min_size=1, max_size=3))
def test_a_damaged_log_is_refused_or_read_right(write: Write, base_harm: list[Damage], run_harm: list[Damage]) -> None:
    base, run = apply(encoded(BASE), base_harm), apply(encoded(RUN), run_harm)
    logs = {write("base", "gqa", base): base, write("run", "gqa", run): run}
    strict = compare(*logs, "--format", "json")
    if strict.exit_code == 0:
        check_numbers(base, run, json.loads(strict.stdout)["comparisons"][0])
    lenient = compare(*logs, "--format", "json", "--accept", EVERYTHING)
    if lenient.exit_code == 0:
        check_counts(logs, json.loads(lenient.stdout))


TASKS = ["pope", "mmmu_val", "mmbench_en_dev", "vqa_rad", "vqav2_val", "scienceqa_img", "shapes_vqa", "some_other_task"]
OPTIONS = [("--prediction", "raw"), ("--prediction", "filtered"), ("--format", "markdown"), ("--format", "table")]


@examples(80)
@given(
    task=st.sampled_from(TASKS),
    harm=st.lists(damages, min_size=1, max_size=4),
    both=st.booleans(),
    option=st.sampled_from([*OPTIONS, ("--reliability",)]),
)
def test_no_benchmark_breaks_on_a_damaged_log(
    write: Write, task: str, harm: list[Damage], both: bool, option: tuple[str, ...]
) -> None:
    run = apply(encoded(RUN), harm)
    base = apply(encoded(BASE), harm) if both else encoded(BASE)
    logs = [write("base", task, base), write("run", task, run)]
    compare(*logs, *option, "--accept", EVERYTHING)
    compare(*logs, *option, "--accept", EVERYTHING, "--metric", "exact_match")


@examples(5)
@given(harm=st.lists(damages, min_size=1, max_size=3))
def test_no_file_breaks_on_a_damaged_log(
    write: Write, tmp_path_factory: pytest.TempPathFactory, harm: list[Damage]
) -> None:
    logs = [write("base", "gqa", encoded(BASE)), write("run", "gqa", apply(encoded(RUN), harm))]
    out = tmp_path_factory.mktemp("report")
    result = compare(*logs, "--accept", EVERYTHING, "-o", out, "--html")
    assert not list(out.glob(".*"))
    if result.exit_code == 0:
        json.loads((out / "summary.json").read_text(encoding="utf-8"))
    else:
        assert not list(out.iterdir())
