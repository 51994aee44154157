"""Logs as lmms-eval 0.7 writes them, small enough to work out every number by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

STAMP = "20251120_140128"
Row = dict[str, Any]


def sample(doc_id: int, answer: Any, score: Any, **more: Any) -> Row:
    """One line of a samples file."""
    row = {
        "doc_id": doc_id,
        "target": f"t{doc_id}",
        "filtered_resps": answer,
        "token_counts": [{"output_tokens": 2}],
        "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
        "exact_match": score,
        "input": f"question {doc_id}\nAnswer the question using a single word or phrase.",
    }
    return {**row, **more}


def samples(answers: str, scores: Sequence[Any]) -> list[Row]:
    """Lines for documents 0, 1, ...: answers as a text with blanks between them."""
    return [sample(i, answer, score) for i, (answer, score) in enumerate(zip(answers.split(), scores, strict=True))]


def results_json(tasks: dict[str, list[Row]], model: str, model_args: str, **more: Any) -> Row:
    """A results JSON whose scores are the means of the samples."""

    def mean(rows: list[Row]) -> float:
        scores = [row["exact_match"] for row in rows if isinstance(row.get("exact_match"), (int, float))]
        return sum(scores) / len(scores) if scores else 0.0

    document: Row = {
        "results": {task: {"alias": task, "exact_match,none": mean(rows)} for task, rows in tasks.items()},
        "configs": {task: {"metric_list": [{"metric": "exact_match"}]} for task in tasks},
        "versions": dict.fromkeys(tasks, 0.0),
        "higher_is_better": {task: {"exact_match": True} for task in tasks},
        "config": {"model": model, "model_args": model_args, "batch_size": "1", "limit": None, "gen_kwargs": ""},
        "lmms_eval_version": "0.7.3",
        "date": "1763640088.0",
    }
    return {**document, **more}


WriteRun = Callable[..., Path]


def run_writer(parent: Path) -> WriteRun:
    """write_run(name, {task: rows}, model=, args=, stamp=, results=, home=) -> the folder to give to `compare`."""

    def write(
        name: str,
        tasks: dict[str, list[Row]],
        *,
        model: str = "llava_baseline",
        args: str = "pretrained=demo",
        stamp: str = STAMP,
        results: Row | None = None,
        home: str = "demo",
        **more: Any,
    ) -> Path:
        folder = parent / name / home
        folder.mkdir(parents=True, exist_ok=True)
        for task, rows in tasks.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{stamp}_samples_{task}.jsonl").write_text(lines, encoding="utf-8")
        document = results_json(tasks, model, args, **more) if results is None else results
        (folder / f"{stamp}_results.json").write_text(json.dumps(document), encoding="utf-8")
        return parent / name

    return write


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    return run_writer(tmp_path)


BASE = samples("red blue two yes no", [1.0, 1.0, 0.0, 1.0, 0.0])
# doc 0 same, doc 1 right -> wrong, doc 2 wrong -> right, doc 3 same, doc 4 wrong -> another wrong answer
FASTV = samples("red green 2 yes maybe", [1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.fixture
def base(write_run: WriteRun) -> Path:
    return write_run("base", {"gqa": BASE})


@pytest.fixture
def fastv(write_run: WriteRun) -> Path:
    return write_run("fastv", {"gqa": FASTV}, model="llava_fastv", args="pretrained=demo,k=3,r=0.5")


def samples_file(folder: Path, task: str = "gqa", stamp: str = STAMP) -> Path:
    return folder / "demo" / f"{stamp}_samples_{task}.jsonl"


@pytest.fixture
def run_compare() -> Callable[..., Result]:
    """The command in this process; a traceback instead of an error message fails the test."""
    from lmms_eval_stability.cli import main

    def run(*args: object) -> Result:
        result = CliRunner().invoke(main, ["compare", *map(str, args)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
