"""The model card and the recipe file of a quantised checkpoint: everything needed to make it again."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmms_eval_stability.model_wrappers.quantization.make.output import CARD, RECIPE

_PACKAGES = (
    "lmms-eval-stability",
    "llmcompressor",
    "compressed-tensors",
    "transformers",
    "torch",
    "lmms-eval",
    "tokenizers",
    "pillow",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write_recipe(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``facts`` for programs."""
    (folder / RECIPE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``facts`` for people, with the head that model hubs read."""
    (folder / CARD).write_text(_card(facts), encoding="utf-8")


def _card(facts: dict[str, Any]) -> str:
    base, calibration = facts["base_model"], facts["calibration"]
    method, bits, group = facts["method"].upper(), facts["bits"], facts["group_size"]
    what = "document" if calibration["kind"] == "task" else "line"
    where = f"task `{calibration['source']}`" if calibration["kind"] == "task" else f"file `{calibration['source']}`"
    if calibration["kind"] == "task":
        where += f", split `{calibration['split']}`"
        where += f" without its first {calibration['skip']} documents" if calibration["skip"] else ""
    rows = [
        ("base model", f"`{base['name']}`" + (f", revision `{base['revision']}`" if base["revision"] else "")),
        ("algorithm", f"{method}, {bits}-bit weights in symmetric groups of {group}, activations not quantised"),
        ("quantised", f"{facts['quantized_linears']} linear layers of the language model"),
        ("not quantised", ", ".join(f"`{name}`" for name in facts["not_quantized"]) + ", embeddings and norms"),
        ("calibrated on", f"{len(calibration['ids'])} of {calibration['available']} {what}s of {where}; no answers"),
        ("computed in", f"{facts['dtype']} on {facts['device']}; stored in {facts['store_dtype']}"),
        ("weights", f"{facts['bytes'] / 1e6:,.1f} MB; base model {base['bytes'] / 1e6:,.1f} MB"),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    warnings = "".join(f"- {line}\n" for line in facts["warnings"])
    return f"""---
library_name: transformers
base_model: {json.dumps(base["name"])}
base_model_relation: quantized
tags: [{facts["method"]}, compressed-tensors]
---

# {base["name"]}, {method} {bits} bits, groups of {group}

| | |
|---|---|
{table}

To run it:

    lmms-eval --model {facts["model"]} --model_args pretrained=FOLDER --tasks TASK

To make it again:

    {facts["command"]}

[`{RECIPE}`]({RECIPE}) has the same for programs, with the numbers of the {what}s and the SHA-256 of the base model's
files and of the calibration inputs; `recipe.yaml` is what llm-compressor was told.
{f"{chr(10)}llm-compressor warned:{chr(10)}{chr(10)}{warnings}" if warnings else ""}"""
