"""`models` and `tasks` list what is registered, and say the truth about it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys

from click.testing import CliRunner

from lmms_eval_stability.cli import main
from lmms_eval_stability.model_wrappers.registry import METHODS, MODELS


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_models_lists_every_model_with_its_parameters() -> None:
    output = run("models")
    for name in MODELS:
        assert name in output
    assert "k=3, r=0.5" in output
    listed = {model["name"]: model for model in json.loads(run("models", "--format", "json"))}
    assert set(listed) == set(MODELS)
    assert listed["llava_fastv"]["checkpoints"] == ["llava", "llava_next"]
    assert "llava_next_fastv" in listed["llava_fastv"]["aliases"]


def test_listed_parameters_are_those_of_the_methods() -> None:
    for name, method in METHODS.items():
        if not method.path:
            assert method.parameters == {}, name
            continue
        module, cls = method.path.split(":")
        found = getattr(importlib.import_module(f"lmms_eval_stability.model_wrappers.{module}"), cls)
        assert {field.name: field.default for field in dataclasses.fields(found)} == method.parameters, name


def test_tasks_lists_every_task() -> None:
    assert "shapes_vqa" in run("tasks")
    (task,) = [task for task in json.loads(run("tasks", "--format", "json")) if task["name"] == "shapes_vqa"]
    assert task["metrics"] == ["exact_match"]
    assert task["description"]


def test_listing_imports_neither_torch_nor_lmms_eval() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from lmms_eval_stability.cli import main;"
        "assert all(CliRunner().invoke(main, [c]).exit_code == 0 for c in ('models', 'tasks', '--help'));"
        "print([m for m in ('torch', 'lmms_eval', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
