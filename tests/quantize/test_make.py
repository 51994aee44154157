"""The command around the algorithms: what is recorded, refused, replaced and left behind."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llmcompressor
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from lmms_eval_stability.cli import main
from lmms_eval_stability.model_wrappers.families import Llava
from lmms_eval_stability.model_wrappers.quantization.make import output, run
from lmms_eval_stability.model_wrappers.quantization.make.calibration import CalibrationError, Choice, read_task
from lmms_eval_stability.model_wrappers.quantization.make.recipe import Recipe
from tests.quantize.conftest import GROUP, Quantize

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tiny: Tiny, quantize: Quantize, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    result = quantize(tiny("llava"), folder)
    assert result.exit_code == 0, result.output
    return folder


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / output.RECIPE).read_text())
    return facts


def test_the_recipe_holds_what_is_needed_to_make_it_again(made: Path, tiny: Tiny, questions: Path) -> None:
    facts = facts_of(made)
    weights = (tiny("llava") / "model.safetensors").read_bytes()
    assert facts["base_model"]["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert facts["calibration"]["sha256"] == hashlib.sha256(questions.read_bytes()).hexdigest()
    assert len(facts["calibration"]["ids"]) == 4
    assert facts["calibration"]["available"] == 6
    assert (facts["method"], facts["bits"], facts["group_size"]) == ("gptq", 4, GROUP)
    assert facts["versions"]["llmcompressor"] == llmcompressor.__version__
    assert "GPTQModifier" in yaml.safe_load((made / "recipe.yaml").read_text())["default_stage"]["default_modifiers"]
    card = (made / output.CARD).read_text()
    for text in (facts["command"], "4 of 6 lines", "model.vision_tower", facts["versions"]["torch"]):
        assert text in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["gptq", "compressed-tensors"]


def test_the_recorded_command_makes_the_same_weights(made: Path, tmp_path: Path) -> None:
    words = shlex.split(facts_of(made)["command"])[1:]
    words[words.index("--output") + 1] = str(tmp_path / "again")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    first, again = load_file(made / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    inputs = [facts_of(folder)["calibration"]["inputs_sha256"] for folder in (made, tmp_path / "again")]
    assert inputs[0] == inputs[1]


def test_the_processor_is_the_models_own(tiny: Tiny, quantize: Quantize, tmp_path: Path) -> None:
    # Evaluating Qwen sets bounds of the image size; they must not travel into the checkpoint.
    result = quantize(tiny("qwen2_vl"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    before, after = (
        json.loads((folder / "processor_config.json").read_text()) for folder in (tiny("qwen2_vl"), tmp_path / "out")
    )
    assert before["image_processor"]["size"] == after["image_processor"]["size"]


def test_what_is_not_quantised_can_be_stored_in_another_dtype(tiny: Tiny, quantize: Quantize, tmp_path: Path) -> None:
    result = quantize(tiny("llava"), tmp_path / "out", "gptq", "--store-dtype", "float16")
    assert result.exit_code == 0, result.output
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    assert facts_of(tmp_path / "out")["dtype"] == "float32"


def test_a_group_size_that_does_not_fit_is_refused(tiny: Tiny, quantize: Quantize, tmp_path: Path) -> None:
    result = quantize(tiny("qwen2_5_vl"), tmp_path / "out", "awq", "--group-size", "128")
    assert result.exit_code == 2
    assert "self_attn.q_proj: 64" in result.output
    assert "use --group-size 64 or 32 or 16 or 8" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_model_is_refused(made: Path, quantize: Quantize, tmp_path: Path) -> None:
    result = quantize(made, tmp_path / "out")
    assert result.exit_code == 2
    assert "is quantised already" in result.output


def test_an_existing_checkpoint_is_kept_or_replaced(made: Path, tiny: Tiny, quantize: Quantize) -> None:
    refused = quantize(tiny("llava"), made)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    (made / "old").write_text("old")
    replaced = quantize(tiny("llava"), made, "gptq", "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert not (made / "old").exists()
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_an_interrupted_run_leaves_nothing(
    tiny: Tiny, quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.output, "state_ignored", interrupted)
    result = quantize(tiny("llava"), tmp_path / "out")
    assert result.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_load_is_not_put_in_place(
    tiny: Tiny, quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(folder: Path, facts: dict[str, Any]) -> None:
        weights = load_file(folder / "model.safetensors")
        weights.pop(next(name for name in weights if name.endswith("weight_scale")))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(run.card, "write_card", spoilt)
    result = quantize(tiny("llava"), tmp_path / "out")
    assert result.exit_code == 2
    assert "weight_scale" in result.output
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("out.rejected-")
    assert str(kept) in result.output
    assert (kept / "model.safetensors").is_file()


def test_progress_counts_every_sample_in_every_layer_twice(tiny: Tiny, questions: Path, tmp_path: Path) -> None:
    from lmms_eval_stability.model_wrappers.quantization.make.calibration import read_file

    seen: list[tuple[str, int, int]] = []
    choice = Choice(samples=3)
    job = run.Job(
        str(tiny("llava")), Recipe("gptq", 4, GROUP), read_file(questions, choice), choice, tmp_path / "o", ""
    )
    run.make(job, lambda *step: seen.append(step))
    counted = [(done, total) for _, done, total in seen if total]
    assert counted == [(i, 48) for i in range(1, 49)]
    assert seen[-1][0] == "loading what was written"


def test_documents_of_a_task_are_those_of_its_evaluation(tiny: Tiny) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny("llava"))
    chosen = read_task("shapes_vqa", Choice(samples=5, skip=1990), "llava_hf")
    assert chosen.available == 10
    assert len(chosen.ids) == 5
    assert all(1990 <= number < 2000 for number in chosen.ids)
    task = chosen.documents[0][0]
    for number, prompt in zip(chosen.ids, chosen.prompts(Llava(), processor), strict=True):
        doc = task.dataset["test"][number]
        text = f"{doc['question']}\nAnswer the question using a single word or phrase."
        assert prompt.text == f"USER: <image>\n{text} ASSISTANT:"
        (image,) = prompt.images
        assert isinstance(image, Image.Image)
        assert image.tobytes() == doc["image"].convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shapes_vqq", "similar: shapes_vqa"),
        ("mmmu", "is a group of tasks"),
        ("mme", "task mme cannot be loaded: ConnectionError"),  # not on this machine, and tests have no network
    ],
)
def test_what_is_no_task_is_refused(name: str, problem: str) -> None:
    with pytest.raises(CalibrationError, match=problem):
        read_task(name, Choice(), "llava_hf")


def test_skipping_every_document_is_refused() -> None:
    with pytest.raises(CalibrationError, match="leaves none of its 2000 documents"):
        read_task("shapes_vqa", Choice(skip=2000), "llava_hf")
