"""Which models there are: one dict of name -> base architectures x method. Imports nothing heavy.

To add a method, write its file in ``token_reduction/`` or ``quantization/`` and add one line to ``METHODS``; every
family gets a model, and a quantisation scheme becomes a value of ``quantization=`` too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FamilyEntry:
    """A model-name prefix.

    Attributes:
        model_types: ``config.model_type`` of the checkpoints that the prefix serves.
        lmms_eval_name: lmms-eval's own model, whose task arguments ours get (prompts must not depend on the name).
        example: a checkpoint to name in help texts.
        spellings: other prefixes that users may guess.
    """

    model_types: tuple[str, ...]
    lmms_eval_name: str
    example: str
    spellings: tuple[str, ...]


@dataclass(frozen=True)
class MethodEntry:
    """A model-name suffix.

    Attributes:
        path: ``module:class`` of the method below this package; empty for the model as it is.
        summary: one line for listings.
        kind: what is accelerated: "none", "token reduction" or "quantization".
        parameters: arguments with their defaults, as the method's dataclass has them (a test compares the two; reading
            them from the class would import torch).
    """

    path: str
    summary: str
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelEntry:
    """One model as ``lmms-eval --model NAME`` knows it."""

    name: str
    family: str
    method: str
    aliases: tuple[str, ...]

    @property
    def class_path(self) -> str:
        """Dotted path of the class that lmms-eval imports."""
        return f"lmms_eval_stability.model_wrappers.models.{self.class_name}"

    @property
    def class_name(self) -> str:
        return "".join(part.capitalize() for part in self.name.split("_"))


FAMILIES: dict[str, FamilyEntry] = {
    "llava": FamilyEntry(("llava", "llava_next"), "llava_hf", "llava-hf/llava-1.5-7b-hf", ("llava_hf", "llava_next")),
    "qwen2_vl": FamilyEntry(("qwen2_vl",), "qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", ("qwen2vl", "qwen_2_vl")),
    "qwen2_5_vl": FamilyEntry(
        ("qwen2_5_vl",),
        "qwen2_5_vl",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        ("qwen2_5vl", "qwen2.5_vl", "qwen2.5vl", "qwen25_vl", "qwen25vl", "qwen_2_5_vl"),
    ),
}

METHODS: dict[str, MethodEntry] = {
    "baseline": MethodEntry("", "the model as it is, through the same code path", "none"),
    "fastv": MethodEntry(
        "token_reduction.fastv:FastV",
        "drops the share r of visual tokens before decoder layer k, ranked by attention",
        "token reduction",
        {"k": 3, "r": 0.5},
    ),
    "pyramiddrop": MethodEntry(
        "token_reduction.pyramiddrop:PyramidDrop",
        "drops visual tokens in stages, ranked by the queries and keys of the layer that follows",
        "token reduction",
        {"layers": "auto", "ratios": "0.5-0.25-0.125", "renumber": True},
    ),
    "sparsevlm": MethodEntry(
        "token_reduction.sparsevlm:SparseVLM",
        "keeps the visual tokens that the question looks at, and merges the best of the others",
        "token reduction",
        {"layers": "auto", "tokens": "300-200-110", "literal": False, "rank_rule": False, "scale": 13.5},
    ),
    "lvpruning": MethodEntry(
        "token_reduction.lvpruning:LVPruning",
        "drops visual tokens in stages, by trained modules that read the question",
        "token reduction",
        {"pruner": "demo", "keep": "auto", "decide": "topk", "cutoff": 0.5, "any_base": False},
    ),
    "random": MethodEntry(
        "token_reduction.random:Random",
        "keeps random visual tokens: the control that every ranking has to beat",
        "token reduction",
        {"tokens": 192, "literal": False, "seed": 0},
    ),
    "random_inside": MethodEntry(
        "token_reduction.random_inside:RandomInside",
        "drops random or evenly spaced visual tokens in stages: the control that rankings there have to beat",
        "token reduction",
        {"layers": "auto", "keep": "0.5-0.25-0.125", "seed": 0, "spread": False},
    ),
    "visionzip": MethodEntry(
        "token_reduction.visionzip:VisionZip",
        "keeps the patches that the CLS token attends to, merges the others into a few tokens",
        "token reduction",
        {"dominant": 162, "contextual": 30, "literal": False},
    ),
    "hired": MethodEntry(
        "token_reduction.hired:HiRED",
        "keeps a fixed share of visual tokens, shared out among tiles, ranked by the CLS token's attention",
        "token reduction",
        {"budget": 0.2, "alpha": 0.5, "official_quirks": False},
    ),
    "lofi": MethodEntry(
        "token_reduction.lofi:LoFi",
        "keeps visual tokens of high leverage on the strongest singular directions (LoFi-style)",
        "token reduction",
        {"tokens": 192, "rank": 64, "feature": "projected", "literal": False},
    ),
    "downsample": MethodEntry(
        "token_reduction.downsample:Downsample",
        "makes images smaller, so that the unchanged model has fewer visual tokens: a control, Qwen only",
        "token reduction",
        {"tokens": 192, "literal": False},
    ),
    "int8": MethodEntry(
        "quantization.int8:Int8",
        "LLM.int8(): 8-bit weights and activations, outlier columns in 16 bit; quantised while loading",
        "quantization",
        {"threshold": 6.0},
    ),
    "nf4": MethodEntry(
        "quantization.nf4:NF4",
        "NormalFloat4 weights, 16-bit activations; quantised while loading",
        "quantization",
        {"double_quant": False},
    ),
    "gptq": MethodEntry(
        "quantization.gptq:GPTQ",
        "3-, 4- or 8-bit weights by GPTQ, 16-bit activations; loads a checkpoint quantised by it",
        "quantization",
        {"backend": "auto"},
    ),
    "awq": MethodEntry(
        "quantization.awq:AWQ",
        "3-, 4- or 8-bit weights by AWQ, 16-bit activations; loads a checkpoint quantised by it",
        "quantization",
        {"backend": "auto"},
    ),
}

#: Values of ``quantization=`` on any other model.
SCHEMES: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.kind == "quantization")


def _entry(family: str, method: str) -> ModelEntry:
    name = f"{family}_{method}"
    prefixes = (family, *FAMILIES[family].spellings)
    spelled = [f"{prefix}_{method}" for prefix in prefixes]
    hyphened = [alias.replace("_", "-") for alias in spelled]
    reversed_order = [f"{method}_{prefix}" for prefix in prefixes]
    aliases = dict.fromkeys([*spelled, *hyphened, *reversed_order])
    aliases.pop(name)
    return ModelEntry(name, family, method, tuple(aliases))


MODELS: dict[str, ModelEntry] = {
    entry.name: entry for entry in (_entry(family, method) for family in FAMILIES for method in METHODS)
}


def task_model_name(model_name: str | None) -> str | None:
    """Return the model name by which lmms-eval's tasks should choose their arguments.

    Tasks may name prompts and generation arguments per model; ours get those of lmms-eval's model of the same
    architecture, so that a baseline and its accelerated twin, and lmms-eval's own model, read the same prompt.
    """
    for entry in MODELS.values():
        if model_name == entry.name or model_name in entry.aliases:
            return FAMILIES[entry.family].lmms_eval_name
    return model_name
