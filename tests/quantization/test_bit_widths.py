"""Weights of 3 and 8 bits in the compressed-tensors format: what is loaded is what written-out arithmetic says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from torch import Tensor

from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest
from lmms_eval_stability.model_wrappers.quantization.checkpoints import StoredScheme
from lmms_eval_stability.model_wrappers.quantization.errors import LayoutError
from lmms_eval_stability.model_wrappers.quantization.module_names import ModuleNames
from lmms_eval_stability.model_wrappers.quantization.packing import require_dense
from tests.quantization.checkpoints import GROUP, Recipe, packed, packed_with_gaps
from tests.quantization.running import DECODER_LINEARS, decoder_linears, logits, make

MakeCheckpoint = Callable[[Recipe, str], tuple[Path, Path]]


def levels(weight: Tensor, group: int) -> int:
    """Return the largest number of distinct values in any group of inputs of any output."""
    ordered = weight.float().unflatten(-1, (-1, group)).sort(-1).values
    return int(((ordered.diff(dim=-1) != 0).sum(-1) + 1).max())


@pytest.mark.parametrize(
    ("kind", "algorithm", "bits"), [("llava", "gptq", 3), ("qwen2_5_vl", "awq", 3), ("qwen2_vl", "gptq", 8)]
)
def test_what_is_loaded_is_the_grid_times_the_scale(
    kind: str, algorithm: str, bits: int, make_checkpoint: MakeCheckpoint
) -> None:
    folder, twin = make_checkpoint(Recipe(f"compressed_{algorithm}", bits=bits), kind)
    model, dense = make(kind, algorithm, folder), make(kind, "baseline", twin)
    for name in decoder_linears(model.model):
        weight = model.model.get_submodule(name).weight
        assert torch.equal(weight, dense.model.get_submodule(name).weight), name
        assert 1 < levels(weight, GROUP) <= 2**bits, name
    assert torch.equal(logits(model), logits(dense))
    facts = model._facts["quantization"]
    symmetry = "symmetric" if algorithm == "gptq" else "asymmetric"
    assert facts["true_name"] == f"{algorithm.upper()} W{bits}A16, groups of 32, {symmetry}"
    assert facts["parameters"]["num_bits"] == bits
    assert facts["quantized_linears"] == DECODER_LINEARS


def test_three_bits_packed_with_gaps_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("compressed_gptq", bits=3, gaps=True), "llava")
    message = r"_proj\.weight_packed of .* has (7|13) int32 for a row of (64|128) 3-bit weights; .* would have (6|12)"
    with pytest.raises(LayoutError, match=message):
        make("llava", "gptq", folder)


@pytest.mark.parametrize("width", [1, 8, 10, 11, 24, 31, 32, 33, 40, 48, 64, 100, 128])
def test_compressed_tensors_reads_three_bits_without_gaps(width: int) -> None:
    """Also where a row ends inside an int32, and where neither 10 nor 32 divides it."""
    generator = torch.Generator().manual_seed(width)
    q = torch.randint(0, 8, (5, width), generator=generator)
    scale = torch.rand(5, 1, generator=generator) + 0.5
    weights = QuantizationArgs(num_bits=3, type="int", symmetric=True, strategy="channel")
    stored = {"weight_packed": packed(q, 3), "weight_scale": scale, "weight_shape": torch.tensor([5, width])}
    compressor: Any = BaseCompressor.get_value_from_registry("pack-quantized")
    read = compressor.decompress(stored, QuantizationScheme(targets=["Linear"], weights=weights))["weight"]
    assert torch.equal(read, (q - 4) * scale)


@pytest.mark.parametrize(
    ("width", "gaps", "version", "refused"),
    [
        (64, False, None, False),
        (64, True, "0.20.0", True),  # the sizes decide
        (40, False, "0.20.0", False),  # 4 int32 either way: the release decides
        (40, True, "0.17.1", True),
        (40, False, None, True),
        (8, True, None, False),  # one int32, the same either way
    ],
)
def test_where_the_sizes_do_not_tell_the_release_does(
    width: int, gaps: bool, version: str | None, refused: bool, tmp_path: Path
) -> None:
    values = torch.randint(0, 8, (4, width), generator=torch.Generator().manual_seed(0))
    pack = packed_with_gaps if gaps else packed
    tensors = {"a.weight_packed": pack(values, 3), "a.weight_shape": torch.tensor([4, width])}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = StoredScheme(("gptq",), "compressed-tensors", {"version": version} if version else {})
    names = ModuleNames(("a",), "", (), "lm_head")
    request = LoadRequest("llava_gptq", str(tmp_path), stored, names, torch.float16, torch.device("cpu"))
    if refused:
        with pytest.raises(LayoutError, match=r"compressed-tensors.*lmms-eval-stability quantize"):
            require_dense(request, 3)
    else:
        require_dense(request, 3)
    require_dense(request, 4)  # 4 divides 32
