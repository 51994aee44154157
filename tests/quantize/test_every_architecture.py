"""Both algorithms on all four architectures: what is written loads, and computes nearly what the model computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from lmms_eval_stability.model_wrappers.loading import LoadedModel, LoadOptions, load
from lmms_eval_stability.model_wrappers.quantization.awq import AWQ
from lmms_eval_stability.model_wrappers.quantization.gptq import GPTQ
from lmms_eval_stability.model_wrappers.registry import MODELS
from tests.quantize.conftest import GROUP, Quantize
from tests.tiny_models import DEPTH, KINDS

PREFIX = {"llava": "llava", "llava_next": "llava", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}
#: Linear layers of the tiny decoders.
LAYERS = 7 * DEPTH


@pytest.fixture(scope="module", params=[(kind, method) for kind in KINDS for method in ("gptq", "awq")])
def made(
    request: pytest.FixtureRequest,
    tiny: Callable[[str], Path],
    quantize: Quantize,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str, Path, Path]:
    """Return architecture, algorithm, the model and the checkpoint made of it."""
    kind, method = request.param
    folder = tmp_path_factory.mktemp("made")
    source = with_outliers(tiny(kind), folder / "source")
    result = quantize(source, folder / method, method)
    assert result.exit_code == 0, result.output
    assert f"--model {PREFIX[kind]}_{method}" in result.output
    return kind, method, source, folder / method


def with_outliers(source: Path, folder: Path) -> Path:
    """Copy a model, some channels of its activations larger than others, as in real ones and as AWQ expects."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "layers" in name and name.endswith("layernorm.weight"):
            weight *= torch.exp(1.5 * torch.randn(weight.shape, generator=generator))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_transformers_loads_it_without_edits(made: tuple[str, str, Path, Path]) -> None:
    _, _, source, folder = made
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    quantized = {name for name, module in model.named_modules() if hasattr(module, "quantization_scheme")}
    assert len(quantized) == LAYERS
    assert all(name.startswith("model.language_model.layers.") for name in quantized)
    dense, original = model.state_dict(), AutoModelForImageTextToText.from_pretrained(source).state_dict()
    beside = [name for name in original if not name.startswith("model.language_model.") and name in dense]
    assert any("visi" in name or "visual" in name for name in beside)
    assert "lm_head.weight" in beside
    for name in beside:
        assert torch.equal(dense[name], original[name]), name


def test_our_loader_accepts_it_and_calibration_helped(made: tuple[str, str, Path, Path], questions: Path) -> None:
    kind, method, source, folder = made
    prefix = PREFIX[kind]
    options = LoadOptions(pretrained=str(folder), quantizer={"gptq": GPTQ, "awq": AWQ}[method](), device="cpu")
    loaded = load(MODELS[f"{prefix}_{method}"], options)
    assert loaded.quantization is not None
    assert loaded.quantization.quantized_linears == LAYERS
    assert loaded.quantization.parameters["group_size"] == GROUP
    dense = load(MODELS[f"{prefix}_baseline"], LoadOptions(pretrained=str(source), device="cpu"))
    states = [first_layer(dense, questions), first_layer(loaded, questions)]
    round_to_nearest(dense.model.model.language_model.layers[0])
    states.append(first_layer(dense, questions))
    change = [(after - states[0]).norm() / states[0].norm() for after in states[1:]]
    assert 0.001 < change[0] < 0.9 * change[1]


def first_layer(loaded: LoadedModel, questions: Path) -> torch.Tensor:
    """Return what the first decoder layer adds to the first line of the calibration file: later layers of random models
    amplify every difference."""
    question = json.loads(questions.read_text().splitlines()[0])
    image = Image.open(questions.parent / question["image"])
    content = [{"type": "image", "url": image}, {"type": "text", "text": question["question"]}]
    messages = [{"role": "user", "content": content}]
    prompt = loaded.family.build_prompt(loaded.processor, messages, question["question"])
    with torch.no_grad():
        inputs = loaded.family.encode(loaded.processor, [prompt])
        states = loaded.model(**inputs, output_hidden_states=True).hidden_states
    return states[1] - states[0]


def round_to_nearest(layer: nn.Module) -> None:
    """Round a layer's weights to 16 levels in groups, without any calibration: what both algorithms must beat."""
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            groups = module.weight.data.unflatten(-1, (-1, GROUP))
            scale = groups.abs().amax(-1, keepdim=True) / 7.5
            module.weight.data = ((groups / scale).round().clamp(-8, 7) * scale).flatten(-2)


def test_weights_are_packed_four_bits(made: tuple[str, str, Path, Path]) -> None:
    _, _, source, folder = made
    packed = {k: t for k, t in load_file(folder / "model.safetensors").items() if k.endswith("weight_packed")}
    assert len(packed) == LAYERS
    before = load_file(source / "model.safetensors")
    for name, tensor in packed.items():
        dense = before[name.removesuffix("_packed")]
        assert tensor.dtype == torch.int32
        assert tensor.numel() * 8 == dense.numel()
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert all(entry.startswith("re:") for entry in config["ignore"])
