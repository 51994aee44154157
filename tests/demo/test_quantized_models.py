"""The quantised demo models: made of the shipped model, as their cards say, and nearly as good as it."""

from __future__ import annotations

import hashlib
import json

import click
import pytest

from lmms_eval_stability.commands import demo as command
from lmms_eval_stability.demo import MODEL_DIR, SHORT_NAMES, model_path
from lmms_eval_stability.study import demo_config, load_study
from tests.integration.running import Output, run_lmms_eval

QUANTIZED = [name for name in SHORT_NAMES if name != "demo"]


def scheme_of(name: str) -> str:
    return name.split("-")[1]


def bits_of(name: str) -> int:
    return 3 if name.endswith("-3bit") else 4


@pytest.mark.parametrize("name", QUANTIZED)
def test_each_was_made_of_the_shipped_model_on_other_documents(name: str) -> None:
    facts = json.loads((model_path(name) / "quantization_recipe.json").read_text())
    made_of = {
        file: hashlib.sha256((MODEL_DIR / file).read_bytes()).hexdigest() for file in facts["base_model"]["sha256"]
    }
    assert facts["base_model"]["sha256"] == made_of
    assert "model.safetensors" in made_of
    assert (facts["model"], facts["bits"]) == (f"llava_{scheme_of(name)}", bits_of(name))
    assert min(facts["calibration"]["ids"]) >= 500  # the demo study answers the first 500
    card = (model_path(name) / "README.md").read_text()
    assert f"`{facts['base_model']['name']}`" in card
    assert "--output " + name in facts["command"]
    assert model_path(name).joinpath("model.safetensors").stat().st_size < 2.5e6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    """One run of lmms-eval for each, all in one process, which starts once."""
    folder = tmp_path_factory.mktemp("quantized")
    common = ["--tasks", "shapes_vqa", "--limit", "60", "--batch_size", "20"]
    commands = {
        name: ["--model", f"llava_{scheme_of(name)}", "--model_args", f"pretrained={name}", *common]
        for name in QUANTIZED
    }
    return run_lmms_eval(commands, folder / "hub", folder / "runs")


@pytest.mark.parametrize("name", QUANTIZED)
def test_each_answers_as_well_as_the_model(name: str, runs: dict[str, Output]) -> None:
    assert runs[name].results["shapes_vqa"]["exact_match,none"] >= 0.9
    record = next(iter(runs[name].lines("shapes_vqa").values()))
    assert f"{scheme_of(name).upper()} W{bits_of(name)}A16, groups of 32, symmetric" in json.dumps(record)
    assert "compressed-tensors" in json.dumps(record)


def test_runs_of_the_demo_whose_packages_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(demo_config())
    assert command._runnable(study) == study
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "compressed_tensors" else object())
    with click.Context(command.demo):
        rest = command._runnable(study)
    assert [label for label in study.methods if label not in rest.methods] == ["gptq", "awq"]
    said = capsys.readouterr().err
    assert "not run: gptq, awq" in said
    assert "pip install 'lmms-eval-stability[compressed]'" in said
