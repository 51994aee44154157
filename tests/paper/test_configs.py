"""The studies of configs/paper: they load, name what exists, and are the grids of the published tables."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from lmms_eval_stability.model_wrappers.arguments import make_methods
from lmms_eval_stability.model_wrappers.registry import MODELS
from lmms_eval_stability.paper import SIZES, read_table
from lmms_eval_stability.paper.names import METHODS, TASKS, base_model
from lmms_eval_stability.study import Plan, load_study, plan_study

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "paper"
NAMES = ("table1", "table2", "table3_4", "table5", "table6", "table10", "figure3")
#: The tables that each study makes the runs of.
ABOUT = {"table1": (1,), "table2": (2,), "table3_4": (3, 4, 11, 12), "table5": (5,), "table6": (6,), "table10": (10,)}
#: VQA-RAD's hub copy lacks four repeated questions.
ASKED = {**SIZES, "VQA-RAD": 2244}
TEN = ("VQAv2", "AI2D", "GQA", "ScienceQA", "TextVQA", "OKVQA", "VizWiz", "MMBench", "MMMU", "POPE")


def plan_of(name: str) -> Plan:
    return plan_study(load_study(CONFIGS / f"{name}.yaml"))


def text_of(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")


def test_these_are_all() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == set(NAMES)


def grid(plan: Plan) -> set[tuple[str, str, str]]:
    """(base model, method, task) of every accelerated cell, as the paper calls the first two."""
    return {
        (base_model(cell.base, dict(cell.call.model_args)["pretrained"]), METHODS[cell.method], cell.task)
        for cell in plan.cells
        if cell.method != "baseline"
    }


@pytest.mark.parametrize("name", ABOUT)
def test_the_grid_is_that_of_the_published_tables(name: str) -> None:
    """Every cell of the tables is run, but for the clean ones of tables 3, 4, 11 and 12; and nothing else is."""
    plan = plan_of(name)
    wanted = set()
    for number in ABOUT[name]:
        table = read_table(number)
        rows = table[(table["benchmark"] != "Average") & (table["method"] != "baseline")]
        if name == "table3_4":
            rows = rows[rows["perturbation"] != "none"]
        for row in rows.to_dict("records"):
            task = TASKS[row["benchmark"], row["perturbation"]][0]
            wanted.add((row["base_model"], row["method"], task))
    assert grid(plan) == wanted
    for base in dict.fromkeys(cell.base for cell in plan.cells):
        own = [cell.run for cell in plan.cells if cell.base == base and cell.method == "baseline"]
        assert list(dict.fromkeys(own)) == ["baseline", "baseline_again_1"]
    assert plan.study.published is not None
    assert plan.study.published.table == ABOUT[name][0]


def test_figure_3_has_all_methods_on_the_same_samples() -> None:
    plan = plan_of("figure3")
    tasks = {TASKS[benchmark, "none"][0] for benchmark in TEN if benchmark != "VQAv2"}
    assert grid(plan) == {(base, method, task) for base in ("LLaVA-1.5", "LLaVA-Next") for method in METHODS.values()
                          for task in tasks}  # fmt: skip
    same = {(cell.base, cell.run, cell.task): cell.key for name in ("table1", "table2") for cell in plan_of(name).cells}
    for cell in plan.cells:  # so the runs of those studies can be used instead
        assert cell.key == same[cell.base, cell.run, cell.task]


@pytest.mark.parametrize("name", NAMES)
def test_sample_counts_are_the_papers(name: str) -> None:
    of_task = {tasks[i]: ASKED[benchmark] for (benchmark, _), tasks in TASKS.items() if benchmark in ASKED
               for i in range(len(tasks))}  # fmt: skip
    of_task["llava_med_conversation"] = 193
    for cell in plan_of(name).cells:
        assert cell.samples == of_task[cell.task], cell.name


def test_totals_and_where_the_papers_own_does_not_add_up() -> None:
    (per_run,) = {
        sum(cell.samples or 0 for cell in plan.of_run(*run))
        for name in ("table1", "table2", "table10")
        for plan in [plan_of(name)]
        for run in plan.runs
    }
    printed = {row["benchmark"]: int(row["value"]) for row in read_table(7).to_dict("records")}
    total = printed.pop("TOTAL")
    assert per_run == sum(ASKED[benchmark] for benchmark in TEN) == 260_631
    assert per_run == sum(printed[benchmark] for benchmark in TEN) - (4377 - 4329)  # MMBench
    assert (total, sum(printed.values())) == (253_972, 262_927)
    assert sum(printed.values()) - printed["POPE"] == 253_927  # without POPE: two digits from the printed total


@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_its_arguments(name: str) -> None:
    """The method's own class makes them, as in a run, without weights."""
    from lmms_eval.utils import simple_parse_args_string

    study = load_study(CONFIGS / f"{name}.yaml")
    shared = {"pretrained", "dtype"}
    for call in {cell.call for cell in plan_study(study).cells}:
        entry = MODELS[call.model]
        given = simple_parse_args_string(call.model_args_text)
        own = {key: value for key, value in given.items() if key not in shared}
        reduction, scheme = make_methods(entry, None, own, sorted(shared))
        assert (reduction or scheme) if entry.method != "baseline" else (reduction is scheme is None)


def test_the_settings_of_appendix_b() -> None:
    arguments = {cell.method: dict(cell.call.model_args) for cell in plan_of("table1").cells}
    own = {
        name: {k: v for k, v in args.items() if k not in ("pretrained", "dtype")} for name, args in arguments.items()
    }
    assert own == {
        "baseline": {},
        "pyramiddrop": {"layers": "8-16-24", "ratios": "0.5-0.25-0.125", "renumber": "True"},
        "sparsevlm": {"layers": "2-6-15", "tokens": "300-200-110"},
        "visionzip": {"dominant": "162", "contextual": "30"},
        "fastv": {"k": "3", "r": "0.5"},
        "hired": {"budget": "0.2", "alpha": "0.5", "official_quirks": "True"},
    }
    for name in ("table3_4", "table5", "table6", "figure3"):
        for cell in plan_of(name).cells:
            if cell.method in own:
                found = {k: v for k, v in cell.call.model_args if k not in ("pretrained", "dtype")}
                assert found == own[cell.method]


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_known_or_made(name: str) -> None:
    """Hub names stand in the documentation; every other checkpoint has the command that makes it."""
    known = (ROOT / "docs" / "quantization.md").read_text("utf-8") + (ROOT / "docs" / "reproducing.md").read_text(
        "utf-8"
    )
    checkpoints = {dict(cell.call.model_args)["pretrained"] for cell in plan_of(name).cells}
    for checkpoint in checkpoints:
        if not checkpoint.startswith("checkpoints/"):
            assert f"`{checkpoint}`" in known, checkpoint
        elif "llava-med" in checkpoint:
            assert checkpoint in text_of("table5")
        else:
            made = re.search(
                rf"quantize --model (\S+) --method (\w+) .* -o {re.escape(checkpoint)}\n", text_of("table2")
            )
            assert made, checkpoint
            base = dict(plan_of("table2").of_run(cell_base(checkpoint), "baseline")[0].call.model_args)["pretrained"]
            assert (made[1], checkpoint.rpartition("-")[2]) == (base, made[2])


def cell_base(checkpoint: str) -> str:
    return "llava_next_7b" if "v1.6" in checkpoint else "llava_1_5_7b"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("estimate_gpu_hours", ROOT / "scripts" / "estimate_gpu_hours.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_the_scripts(script: ModuleType, name: str) -> None:
    """Beside each YAML, and in the documentation."""
    plan = plan_of(name)
    expected = script.rounded(script.hours(plan, script.Assumptions()))
    assert f"# Estimate: {expected} hours of one A100 80 GB (a model, not a measurement" in text_of(name)
    page = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    assert f"| `{name}.yaml` | {len(plan.runs)} | {plan.samples:,} | {expected} |" in page


def test_the_model_of_time(script: ModuleType) -> None:
    """Measured rates replace it; without overheads it is the ratio of FLOPs that is known for FastV."""
    plan, assumed = plan_of("table6"), script.Assumptions()
    only_start = len(plan.runs) * assumed.startup / 3600
    measured = {"llava_med_7b": 2244.0, "llava_med_7b/int8": 1122.0}
    assert script.hours(plan, assumed, measured) == pytest.approx(only_start + (4 * 1 + 2) / 3600)
    bare = script.Assumptions(host=0, answer=0)
    cells = {cell.run: cell for cell in plan_of("table1").of_run("llava_1_5_7b", "baseline")[:1]}
    fastv = plan_of("table1").of_run("llava_1_5_7b", "fastv")[0]
    base = script.ARCHITECTURES["llava_1_5_7b"]
    tower = base.tower.flops(base.patches * base.tower.layers, base.patches**2 * base.tower.layers)
    seconds = [script.seconds_per_sample(cell, base, bare) for cell in (cells["baseline"], fastv)]
    tower_seconds = 2 * tower / (bare.tflops * 1e12 * bare.reached_tflops)
    assert (seconds[1] - tower_seconds) / (seconds[0] - tower_seconds) == pytest.approx(0.584, abs=5e-4)


def test_base_models_without_an_architecture_are_named(script: ModuleType, tmp_path: Path) -> None:
    text = text_of("table6").replace("llava_med_7b", "mine")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    plan = plan_study(load_study(tmp_path / "mine.yaml"))
    with pytest.raises(ValueError, match="'mine': no architecture in this script; give --measured mine=SAMPLES_PER_S"):
        script.hours(plan, script.Assumptions())
    assert script.hours(plan, script.Assumptions(), {"mine": 1.0}) > 5 * 2244 / 3600
