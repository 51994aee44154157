"""What a checkpoint says about its own quantisation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from lmms_eval_stability.model_wrappers.quantization.errors import LayoutError, SchemeMismatchError

#: Class names of the original LLaVA code: parts and weights are named otherwise there, also where the type is "llava".
_ORIGINAL_LLAVA = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaMptForCausalLM", "LlavaQwenForCausalLM")
#: Files in which auto-gptq and autoawq wrote what transformers reads from config.json.
_OWN_FILES = ("quantize_config.json", "quant_config.json")
_GPTQ_FORMATS = ("gptq", "gptq_v2")
_AWQ_FORMATS = ("gemm", "gemv", "gemv_fast", "llm-awq")
#: Bit widths of compressed-tensors weights that are served: those that are tested.
SERVED_BITS = (3, 4, 8)
_PACKED_FORMAT = "pack-quantized"
#: What `lmms-eval-stability quantize` writes beside its checkpoints.
_OWN_RECIPE = "quantization_recipe.json"
#: llm-compressor's name of each algorithm, as its recipe.yaml has it.
_MODIFIERS = {"gptq": "GPTQModifier", "awq": "AWQModifier"}


@dataclass(frozen=True)
class StoredScheme:
    """How a checkpoint is quantised, by its own account.

    Attributes:
        schemes: the schemes that it can be: one, or both of ``gptq`` and ``awq`` where a compressed-tensors checkpoint
            does not say by which algorithm it was made.
        format: ``bitsandbytes``, ``gptqmodel`` or ``compressed-tensors``.
        config: its ``quantization_config``.
        source: where ``schemes`` comes from.
    """

    schemes: tuple[str, ...]
    format: str
    config: dict[str, Any]
    source: str = "config.json"


def stored_scheme(config: Any, pretrained: str, revision: str = "main") -> StoredScheme | None:
    """Return how a checkpoint is quantised, or None if it is not.

    Args:
        config: the checkpoint's configuration.
        pretrained: folder or hub name.
        revision: of a hub checkpoint.

    Raises:
        LayoutError: it is quantised in a layout that transformers cannot read.
        SchemeMismatchError: it is quantised by a scheme that this package does not serve.
    """
    stated = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not stated:
        return None
    raw = dict(stated if isinstance(stated, dict) else stated.to_dict())
    refuse_original_layout(config, pretrained)
    method = str(getattr(raw.get("quant_method"), "value", raw.get("quant_method")))
    if raw.get("load_in_8bit"):
        return StoredScheme(("int8",), "bitsandbytes", raw)
    if raw.get("load_in_4bit"):
        return _four_bit(raw, pretrained)
    if method == "gptq":
        return _gptq(raw, pretrained)
    if method == "awq":
        return _awq(raw, pretrained)
    if method == "compressed-tensors":
        return _compressed(raw, pretrained, revision)
    raise SchemeMismatchError(
        f"'{pretrained}' is quantised by '{method}', which no model of this package loads; they load bitsandbytes"
        " (int8, nf4), gptq, awq and compressed-tensors (W3A16, W4A16, W8A16)"
    )


def refuse_original_layout(config: Any, pretrained: str) -> None:
    """Raise for a checkpoint of the original LLaVA code, as auto-gptq and autoawq quantised them.

    Raises:
        LayoutError: with the remedy.
    """
    found = [name for name in getattr(config, "architectures", None) or () if name in _ORIGINAL_LLAVA]
    if found:
        raise LayoutError(
            f"'{pretrained}' is in the layout of the original LLaVA code ({found[0]}), which transformers cannot read;"
            " quantise a llava-hf checkpoint with: lmms-eval-stability quantize"
        )


def refuse_own_files(pretrained: str, revision: str = "main") -> None:
    """Raise for a checkpoint whose quantisation stands only in a file of auto-gptq or autoawq.

    Raises:
        LayoutError: with the remedy.
    """
    for name in _OWN_FILES:
        if checkpoint_file(pretrained, name, revision) is not None:
            raise LayoutError(
                f"'{pretrained}' says how it is quantised in {name}, as auto-gptq and autoawq wrote it, and not in"
                " config.json, where transformers looks: its weights would be taken for 16-bit ones. Copy the entries"
                " of that file to quantization_config in config.json, with quant_method gptq or awq, if the weights are"
                " in the llava-hf or Qwen layout; else quantise again with: lmms-eval-stability quantize"
            )


def _four_bit(raw: dict[str, Any], pretrained: str) -> StoredScheme:
    kind = raw.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4":
        raise SchemeMismatchError(
            f"'{pretrained}' is quantised by bitsandbytes to 4 bits of type {kind}; nf4 is what this package serves"
        )
    return StoredScheme(("nf4",), "bitsandbytes", raw)


def _gptq(raw: dict[str, Any], pretrained: str) -> StoredScheme:
    layout = str(raw.get("checkpoint_format") or raw.get("format") or "gptq").lower()
    if raw.get("is_marlin_format"):
        layout = "marlin"
    _refuse_layout("GPTQ", layout, _GPTQ_FORMATS, pretrained)
    return StoredScheme(("gptq",), "gptqmodel", raw)


def _awq(raw: dict[str, Any], pretrained: str) -> StoredScheme:
    layout = str(raw.get("version") or raw.get("format") or raw.get("checkpoint_format") or "gemm").lower()
    _refuse_layout("AWQ", layout, _AWQ_FORMATS, pretrained)
    return StoredScheme(("awq",), "gptqmodel", raw)


def _refuse_layout(algorithm: str, layout: str, readable: tuple[str, ...], pretrained: str) -> None:
    if layout not in readable:
        raise LayoutError(
            f"'{pretrained}' holds {algorithm} weights in the layout '{layout}', which transformers cannot read; it"
            f" reads {', '.join(readable)}. Quantise again with: lmms-eval-stability quantize"
        )


def _compressed(raw: dict[str, Any], pretrained: str, revision: str) -> StoredScheme:
    for group in (raw.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        bits, kind = weights.get("num_bits", 16), weights.get("type", "int")
        if bits not in SERVED_BITS or kind != "int" or group.get("input_activations"):
            activations = (group.get("input_activations") or {}).get("num_bits", 16)
            served = ", ".join(f"W{number}A16" for number in SERVED_BITS)
            raise SchemeMismatchError(
                f"'{pretrained}' is a compressed-tensors checkpoint with {bits}-bit {kind} weights and"
                f" {activations}-bit activations; only {served} with integer weights are served"
            )
        layout = group.get("format") or raw.get("format") or _PACKED_FORMAT
        if layout != _PACKED_FORMAT:
            raise LayoutError(
                f"'{pretrained}' is a compressed-tensors checkpoint in the format '{layout}'; only {_PACKED_FORMAT} is"
                " served. Quantise again with: lmms-eval-stability quantize"
            )
    own = checkpoint_file(pretrained, _OWN_RECIPE, revision)
    if own is not None:
        method = str(json.loads(own.read_text(encoding="utf-8")).get("method"))
        return StoredScheme((method,), "compressed-tensors", raw, _OWN_RECIPE)
    recipe = checkpoint_file(pretrained, "recipe.yaml", revision)
    if recipe is None:
        return StoredScheme(tuple(_MODIFIERS), "compressed-tensors", raw, "the model name; there is no recipe.yaml")
    text = recipe.read_text(encoding="utf-8", errors="replace")
    schemes = tuple(name for name, modifier in _MODIFIERS.items() if modifier in text)
    if not schemes:
        raise SchemeMismatchError(
            f"the recipe.yaml of '{pretrained}' names neither {' nor '.join(_MODIFIERS.values())}: it was quantised by"
            " another algorithm than GPTQ and AWQ"
        )
    return StoredScheme(schemes, "compressed-tensors", raw, "recipe.yaml")


def checkpoint_file(pretrained: str, name: str, revision: str = "main") -> Path | None:
    """Return the local path of a checkpoint's file, or None if it has no such file."""
    found = cached_file(
        pretrained,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
