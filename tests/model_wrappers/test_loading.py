"""Checkpoints load completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmms_eval_stability.demo import model_path
from lmms_eval_stability.model_wrappers import errors
from lmms_eval_stability.model_wrappers.loading import resolve
from lmms_eval_stability.model_wrappers.models import LlavaBaseline

TinyFolder = Callable[[str], str]


@pytest.fixture
def checkpoint(tiny_folder: TinyFolder, tmp_path: Path) -> Path:
    """A copy of the tiny LLaVA that a test may damage."""
    return Path(shutil.copytree(tiny_folder("llava"), tmp_path / "copy"))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def a_decoder_weight(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in weights if "layers.3.mlp.up_proj" in name)


def test_missing_weights_are_refused_by_name(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.pop(a_decoder_weight(weights)))
    with pytest.raises(errors.CheckpointError, match=r"1 missing \(.*layers\.3\.mlp\.up_proj"):
        LlavaBaseline(pretrained=str(checkpoint), device="cpu")


def test_unexpected_weights_are_refused_by_name(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.update({"model.spare.weight": torch.zeros(2)}))
    with pytest.raises(errors.CheckpointError, match=r"1 unexpected \(.*spare"):
        LlavaBaseline(pretrained=str(checkpoint), device="cpu")


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    def halve(weights: dict[str, torch.Tensor]) -> None:
        name = a_decoder_weight(weights)
        weights[name] = weights[name][:2].clone()

    edit_weights(checkpoint, halve)
    with pytest.raises((errors.CheckpointError, RuntimeError), match="mismatched"):
        LlavaBaseline(pretrained=str(checkpoint), device="cpu")


def test_pickled_weights_are_refused_unless_asked_for(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        LlavaBaseline(pretrained=str(checkpoint), device="cpu")
    model = LlavaBaseline(pretrained=str(checkpoint), device="cpu", use_safetensors=False)
    name, parameter = next(iter(model.model.named_parameters()))
    assert parameter.numel() > 0, name


def test_dtype_is_the_checkpoints_unless_asked_for(tiny_folder: TinyFolder) -> None:
    assert LlavaBaseline(pretrained=tiny_folder("llava"), device="cpu").model.dtype == torch.float32
    assert LlavaBaseline(pretrained=tiny_folder("llava"), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_demo_is_the_model_that_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("demo") == str(model_path())
    assert resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    (tmp_path / "demo").mkdir()
    assert resolve("demo") == "demo"  # a folder of that name is what the user means
