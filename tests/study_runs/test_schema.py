"""A study's YAML: every mistake is refused before anything runs, with its line."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from lmms_eval_stability.cli import main
from lmms_eval_stability.model_wrappers.registry import METHODS
from lmms_eval_stability.plugin import registered_models, registered_tasks
from lmms_eval_stability.study import catalog, demo_config, json_schema, load_study, plan_study

VALID = """\
name: valid
tasks:
  - shapes_vqa
  - {task: gqa, samples: 12578, shard: 5000}
bases:
  seven: {family: llava, model_args: {pretrained: llava-hf/llava-1.5-7b-hf}}
  qwen: {family: qwen2_5_vl, model_args: {pretrained: Qwen/Qwen2.5-VL-7B-Instruct, min_pixels: 3136}}
reruns: 1
methods:
  fastv: {method: fastv, model_args: {k: 3, r: 0.5}}
  small: {method: downsample, bases: [qwen], tasks: [gqa]}
  awq: {method: awq, pretrained: {seven: a/b, qwen: c/d}}
compare: {accept: [empty]}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tasks:", "taks:"), "F:2: a study does not know 'taks'; its keys are name, description, tasks"),
        (("name: valid", ""), "F:1: a study lacks 'name'"),
        (("samples:", "sampels:"), "F:4: 'tasks.1' does not know 'sampels'; its keys are task, samples, shard"),
        (("reruns: 1", "reruns: true"), "F:8: 'reruns': input should be a valid integer"),
        (("reruns: 1", "reruns: 1\nengine: {resources: {gpu: 1}}"), "F:9: 'engine.resources' does not know 'gpu'"),
        (("  fastv:", "  ../elsewhere:"), "F:10: '../elsewhere' cannot name a run"),
        (("  fastv:", "  baseline:"), "F:10: a run cannot be called 'baseline'"),
        (("  fastv:", "  report:"), "F:10: a run cannot be called 'report'"),
        (("  awq:", "  fastv:"), "F:12: the key 'fastv' stands on line 10 already"),
        (("- shapes_vqa", "- shapes_vqaa"), "F:3: unknown task 'shapes_vqaa'; did you mean shapes_vqa"),
        (
            ("- shapes_vqa", "- gqa_perturbed"),
            "F:3: 'gqa_perturbed' is a group of tasks; list its tasks: gqa, gqa_image",
        ),
        (("- shapes_vqa", "- gqa"), "F:4: task 'gqa' is listed twice"),
        (("samples: 12578, ", ""), "F:4: task 'gqa' is to be split: say how many `samples` it has"),
        (("family: llava", "family: lava"), "F:6: unknown family 'lava'; did you mean llava"),
        (("{pretrained: llava-hf/llava-1.5-7b-hf}", "{}"), "F:6: base 'seven' needs a checkpoint"),
        (("min_pixels", "min_pixel"), "F:7: unknown argument 'min_pixel'"),
        (("min_pixels: 3136", "min_pixels: few"), "F:7: argument 'min_pixels' of 'baseline' must be int, not 'few'"),
        (("method: fastv", "method: fastvv"), "F:10: unknown method 'fastvv'; did you mean fastv"),
        (("k: 3", "keep: 3"), "F:10: unknown argument 'keep'; method 'fastv' takes k, r; every model takes"),
        (("k: 3", "k: 3.5"), "F:10: argument 'k' of 'fastv' must be int, not 3.5"),
        (("k: 3", "use_cache: 1"), "F:10: argument 'use_cache' of 'fastv' must be bool, not 1"),
        (("k: 3", "k: [3, a]"), "F:10: 'methods.fastv.model_args.k': must be text without commas"),
        (("k: 3", "pretrained: x"), "F:10: name checkpoints by base"),
        (("k: 3", "quantization: int7"), "F:10: unknown scheme 'int7'; did you mean int8"),
        (("k: 3", "quantization: awq"), "F:10: 'awq' loads a checkpoint that was quantised by it"),
        (("bases: [qwen], ", ""), "F:11: 'downsample' cannot run on base 'seven' (llava): LLaVA's processors"),
        (("bases: [qwen]", "bases: [eight]"), "F:11: 'eight' is not among the study's bases: seven, qwen"),
        (("tasks: [gqa]", "tasks: [pope]"), "F:11: 'pope' is not among the study's tasks: shapes_vqa, gqa"),
        (("seven: a/b, ", ""), "F:12: 'awq' loads a checkpoint that was quantised by it; name it: pretrained: {seven:"),
        (("seven: a/b", "eight: a/b, seven: a/b"), "F:12: 'eight' is not among the bases of this run"),
        (("[empty]", "[emtpy]"), "F:13: --accept does not know emtpy"),
        (("{accept", "{prediction: rough, accept"), "F:13: unknown prediction 'rough'"),
        (("{accept", "{images: dataset, accept"), "F:13: 'images' are for the page"),
        (("compare:", "engine: {address: here}\ncompare:"), "F:13: 'address' is for kind: ray"),
        (("compare:", "engine: {processes: 2, resources: {gpus: 1}}\ncompare:"), "F:13: 2 processes need a GPU each"),
        (("compare:", "lmms_eval: {extra: [--limit, '5']}\ncompare:"), "F:13: '--limit' is given by the study itself"),
        (("compare:", "lmms_eval: {include_path: nowhere}\ncompare:"), "is no folder"),
        (("[empty]", "[empty], ood: ['gqa:shapes_vqa']"), "F:13: 'ood' is part of reliability: set reliability: true"),
        (("[empty]", "[empty], reliability: true, ood: [gqa]"), "F:13: --ood gqa: write ID_TASK:OOD_TASK"),
        (
            ("[empty]", "[empty], reliability: true, ood: ['gqa:shapes_vqa_ood']"),
            "F:13: 'shapes_vqa_ood' is not among the study's tasks: shapes_vqa, gqa",
        ),
        (
            ("compare:", "perturbations: [text_87]\ncompare:"),
            "F:3: there is no perturbed task 'shapes_vqa_text_perturbed_8",
        ),
        (("compare:", "limit: 0\ncompare:"), "F:13: 'limit': input should be greater than or equal to 1"),
        ((VALID, "- a list"), "F:1: a study must be a mapping; its keys are name"),
        ((VALID, "name: [\n"), "F:2: cannot be read as YAML"),
        ((VALID, ""), "F:1: a study must be a mapping"),
    ],
)
def test_mistakes_are_refused_with_their_line(
    change: tuple[str, str], message: str, refused: Callable[[str], str]
) -> None:
    assert change[0] in VALID
    if "text_87" in change[1]:  # shapes_vqa has that twin
        assert "shapes_vqa_text_perturbed_87" in {task.name for task in registered_tasks()}
        change = (change[0], change[1].replace("text_87", "none, image"))
        said = refused(VALID.replace(*change).replace("- shapes_vqa", "- pope"))
        assert "F:3: there is no perturbed task 'pope_image_perturbed'; write its YAML" in said
        return
    assert message in refused(VALID.replace(*change))


def test_all_mistakes_are_named_at_once(refused: Callable[[str], str]) -> None:
    said = refused(VALID.replace("shapes_vqa", "shapes").replace("k: 3", "x: 3").replace("[empty]", "[nope]"))
    assert [line.partition(": ")[0] for line in said.splitlines()] == ["F:3", "F:10", "F:13"]


def test_what_is_written_is_what_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(VALID)
    study = load_study(path)
    assert [(task.task, task.samples) for task in study.tasks] == [("shapes_vqa", None), ("gqa", 12578)]
    runs = [f"{base}/{run}" for base, run in plan_study(study).runs]
    both = ["baseline", "baseline_again_1", "fastv", "awq"]
    assert runs == [f"seven/{run}" for run in both] + [f"qwen/{run}" for run in [*both[:3], "small", "awq"]]


def test_a_perturbed_twin_is_a_task_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(VALID.replace("shapes_vqa", "vqav2_val").replace("reruns: 1", "perturbations: [none, image]"))
    text = path.read_text().replace("tasks: [gqa]", "tasks: [gqa_image_perturbed]")
    path.write_text(text)
    plan = plan_study(load_study(path))
    assert [cell.task for cell in plan.of_run("seven", "fastv")] == [
        "vqav2_val",
        "vqav2_val_image_perturbed",
        "gqa",
        "gqa_image_perturbed",
    ]
    assert [(cell.task, cell.samples) for cell in plan.of_run("qwen", "small")] == [("gqa_image_perturbed", 12578)]


def test_the_demo_study_has_every_method_that_llava_can_run() -> None:
    study = load_study(demo_config())
    models = {model.name: model for model in registered_models()}
    assert {task.task for task in study.tasks} <= {task.name for task in registered_tasks()}
    assert (study.limit, study.reruns, study.offline) == (500, 1, True)
    shares = [run.model_args["r"] for run in study.methods.values() if run.method == "fastv"]
    assert sorted(shares) == [0.5, 0.75]
    # downsampling needs a processor that keeps the image's size
    llava = {name for name in models if name.startswith("llava_")} - {"llava_downsample"}
    assert {cell.model for cell in plan_study(study).cells} == llava


def test_the_json_schema_takes_what_the_models_take_and_refuses_typos() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for text in (demo_config().read_text(), VALID):
        validator.validate(yaml.safe_load(text))
    for typo in (VALID.replace("samples", "sampels"), VALID.replace("reruns: 1", "reruns: x")):
        assert not validator.is_valid(yaml.safe_load(typo))


def test_the_catalog_has_the_arguments_that_the_models_have() -> None:
    from lmms_eval_stability.model_wrappers.wrapper import AcceleratedVLM

    named = inspect.signature(AcceleratedVLM.__init__).parameters
    ours = {name for name, one in named.items() if one.kind is not one.VAR_KEYWORD}
    assert set(catalog.model_arguments()) == ours - {"self", "batch_size", "max_batch_size"}
    assert catalog.model_arguments()["pretrained"] == (str,)
    assert catalog.model_arguments()["use_cache"] == (bool,)
    assert catalog.model_arguments()["max_new_tokens"] == (int,)
    for name, method in METHODS.items():
        module, _, found = method.path.partition(":")
        cls = getattr(import_module(f"lmms_eval_stability.model_wrappers.{module}"), found) if found else None
        own = {one.name for one in fields(cls)} if is_dataclass(cls) else set()
        assert set(catalog.method_arguments(name)) == own


def test_the_catalog_has_the_tasks_that_lmms_eval_has() -> None:
    code = (
        "from lmms_eval import evaluator; from lmms_eval.tasks import TaskManager;"
        "index = TaskManager('ERROR').task_index;"
        "print('\\n'.join(name for name, entry in index.items() if entry['type'] in ('task', 'python_task')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    theirs = set(done.stdout.split())
    assert len(theirs) > 1000
    assert theirs == catalog.task_names().tasks


def test_the_command_refuses_with_exit_code_2_and_imports_neither_torch_nor_lmms_eval(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(VALID.replace("k: 3", "q: 3"))
    done = CliRunner().invoke(main, ["study", str(path), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert f"{path}:10: unknown argument 'q'" in done.stderr
    assert not (tmp_path / "out").exists()
    path.write_text(VALID)
    code = (
        "import sys; from click.testing import CliRunner; from lmms_eval_stability.cli import main;"
        f"done = CliRunner().invoke(main, ['study', {str(path)!r}, '--dry-run']); print(done.output);"
        "sys.exit(done.exit_code or bool({'torch', 'lmms_eval', 'transformers', 'ray'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("given", [["study"], ["study", "x.yaml"], ["study", str(demo_config())]])
def test_the_command_says_what_it_lacks(given: list[str]) -> None:
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")


def test_the_command_prints_the_schema() -> None:
    done = CliRunner().invoke(main, ["study", "--schema"])
    assert json.loads(done.stdout) == json_schema()
    shipped = demo_config().with_name("study.schema.json")  # made by this command: write it again after a change
    assert json.loads(shipped.read_text()) == json_schema()


@pytest.mark.parametrize("name", ["reliability", "reliability_vizwiz"])
def test_the_shipped_pairs_can_be_planned(name: str) -> None:
    study = load_study(demo_config().with_name(f"{name}.yaml"))
    assert plan_study(study).runs
    assert study.compare.reliability
    assert study.compare.ood
