"""Checkpoints of 3 and 8 bits: their files, read by written-out arithmetic, hold what is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lmms_eval_stability.model_wrappers.loading import LoadOptions, load
from lmms_eval_stability.model_wrappers.quantization.awq import AWQ
from lmms_eval_stability.model_wrappers.quantization.gptq import GPTQ
from lmms_eval_stability.model_wrappers.registry import MODELS
from tests.quantize.conftest import GROUP, Quantize
from tests.tiny_models import DEPTH

#: Kind, the prefix of its models, algorithm, bits: grouped heads (Qwen) and AWQ's scaling meet three bits.
CASES = [
    ("llava", "llava", "gptq", 3),
    ("qwen2_5_vl", "qwen2_5_vl", "awq", 3),
    ("llava", "llava", "gptq", 8),
    ("llava", "llava", "awq", 8),
]
Made = tuple[str, str, int, Path, Path]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def made(
    request: pytest.FixtureRequest,
    tiny: Callable[[str], Path],
    quantize: Quantize,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """Return prefix, algorithm, bits, the model and the checkpoint made of it."""
    kind, prefix, method, bits = request.param
    folder = tmp_path_factory.mktemp("made") / method
    result = quantize(tiny(kind), folder, method, "--bits", str(bits))
    assert result.exit_code == 0, result.output
    return prefix, method, bits, tiny(kind), folder


def unpacked(words: Tensor, bits: int, inputs: int) -> Tensor:
    """(outputs, int32 of a row) -> (outputs, inputs), from 0 on: the row is one string of bits, the lowest first."""
    string = (words.to(torch.int64).unsqueeze(-1) >> torch.arange(32) & 1).flatten(-2)
    values = string[:, : inputs * bits].unflatten(-1, (inputs, bits))
    return (values << torch.arange(bits)).sum(-1)


def grids(folder: Path, bits: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name -> (signed grid points, scales, both outputs x inputs) of every quantised layer."""
    stored = load_file(folder / "model.safetensors")
    found = {}
    for name in [name.removesuffix("_packed") for name in stored if name.endswith(".weight_packed")]:
        _, inputs = stored[f"{name}_shape"].tolist()
        grid = unpacked(stored[f"{name}_packed"], bits, inputs) - 2 ** (bits - 1)
        found[name] = (grid, stored[f"{name}_scale"].repeat_interleave(GROUP, 1))
    return found


def test_what_is_loaded_is_the_stored_grid_times_the_scale(made: Made) -> None:
    prefix, method, bits, source, folder = made
    quantizer = {"gptq": GPTQ, "awq": AWQ}[method]()
    loaded = load(MODELS[f"{prefix}_{method}"], LoadOptions(pretrained=str(folder), quantizer=quantizer, device="cpu"))
    assert loaded.quantization is not None
    assert loaded.quantization.true_name == f"{method.upper()} W{bits}A16, groups of {GROUP}, symmetric"
    weights = loaded.model.state_dict()
    layers, before = grids(folder, bits), load_file(source / "model.safetensors")
    assert len(layers) == loaded.quantization.quantized_linears == 7 * DEPTH
    for name, (grid, scale) in layers.items():
        weight = weights["model.language_model.layers." + name.partition("layers.")[2]]  # llm-compressor has old names
        assert torch.equal(weight, grid * scale), name
        if method == "gptq":  # AWQ scales channels first; GPTQ moves a weight to a neighbour for the errors of others
            assert ((weight - before[name]).abs() / scale).median() <= 0.51, name
    used = torch.cat([grid.flatten() for grid, _ in layers.values()]).unique()
    assert used.min() == -(2 ** (bits - 1))
    assert used.max() == 2 ** (bits - 1) - 1


def test_rows_have_no_gaps_and_the_config_states_the_bits(made: Made) -> None:
    _, _, bits, _, folder = made
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if name.endswith(".weight_packed")]:
        _, inputs = stored[name.replace("_packed", "_shape")].tolist()
        assert stored[name].shape[1] * 32 == inputs * bits, name
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (group["weights"]["num_bits"], group["format"]) == (bits, "pack-quantized")
    assert json.loads((folder / "quantization_recipe.json").read_text())["bits"] == bits
    assert f"{bits}-bit weights in symmetric groups of {GROUP}" in (folder / "README.md").read_text()


def test_other_bit_widths_are_refused(tiny: Callable[[str], Path], quantize: Quantize, tmp_path: Path) -> None:
    result = quantize(tiny("llava"), tmp_path / "out", "gptq", "--bits", "5")
    assert result.exit_code == 2
    assert "'5' is not one of '3', '4', '8'" in result.output
