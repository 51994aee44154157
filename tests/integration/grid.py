"""Tiny random models of one family under every method, on every task: the commands, and what must come out of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_base import base_config
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import (
    Pruner,
    PrunerCard,
    PrunerDesign,
    save_pruner,
)
from tests.integration.running import (
    ADAPTERS,
    DOCUMENTS,
    TWINS,
    Compared,
    Output,
    base_of,
    compared,
    metric_of,
    run_lmms_eval,
)
from tests.tiny_models import build_tiny

LIMIT = 8
#: Clean tasks, and those of them that are shipped with perturbed pictures and with perturbed questions.
TASKS = (
    *("vqav2_val", "ok_vqa_val2014", "textvqa_val", "vizwiz_vqa_val", "gqa", "ai2d", "scienceqa_img", "pope"),
    *("mmmu_val", "mmbench_en_dev_static", "vqa_rad", "shapes_vqa"),
    *TWINS,
)


@dataclass(frozen=True)
class Method:
    """A run: the method's name, its arguments ({pruner}: a pruner of the model), and whether visual tokens go."""

    name: str
    arguments: str = ""
    drops: bool = True


BASELINE, AGAIN = Method("baseline", drops=False), Method("baseline", drops=False)
#: All methods that need no quantised checkpoint; images of the tiny models have 16 visual tokens and more.
METHODS = {
    "keep_all": Method("fastv", ",k=2,r=0", drops=False),
    "fastv": Method("fastv", ",k=2,r=0.7"),
    "pyramiddrop": Method("pyramiddrop"),
    "sparsevlm": Method("sparsevlm"),
    "visionzip": Method("visionzip"),
    "hired": Method("hired", ",budget=0.3"),
    "lofi": Method("lofi", ",rank=4"),
    "random": Method("random", ",tokens=200"),
    "random_inside": Method("random_inside"),
    "lvpruning": Method("lvpruning", ",pruner={pruner},any_base=True"),
    "downsample": Method("downsample"),
    "int8": Method("int8", drops=False),
    "nf4": Method("nf4", drops=False),
}
NEED_A_CHECKPOINT = {"gptq", "awq"}


def methods_of(kind: str) -> list[str]:
    """LLaVA scales every image to one size and refuses to have it made smaller."""
    return [name for name in METHODS if name != "downsample" or "qwen" in kind]


def build_speaking(kind: str, folder: Path) -> Path:
    """A tiny model that writes letters and digits only: MMBench's spreadsheet refuses control characters."""
    build_tiny(kind, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    spoken = {token for token, text in texts.items() if text.isascii() and text.strip().isalnum()}
    file = folder / "generation_config.json"
    config = json.loads(file.read_text())
    config["suppress_tokens"] = [token for token in texts if token not in spoken or token in tokenizer.all_special_ids]
    file.write_text(json.dumps(config))
    return folder


def write_pruner(checkpoint: Path, folder: Path) -> Path:
    """Modules that nobody trained for LVPruning."""
    design = PrunerDesign(layers=(2, 4, 5), keep=(0.6, 0.4, 0.2), hidden=64, width=32, heads=4)
    base = {"name": "tiny", "config": base_config(AutoConfig.from_pretrained(checkpoint)), "sha256": ""}
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_pruner(folder, Pruner(design), PrunerCard(design, base, {}))
    return folder


@dataclass(frozen=True)
class Grid:
    """All runs of one kind of model, and their comparison with its baseline and with that run again."""

    kind: str
    outputs: dict[str, Output]
    comparison: Compared

    def records(self, method: str) -> dict[str, dict[str, Any]]:
        return self.comparison.records(methods_of(self.kind).index(method))


def run_grids(kinds: tuple[str, ...], hub: Path, folder: Path) -> dict[str, Grid]:
    """Run everything of these kinds in one process and compare it, kind by kind."""
    commands = {}
    for kind in kinds:
        checkpoint = build_speaking(kind, folder / "models" / kind)
        pruner = write_pruner(checkpoint, folder / "pruners" / kind)
        family = "llava" if kind.startswith("llava") else kind
        named = {"baseline": BASELINE, "again": AGAIN, **{name: METHODS[name] for name in methods_of(kind)}}
        for name, method in named.items():
            model_args = f"pretrained={checkpoint}{method.arguments.format(pruner=pruner)}"
            commands[f"{kind}/{name}"] = [
                *("--model", f"{family}_{method.name}", "--model_args", model_args),
                *("--tasks", ",".join(TASKS), "--limit", str(LIMIT), "--batch_size", "8", "--device", "cpu"),
                *("--gen_kwargs", "max_new_tokens=2"),
            ]
    outputs = run_lmms_eval(commands, hub, folder / "runs")
    grids = {}
    for kind in kinds:
        own = {name.partition("/")[2]: output for name, output in outputs.items() if name.startswith(f"{kind}/")}
        runs = [own[name].folder for name in ("baseline", *methods_of(kind))]
        comparison = compared(folder / "reports" / kind, *runs, "--rerun", own["again"].folder)
        grids[kind] = Grid(kind, own, comparison)
    return grids


class GridTests:
    """Tests of a `grid` fixture; the files that inherit them run on different workers."""

    def test_every_run_is_compared_on_every_task(self, grid: Grid) -> None:
        for method in methods_of(grid.kind):
            rows = grid.records(method)
            assert set(rows) == {*TASKS, "average"}, method
            for task in TASKS:
                row, documents = rows[task], min(LIMIT, DOCUMENTS[base_of(task)])
                assert (row["adapter"], row["metric"]) == (ADAPTERS[base_of(task)], metric_of(task))
                assert row["n"] == row["fingerprints_equal"] == row["rerun_n"] == documents, (method, task)
                assert row["rerun_dr"] == 0, (method, task)
        for run in grid.comparison.summary["runs"]:
            assert (run["warnings"], run["accepted"], run["confounders"]) == ([], [], []), run["label"]

    def test_scores_are_lmms_evals(self, grid: Grid) -> None:
        for method in methods_of(grid.kind):
            for task in TASKS:
                row = grid.records(method)[task]
                for side, name in (("baseline", "baseline"), ("run", method)):
                    ours, native = row[f"score_{side}"], grid.outputs[name].native(task)
                    slack = row[f"unparsable_{side}"] / row["n"] + 1e-5 if task == "mmmu_val" else 1e-12
                    assert ours - 1e-5 <= native <= ours + slack, (method, task)

    def test_what_keeps_everything_changes_nothing(self, grid: Grid) -> None:
        rows = grid.records("keep_all")
        assert all(rows[task]["dr"] == 0 for task in TASKS)
        assert all(rows[task]["score_baseline"] == rows[task]["score_run"] for task in TASKS)

    def test_what_accelerates_tells(self, grid: Grid) -> None:
        """The answers change, and where tokens go the log says so of every document."""
        for method in methods_of(grid.kind):
            if method == "keep_all":
                continue
            changed = [task for task in TASKS if grid.records(method)[task]["dr"] > 0]
            assert len(changed) > len(TASKS) / 2, (method, changed)
            for task in TASKS:
                before = visual_tokens(grid.outputs["baseline"], task)
                after = visual_tokens(grid.outputs[method], task)
                assert before.keys() == after.keys()
                dropped = [after[document][-1] < before[document][0] for document in before]
                assert all(dropped) if METHODS[method].drops else not any(dropped), (method, task)

    def test_categories(self, grid: Grid) -> None:
        comparison = grid.comparison
        for i, _ in enumerate(methods_of(grid.kind)):
            assert set(comparison.categories(i, "mmmu_val", "subject")) == {"Accounting", "Art", "Math"}
            assert set(comparison.categories(i, "mmbench_en_dev_static", "ability")) == {"attribute", "perception"}
            assert set(comparison.categories(i, "vqa_rad", "kind")) == {"open", "closed"}
            for twin in TWINS:
                documents = min(LIMIT, DOCUMENTS[base_of(twin)])
                assert sum(comparison.categories(i, twin, "perturbation").values()) == documents
                assert comparison.categories(i, twin, "perturbed input")["changed"] > documents / 2

    def test_perturbed_tasks_show_something_else_to_every_method_alike(self, grid: Grid) -> None:
        for twin, task in TWINS.items():
            shown = fingerprints(grid.outputs["baseline"], twin)
            clean = fingerprints(grid.outputs["baseline"], task)
            assert sum(shown[document] != clean[document] for document in shown) > len(shown) / 2
            for method in methods_of(grid.kind):
                assert fingerprints(grid.outputs[method], twin) == shown


def visual_tokens(output: Output, task: str) -> dict[int, list[int]]:
    return {document: line["token_counts"][0]["visual_tokens"] for document, line in output.lines(task).items()}


def fingerprints(output: Output, task: str) -> dict[int, str]:
    return {document: line["token_counts"][0]["input_fingerprint"] for document, line in output.lines(task).items()}


def grids_fixture(*kinds: str) -> Any:
    """A module's `grids` fixture."""

    @pytest.fixture(scope="module")
    def grids(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Grid]:
        return run_grids(kinds, hub, tmp_path_factory.mktemp("grid"))

    return grids
