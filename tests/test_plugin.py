"""Installing the package is enough for lmms-eval to find its models and tasks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lmms_eval_stability import plugin


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.strip()


def test_registration_is_light() -> None:
    """Registering must not make `lmms-eval models` import the tasks, torch or this package's models."""
    code = (
        "import sys, lmms_eval.models as m;"
        "assert 'llava_fastv' in m.MODEL_REGISTRY_V2._manifests;"
        "heavy = ('torch', 'lmms_eval.tasks', 'lmms_eval_stability.model_wrappers.wrapper');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert python(code) == "[]"


@pytest.mark.parametrize("first", ["lmms_eval.models", "lmms_eval.tasks"])
def test_tasks_are_visible_whichever_module_is_imported_first(first: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: users_own_task\ndataset_path: parquet\n")
    code = (
        f"import {first}, lmms_eval.models; from lmms_eval.tasks import TaskManager;"
        f"m = TaskManager(include_path={str(tmp_path)!r}, model_name='llava_fastv');"
        "print(m.model_name, 'shapes_vqa' in m.all_tasks, 'users_own_task' in m.all_tasks, 'gqa' in m.all_tasks)"
    )
    assert python(code).splitlines()[-1] == "llava_hf True True True"


TASK = """
task: asks_by_model
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function lmms_eval_stability.tasks.shapes_vqa.utils.doc_to_visual
doc_to_text: !function lmms_eval_stability.tasks.shapes_vqa.utils.doc_to_text
doc_to_target: answer
metric_list: [{{metric: exact_match}}]
generation_kwargs: {{max_new_tokens: 8}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: " (for any model)"}}
  llava_hf: {{pre_prompt: "", post_prompt: " (for llava_hf)"}}
model_specific_generation_kwargs:
  llava_hf: {{max_new_tokens: 3}}
"""


def test_prompts_and_generation_arguments_do_not_depend_on_our_model_names(tmp_path: Path) -> None:
    data = plugin.task_dir() / "shapes_vqa" / "shapes_vqa.parquet"
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    code = (
        "import lmms_eval.models; from lmms_eval.tasks import TaskManager\n"
        "for name in ('llava_hf', 'llava_baseline', 'llava-fastv', 'some_other_model'):\n"
        f"    manager = TaskManager(include_path={str(tmp_path)!r}, include_defaults=False, model_name=name)\n"
        "    task = manager.load_task_or_group(['asks_by_model'])['asks_by_model']\n"
        "    text = task.doc_to_text(task.test_docs()[0])\n"
        "    print('RESULT', text.rpartition('(')[2], task.config.generation_kwargs['max_new_tokens'])"
    )
    printed = [line.removeprefix("RESULT ") for line in python(code).splitlines() if line.startswith("RESULT")]
    assert printed == ["for llava_hf) 3"] * 3 + ["for any model) 8"]


def fake_tasks_module() -> tuple[ModuleType, list[Any]]:
    calls: list[Any] = []

    class TaskManager:
        model_name = "llava_fastv"

        def initialize_tasks(self, include_path: Any = None, include_defaults: bool = True) -> str:
            calls.append((include_path, include_defaults))
            return "index"

    return SimpleNamespace(TaskManager=TaskManager), calls  # type: ignore[return-value]


def test_wrapping_happens_once_and_users_folders_come_first() -> None:
    module, calls = fake_tasks_module()
    plugin.wrap_task_manager(module)
    plugin.wrap_task_manager(module)
    manager = module.TaskManager()
    assert manager.initialize_tasks() == "index"
    manager.initialize_tasks("mine")
    manager.initialize_tasks(["a", "b"])
    manager.initialize_tasks("mine", include_defaults=False)
    ours = str(plugin.task_dir())
    assert calls == [([ours], True), (["mine", ours], True), (["a", "b", ours], True), ("mine", False)]
    assert manager.model_name == "llava_hf"


def test_the_entry_point_never_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("tasks cannot be wrapped")

    monkeypatch.setattr(plugin, "_wrap_tasks_when_imported", fail)
    assert plugin.manifests() == []
    assert "could not register" in caplog.text


def test_task_dir_holds_the_tasks() -> None:
    assert (plugin.task_dir() / "shapes_vqa" / "shapes_vqa.yaml").is_file()
