"""Hand-made quantised checkpoints of the tiny models: round-to-nearest weights in each published layout.

Each comes with its twin: the same model in float16 with the weights that the quantised ones stand for. Packing is
written out here, from the layouts as published, so that the tests do not take the libraries' word for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

GROUP = 32
#: autoawq interleaves the eight values of an int32.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Quantized:
    """A weight in a few bits.

    Attributes:
        q: (inputs, outputs), 0..2**bits - 1.
        zero: (groups, outputs), 0..2**bits - 1.
        scale: (groups, outputs), float16.
    """

    q: Tensor
    zero: Tensor
    scale: Tensor
    bits: int = 4

    @property
    def dense(self) -> Tensor:
        """(outputs, inputs), float16: the weight that the bits stand for."""
        zero, scale = (part.repeat_interleave(GROUP, 0) for part in (self.zero, self.scale))
        return ((self.q - zero) * scale).to(torch.float16).T.contiguous()


@dataclass
class Recipe:
    """A quantised checkpoint to make.

    Attributes:
        layout: ``gptq``, ``awq``, ``compressed_gptq`` or ``compressed_awq``.
        config: entries of ``quantization_config`` that replace (or, with None, remove) the right ones.
        quantize_vision: quantise vision tower and projector too.
        only: which decoder layers to quantise, by name; all by default.
        named_recipe: write llm-compressor's recipe.yaml.
        bits: per weight.
        gaps: pack them with gaps (compressed-tensors alone).
    """

    layout: str
    config: dict[str, Any] = field(default_factory=dict)
    quantize_vision: bool = False
    only: Callable[[str], bool] = lambda name: True
    named_recipe: bool = True
    bits: int = 4
    gaps: bool = False


def round_to_nearest(weight: Tensor, symmetric: bool, bits: int = 4) -> Quantized:
    """Return a (outputs, inputs) weight in a few bits, in groups of ``GROUP`` inputs."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    grouped = weight.float().T.reshape(-1, GROUP, weight.shape[0])  # groups, inputs of a group, outputs
    if symmetric:
        scale = (grouped.abs().amax(1) / (middle - 1)).clamp(min=1e-4).to(torch.float16)
        zero = torch.full_like(scale, middle)
    else:
        low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
        scale = ((high - low) / top).clamp(min=1e-4).to(torch.float16)
        zero = (-low / scale.float()).round().clamp(0, top).to(torch.float16)
    q = (grouped / scale.float().unsqueeze(1) + zero.float().unsqueeze(1)).round().clamp(0, top)
    return Quantized(q.flatten(0, 1), zero.float(), scale, bits)


def packed(values: Tensor, bits: int = 4) -> Tensor:
    """Return the values of the last dimension as one row of bits, the lowest first, cut into int32."""
    row = (values.to(torch.int64).unsqueeze(-1) >> torch.arange(bits) & 1).flatten(-2)
    return as_int32(functional.pad(row, (0, -row.shape[-1] % 32)).unflatten(-1, (-1, 32)))


def packed_with_gaps(values: Tensor, bits: int) -> Tensor:
    """Return as many whole values in each int32 as it holds, as compressed-tensors did before 0.18."""
    count = 32 // bits
    whole = functional.pad(values, (0, -values.shape[-1] % count)).unflatten(-1, (-1, count)).to(torch.int64)
    words = (whole.unsqueeze(-1) >> torch.arange(bits) & 1).flatten(-2)
    return as_int32(functional.pad(words, (0, 32 - count * bits)))


def as_int32(words: Tensor) -> Tensor:
    """(..., 32) bits, the lowest first -> (...) int32."""
    whole = (words << torch.arange(32)).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32).contiguous()


def gptq_tensors(weight: Quantized) -> dict[str, Tensor]:
    """The layout of auto-gptq and gptqmodel ("gptq", v1): packed along the inputs, zero points less one."""
    inputs = weight.q.shape[0]
    return {
        "qweight": packed(weight.q.T, weight.bits).T.contiguous(),
        "qzeros": packed(weight.zero - 1, weight.bits),
        "scales": weight.scale.contiguous(),
        "g_idx": (torch.arange(inputs) // GROUP).to(torch.int32),
    }


def awq_tensors(weight: Quantized) -> dict[str, Tensor]:
    """The layout of autoawq ("gemm"): packed along the outputs, interleaved."""
    return {
        "qweight": packed(interleaved(weight.q)),
        "qzeros": packed(interleaved(weight.zero)),
        "scales": weight.scale.contiguous(),
    }


def interleaved(values: Tensor) -> Tensor:
    return values.unflatten(-1, (-1, 8))[..., list(_AWQ_ORDER)].flatten(-2)


def compressed_tensors(weight: Quantized, symmetric: bool, gaps: bool = False) -> dict[str, Tensor]:
    """The layout of compressed-tensors ("pack-quantized"): values from 0 on, packed along the inputs."""
    pack = packed_with_gaps if gaps else packed
    tensors = {
        "weight_packed": pack(weight.q.T, weight.bits),
        "weight_scale": weight.scale.T.contiguous(),
        "weight_shape": torch.tensor([weight.q.shape[1], weight.q.shape[0]]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = packed(weight.zero, weight.bits).T.contiguous()  # packed along the outputs
    return tensors


def gptq_config(bits: int) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "block_name_to_quantize": "model.language_model.layers",
    }


def awq_config(bits: int, skip: tuple[str, ...]) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": bits,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(skip),
    }


def compressed_config(bits: int, symmetric: bool, ignore: list[str]) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
    group = {"weights": weights, "input_activations": None, "output_activations": None, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }


def parts_outside_decoder(kind: str) -> tuple[str, ...]:
    return ("model.vision_tower", "model.multi_modal_projector") if kind.startswith("llava") else ("model.visual",)


def half_precision(source: Path, folder: Path) -> Path:
    """Copy a tiny model with its weights, and the dtype of its configuration, in float16."""
    shutil.copytree(source, folder)
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, lambda config: _state_dtype(config))
    return folder


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    edit(config)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def build(recipe: Recipe, kind: str, source: Path, folder: Path) -> tuple[Path, Path]:
    """Write a quantised checkpoint of a tiny model and its dense twin; return both folders.

    Args:
        recipe: what to make.
        kind: of the tiny model.
        source: folder of the tiny model.
        folder: where the two folders are made.
    """
    twin = half_precision(source, folder / "twin")
    quantized = Path(shutil.copytree(twin, folder / "quantized"))
    weights = load_file(quantized / "model.safetensors")
    symmetric = recipe.layout in ("gptq", "compressed_gptq")
    dense = dict(weights)
    for name in [name for name in weights if _is_quantized(name, weights[name], recipe)]:
        rounded = round_to_nearest(weights.pop(name), symmetric, recipe.bits)
        stem = name.removesuffix(".weight")
        weights |= {f"{stem}.{key}": tensor for key, tensor in _tensors(recipe, rounded, symmetric).items()}
        dense[name] = rounded.dense
    save_file(weights, quantized / "model.safetensors", metadata={"format": "pt"})
    save_file(dense, twin / "model.safetensors", metadata={"format": "pt"})
    _write_config(recipe, kind, quantized)
    return quantized, twin


def _is_quantized(name: str, tensor: Tensor, recipe: Recipe) -> bool:
    if not name.endswith(".weight") or tensor.dim() != 2 or any(part in name for part in ("embed", "lm_head")):
        return False
    outside = any(part in name for part in ("vision", "visual", "multi_modal_projector"))
    return (recipe.quantize_vision or not outside) and recipe.only(name)


def _tensors(recipe: Recipe, weight: Quantized, symmetric: bool) -> dict[str, Tensor]:
    if recipe.layout == "gptq":
        return gptq_tensors(weight)
    if recipe.layout == "awq":
        return awq_tensors(weight)
    return compressed_tensors(weight, symmetric, recipe.gaps)


def _write_config(recipe: Recipe, kind: str, folder: Path) -> None:
    outside = () if recipe.quantize_vision else parts_outside_decoder(kind)
    if recipe.layout == "gptq":
        stated = gptq_config(recipe.bits)
    elif recipe.layout == "awq":
        stated = awq_config(recipe.bits, outside)
    else:
        ignore = [f"re:{part}.*" for part in outside] + ["lm_head"]
        stated = compressed_config(recipe.bits, recipe.layout == "compressed_gptq", ignore)
        if recipe.named_recipe:
            modifier = "GPTQModifier" if recipe.layout == "compressed_gptq" else "AWQModifier"
            (folder / "recipe.yaml").write_text(f"default_stage:\n  default_modifiers:\n    {modifier}: {{}}\n")
    stated = {key: value for key, value in {**stated, **recipe.config}.items() if value is not None}
    edit_config(folder, lambda config: config.update(quantization_config=stated))


def _state_dtype(config: dict[str, Any]) -> None:
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = "float16"
