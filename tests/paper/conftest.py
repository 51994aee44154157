"""A made-up study in the layout of a real one: logs as lmms-eval writes them, reports by the real compare code."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lmms_eval_stability import compare_runs
from lmms_eval_stability.report.folder import ReportFolder
from lmms_eval_stability.study.finish import run_folder

from ..study.conftest import STAMP, Row, results_json, sample
from ..study.test_benchmarks import mmbench, pope, vqa_rad

BASE_ARGS = "pretrained=llava-hf/llava-1.5-7b-hf,dtype=float16"
#: Metrics of the tasks that have their own, as their YAMLs list them.
METRICS = {
    "pope": ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio"),
    "mmbench_en_dev_static": ("gpt_eval_score",),
    "vqa_rad": ("vqa_rad_score", "vqa_rad_open_recall", "vqa_rad_closed_accuracy"),
    "llava_med_conversation": ("llava_med_overall",),
}
Tasks = dict[str, list[Row]]
Study = Callable[..., Path]


def gqa(right: str, answers: str) -> list[Row]:
    """Lines of GQA; `right` has a 1 for every right answer, `answers` a letter for every answer."""
    return [sample(i, answer, float(mark)) for i, (mark, answer) in enumerate(zip(right, answers, strict=True))]


#: 20 questions, 12 right. With FastV 0 and 1 become wrong, 12 right, and 13 another wrong answer.
GQA_BASE = gqa("1" * 12 + "0" * 8, "a" * 20)
GQA_FASTV = gqa("00" + "1" * 11 + "0" * 7, "bb" + "a" * 10 + "bb" + "a" * 6)
TRUTH = "yes yes yes no no no"
BASELINE: Tasks = {
    "gqa": GQA_BASE,
    "pope": pope("yes yes no no no no", TRUTH),
    "mmbench_en_dev_static": mmbench("A B A B"),
}
FASTV: Tasks = {
    "gqa": GQA_FASTV,
    "pope": pope("Yes no yes. yes no no", TRUTH),
    "mmbench_en_dev_static": mmbench("A B A nothing"),
}
VQA_RAD = {"baseline": vqa_rad("yes yes yes", [0.5, 1.0]), "visionzip": vqa_rad("yes no yes", [1.0, 1.0])}


def described(tasks: Tasks, model: str, args: str, perturbation: Row | None) -> Row:
    """A results JSON of tasks of several kinds."""
    plain = {task: rows for task, rows in tasks.items() if task not in METRICS}
    document: dict[str, Any] = results_json(plain, model, args)
    for task in tasks.keys() - plain.keys():
        names = METRICS[task]
        document["configs"][task] = {"metric_list": [{"metric": one} for one in names], "process_results": "<function>"}
        document["results"][task] = {"alias": task}
        document["higher_is_better"][task] = dict.fromkeys(names, True)
    for task in plain:
        if "perturbed" in task and perturbation is not None:
            base = task.split("_image_")[0].split("_text_")[0]
            document["configs"][task]["metadata"] = [{"base_task": base, "perturbation": perturbation}]
    return document


def make(
    root: Path,
    name: str,
    runs: dict[str, Tasks],
    *,
    base: str = "llava_1_5_7b",
    args: str = BASE_ARGS,
    table: int | str | None = 1,
    perturbation: Row | None = None,
    family: str = "llava",
) -> Path:
    """Write runs and their report below `root/name`; returns that folder."""
    folder = root / name
    paths = {run: run_folder(folder, base, run) for run in runs}
    for run, tasks in runs.items():
        model = f"{family}_{run}"
        home = paths[run] / "model"
        home.mkdir(parents=True)
        for task, rows in tasks.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (home / f"{STAMP}_samples_{task}.jsonl").write_text(lines, encoding="utf-8")
        document = described(tasks, model, args, perturbation)
        (home / f"{STAMP}_results.json").write_text(json.dumps(document), encoding="utf-8")
    accelerated = [path for run, path in paths.items() if run != "baseline"]
    with ReportFolder(folder / "report" / base) as report:
        comparison = compare_runs(paths["baseline"], accelerated, accept=["task"], on_pairs=report.add_pairs)
        report.finish(comparison)
    published = {} if table is None else {"published": {"table": table, "figure": None}}
    (folder / "study.json").write_text(json.dumps({"name": name, "study": published}), encoding="utf-8")
    return folder


@pytest.fixture
def make_study(tmp_path: Path) -> Study:
    """make_study(name, {run: tasks}, base=, args=, table=, perturbation=) -> the study's folder, with its report."""
    return partial(make, tmp_path)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FastV and a run that is none of the paper's, on three benchmarks of table 1. Not to be changed."""
    runs = {"baseline": BASELINE, "fastv": FASTV, "fastv_r75": {"gqa": GQA_FASTV}}
    return make(tmp_path_factory.mktemp("study"), "table1-runs", runs)


@pytest.fixture
def paper() -> Callable[..., Result]:
    """The command in this process; a traceback instead of an error message fails the test."""
    from lmms_eval_stability.cli import main

    def run(*args: object) -> Result:
        result = CliRunner().invoke(main, ["paper", *map(str, args)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
