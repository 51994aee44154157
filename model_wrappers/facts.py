"""Facts of a whole run that explain differences between runs: they travel in the sample log."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmms_eval_stability.model_wrappers.geometry import decoder_geometry
from lmms_eval_stability.model_wrappers.loading import resolve

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.loading import LoadOptions
    from lmms_eval_stability.model_wrappers.wrapper import AcceleratedVLM

_PACKAGES = ("lmms-eval-stability", "lmms-eval", "transformers", "torch", "accelerate", "tokenizers", "pillow")


def run_facts(wrapper: AcceleratedVLM, options: LoadOptions) -> dict[str, Any]:
    """Return what the comparison of two runs needs to know about one of them, ready for JSON."""
    model, method, quantized = wrapper.model, wrapper.method or options.quantizer, wrapper.quantization
    template = getattr(wrapper.processor, "chat_template", None) or ""
    return {
        "model": wrapper.entry.name,
        "method": wrapper.entry.method,
        "method_args": dataclasses.asdict(method) if method else {},
        "quantization": quantized.to_dict() if quantized else None,
        "pretrained": options.pretrained,
        "revision": None if Path(resolve(options.pretrained)).is_dir() else options.revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "geometry": decoder_geometry(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "device": _device_name(wrapper.device),
        "device_map": options.device_map,
        "world_size": wrapper.world_size,
        "batch_size": wrapper.rows.asked,
        "reuse": wrapper.reuse,
        "deterministic": wrapper.deterministic,
        "use_cache": wrapper.use_cache,
        "workers": wrapper.workers,
        "max_new_tokens": wrapper.max_new_tokens,
        "processor": {**wrapper.family.processor_defaults, **options.processor},
        "chat_template_sha": hashlib.sha256(str(template).encode()).hexdigest()[:16],
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_versions(), **(quantized.versions if quantized else {})},
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({platform.machine()})"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
