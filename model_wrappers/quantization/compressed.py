"""Checkpoints in the compressed-tensors format (llm-compressor's), W3A16, W4A16 and W8A16, for both algorithms."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest, Plan
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError, SchemeMismatchError
from lmms_eval_stability.model_wrappers.quantization.module_names import (
    compressed_tensors_matches,
    respell_all,
    respelled,
)
from lmms_eval_stability.model_wrappers.quantization.packages import require_extra
from lmms_eval_stability.model_wrappers.quantization.packing import packed_names, require_dense

_EXTRA = "compressed"


def plan_compressed(request: LoadRequest, algorithm: str, backend: str) -> Plan:
    """Return how a compressed-tensors checkpoint is loaded: dequantised to the model's dtype.

    transformers has no kernel for this format and dequantises every layer on the first forward pass, at the
    latest. Asked to do so while loading, it gives the same weights, and reads packed zero points, which it otherwise
    refuses (transformers 5.23 with compressed-tensors 0.19 or 0.20). Answers are those of the quantised weights; memory
    and time are those of the 16-bit model.

    Raises:
        MissingPackageError: compressed-tensors is not installed.
        BackendError: a kernel was asked for; this format has none.
        SchemeMismatchError: parts of the model are quantised differently.
        LayoutError: its 3-bit weights are packed as releases before compressed-tensors 0.18 did.
    """
    assert request.stored is not None
    require_extra(_EXTRA, f"{request.model}: '{request.pretrained}' (compressed-tensors)")
    if backend != "auto":
        raise BackendError(
            f"{request.model}: backend={backend} is a kernel for checkpoints in gptqmodel's format, but"
            f" '{request.pretrained}' is in the compressed-tensors format, which has none; leave backend out"
        )
    weights = _weights(request)
    require_dense(request, weights["num_bits"])
    config, corrections = _respelled(request)
    size = weights.get("group_size")
    groups = f"groups of {size}" if size and size > 0 else "one scale per output"
    kind = "symmetric" if weights.get("symmetric", True) else "asymmetric"
    return Plan(
        config=config,
        true_name=f"{algorithm} W{weights['num_bits']}A16, {groups}, {kind}",
        parameters={key: weights.get(key) for key in ("num_bits", "group_size", "symmetric", "strategy", "actorder")},
        backend="none: dequantised while loading",
        find_quantized=lambda _: quantized_modules(request),
        extras=(_EXTRA,),
        corrections=tuple(corrections),
        finish=lambda model: _cast(model, request.dtype),
    )


def quantized_modules(request: LoadRequest) -> set[str]:
    """Return the modules whose weights are quantised in the checkpoint's files, as this transformers calls them."""
    return {respelled(name, request.names.linears, _is_same) for name in packed_names(request)}


def _is_same(entry: str, name: str) -> bool:
    return entry == name


def _weights(request: LoadRequest) -> dict[str, Any]:
    """Return what the checkpoint says of its quantised weights."""
    assert request.stored is not None
    groups = [group.get("weights") or {} for group in request.stored.config.get("config_groups", {}).values()]
    if not groups or any(weights != groups[0] for weights in groups):
        raise SchemeMismatchError(
            f"'{request.pretrained}' has {len(groups)} different config_groups; only one scheme for all layers is"
            " served, because transformers would dequantise all of them by the first"
        )
    return groups[0]


def _respelled(request: LoadRequest) -> tuple[dict[str, Any], list[str]]:
    """Return the config to load with, whose ``ignore`` names every layer that the files do not hold quantised."""
    assert request.stored is not None
    config = copy.deepcopy(request.stored.config)
    linears = request.names.linears
    config["ignore"], changed = respell_all("ignore", config.get("ignore") or [], linears, compressed_tensors_matches)
    for name, group in config["config_groups"].items():
        key = f"targets of {name}"
        group["targets"], more = respell_all(key, group.get("targets") or [], linears, compressed_tensors_matches)
        changed += more
    # The oldest releases of transformers build quantised layers first and dequantise them after loading.
    stored = quantized_modules(request)
    config["ignore"] = list(dict.fromkeys([*config["ignore"], *(name for name in linears if name not in stored)]))
    config["dequantize"] = True
    return config, changed


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give dequantised weights the model's dtype; the oldest releases of transformers leave them in their scales'."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
