"""lmms-eval runs on the stand-ins, and the command that compares them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from click.testing import CliRunner, Result

from lmms_eval_stability.cli import main

ROOT = Path(__file__).parents[2]
#: Seconds for all runs of a file, which take one or two minutes of a free core.
TIMEOUT = 1500
#: Documents of every clean task, as many as its stand-in has rows. Twins have those of the task that they perturb.
DOCUMENTS = {
    **dict.fromkeys(("vqav2_val", "ok_vqa_val2014", "textvqa_val", "vizwiz_vqa_val", "gqa", "scienceqa_img"), 6),
    **dict.fromkeys(("ai2d", "ai2d_lite", "ai2d_no_mask", "mmmu_val", "vqa_rad"), 6),
    **{"mmbench_en_dev": 8, "mmbench_en_dev_static": 8, "vqa_rad_test": 3, "pope": 9000, "shapes_vqa": 2000},
}
TWINS = {f"{task}_{what}_perturbed": task for task in ("gqa", "vqav2_val", "shapes_vqa") for what in ("image", "text")}
ADAPTERS = {
    **dict.fromkeys(("gqa", "shapes_vqa", "ai2d", "ai2d_lite", "ai2d_no_mask"), "exact match"),
    **dict.fromkeys(("vqav2_val", "ok_vqa_val2014", "textvqa_val", "vizwiz_vqa_val"), "soft VQA score"),
    "scienceqa_img": "ScienceQA",
    "pope": "POPE",
    "mmmu_val": "MMMU",
    "mmbench_en_dev": "MMBench",
    "mmbench_en_dev_static": "MMBench, static",
    **dict.fromkeys(("vqa_rad", "vqa_rad_test"), "VQA-RAD"),
}
METRICS = {
    "pope": "pope_accuracy",
    "mmmu_val": "mmmu_acc",
    **dict.fromkeys(("mmbench_en_dev", "mmbench_en_dev_static"), "gpt_eval_score"),
    **dict.fromkeys(("vqa_rad", "vqa_rad_test"), "vqa_rad_score"),
}
#: Tasks whose samples score 0 or 1 and whose score is their mean.
ZERO_OR_ONE = frozenset({"gqa", "shapes_vqa", "ai2d", "ai2d_lite", "ai2d_no_mask", "scienceqa_img", "pope", "mmmu_val"})


def base_of(task: str) -> str:
    return TWINS.get(task, task)


def metric_of(task: str) -> str:
    return METRICS.get(base_of(task), "exact_match")


@dataclass(frozen=True)
class Output:
    """What one lmms-eval run wrote, and what its process printed."""

    folder: Path
    printed: str = ""

    def lines(self, task: str) -> dict[int, dict[str, Any]]:
        (log,) = self.folder.rglob(f"*_samples_{task}.jsonl")
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        by_document = {line["doc_id"]: line for line in lines}
        assert len(by_document) == len(lines)
        return by_document

    @cached_property
    def results(self) -> dict[str, Any]:
        files = (file for file in self.folder.rglob("*_results.json") if file.parent.name != "submissions")
        return json.loads(next(files).read_text(encoding="utf-8"))["results"]

    def native(self, task: str) -> float:
        """lmms-eval's own score; that of MMBench, in percent there, as a fraction."""
        of_task = self.results[task]
        score = next(value for name, value in of_task.items() if name.partition(",")[0] == metric_of(task))
        return float(score) / (100 if task.startswith("mmbench") else 1)


def run_lmms_eval(commands: Mapping[str, Iterable[str]], hub: Path, folder: Path) -> dict[str, Output]:
    """Give each list of arguments to lmms-eval, all in one process; {name: output in `folder / name`}."""
    logging = ["--log_samples", "--output_path"]
    arguments = [[*typed, *logging, str(folder / name)] for name, typed in commands.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.json").write_text(json.dumps(arguments), encoding="utf-8")
    python = [sys.executable, "-m", "tests.integration.driver", str(folder / "commands.json")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "OPENAI_"))}
    environment |= {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # lmms-eval takes the revision of the repository around its installation for its own; a commit meanwhile would tell
    environment |= {"PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(ROOT), "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        python,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        errors="replace",
    )
    printed = done.stdout + done.stderr
    for name in commands:
        assert list((folder / name).rglob("*_samples_*.jsonl")), f"{name}:\n{printed[-6000:]}"
    return {name: Output(folder / name, printed) for name in commands}


@dataclass(frozen=True)
class Compared:
    """What `compare -o DIR` wrote, run by run in the order in which they were named."""

    summary: dict[str, Any]
    pairs: pd.DataFrame

    def records(self, run: int) -> dict[str, dict[str, Any]]:
        label = self.summary["runs"][run]["label"]
        return {row["task"]: row for row in self.summary["comparisons"] if row["run"] == label}

    def pairs_of(self, run: int, task: str) -> pd.DataFrame:
        label = self.summary["runs"][run]["label"]
        return self.pairs[(self.pairs["run"] == label) & (self.pairs["task"] == task)].set_index("doc_id")

    def categories(self, run: int, task: str, dimension: str) -> dict[str, int]:
        """Samples by category."""
        found = self.summary["runs"][run]["categories"]
        return {row["category"]: row["n"] for row in found if (row["task"], row["dimension"]) == (task, dimension)}


def compare(*arguments: object) -> Result:
    """`lmms-eval-stability compare` in this process; a traceback instead of an error message fails the test."""
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], catch_exceptions=False)


def compared(report: Path, *arguments: object) -> Compared:
    result = compare(*arguments, "-o", report)
    assert result.exit_code == 0, result.output
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    return Compared(summary, pd.read_csv(report / "pairs.csv", keep_default_na=False))
