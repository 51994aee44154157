"""The names under which lmms-eval finds the models, and the task arguments that they get."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lmms_eval.models import MODEL_REGISTRY_V2, get_model

from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.registry import METHODS, MODELS, SCHEMES, task_model_name
from lmms_eval_stability.model_wrappers.wrapper import AcceleratedVLM


def test_every_family_has_every_method() -> None:
    assert set(MODELS) == {f"{family}_{method}" for family in ("llava", "qwen2_vl", "qwen2_5_vl") for method in METHODS}
    assert {"baseline", "fastv"} <= set(METHODS)


@pytest.mark.parametrize("name", list(MODELS))
def test_lmms_eval_finds_each_model_by_name_and_by_each_alias(name: str) -> None:
    entry = MODELS[name]
    for spelling in (name, *entry.aliases):
        resolved = MODEL_REGISTRY_V2.resolve(spelling)
        assert (resolved.model_id, resolved.model_type) == (name, "chat")
    cls = get_model(name)
    assert issubclass(cls, AcceleratedVLM)
    assert cls.entry is entry
    assert cls is getattr(models, entry.class_name)


def test_guesses_work() -> None:
    for guess, name in {
        "llava_next_fastv": "llava_fastv",
        "llava-fastv": "llava_fastv",
        "fastv_llava": "llava_fastv",
        "qwen2.5_vl_fastv": "qwen2_5_vl_fastv",
        "qwen25_vl_baseline": "qwen2_5_vl_baseline",
    }.items():
        assert MODEL_REGISTRY_V2.resolve(guess).model_id == name


def test_no_name_or_alias_is_used_twice_or_hides_a_model_of_lmms_eval() -> None:
    spellings = [spelling for entry in MODELS.values() for spelling in (entry.name, *entry.aliases)]
    assert len(spellings) == len(set(spellings))
    assert not {"llava_hf", "qwen2_vl", "qwen2_5_vl", "llava_onevision"} & set(spellings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("llava_fastv", "llava_hf"),
        ("llava-next-baseline", "llava_hf"),
        ("qwen2_vl_fastv", "qwen2_vl"),
        ("qwen2.5_vl_fastv", "qwen2_5_vl"),
        ("qwen3_vl", "qwen3_vl"),
        (None, None),
    ],
)
def test_tasks_choose_arguments_by_the_base_model(given: str | None, expected: str | None) -> None:
    assert task_model_name(given) == expected


def test_registry_imports_no_torch() -> None:
    code = "import sys, lmms_eval_stability.model_wrappers.registry as r; r.MODELS; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_schemes_are_models_of_every_family_and_values_of_quantization() -> None:
    assert SCHEMES == ("int8", "nf4", "gptq", "awq")
    for scheme in SCHEMES:
        assert METHODS[scheme].kind == "quantization"
        assert MODEL_REGISTRY_V2.resolve(f"qwen2.5_vl_{scheme}").model_id == f"qwen2_5_vl_{scheme}"
        assert task_model_name(f"llava_{scheme}") == "llava_hf"  # the base model's prompts
