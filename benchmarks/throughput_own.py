"""What `reuse` gains for methods inside the language model and for int8, against the same model without it.

One image, several questions, batches of one size. The reference is `reuse=vision` (`inside`) or `reuse=none`
(`quantized`). Every case is timed with its bare passes in the same rounds, which give its limit.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from throughput_bench import (
    OURS,
    answer,
    beside_parts,
    by_round,
    differing,
    in_turns,
    load_ours,
    parts_of,
    shown,
    typical,
)
from throughput_models import Documents, build
from throughput_parts import Spent, with_settings

from lmms_eval_stability.cost import Geometry, prefill_cost
from lmms_eval_stability.model_wrappers.arguments import make_methods
from lmms_eval_stability.model_wrappers.geometry import decoder_geometry
from lmms_eval_stability.model_wrappers.registry import METHODS, MODELS
from lmms_eval_stability.model_wrappers.token_reduction import FastV, LVPruning
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import Pruner, PrunerCard, PrunerDesign
from tests.model_wrappers.token_reduction import lvpruning_untrained

#: The language model of LLaVA-1.5-7B.
LARGE = Geometry(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128)


@dataclass(frozen=True)
class Untrained(LVPruning):
    """LVPruning with random modules, of the demo pruner's shape, for any base."""

    design: PrunerDesign = lvpruning_untrained.DESIGN

    @classmethod
    def of(cls, geometry: Geometry) -> Untrained:
        """Return one that acts before the same shares of the layers as the demo model's."""
        layers = tuple(geometry.layers * eighths // 8 for eighths in (2, 3, 4))
        design = PrunerDesign(layers, (0.5, 0.25, 0.1), geometry.hidden, geometry.hidden // 2, 4, noise="spread")
        return cls(design=design)

    @cached_property
    def card(self) -> PrunerCard:
        return PrunerCard(self.design, {}, {})

    @cached_property
    def modules(self) -> Pruner:
        return lvpruning_untrained.draw(self.design)

    def _require_base(self, model: Any) -> None:
        """Serve every base."""


class Own:
    """One of our models under several settings of `reuse`, of which the first is the reference."""

    def __init__(self, ours: Any, args: argparse.Namespace, settings: Sequence[str], questions: int) -> None:
        self.ours, self.args = ours, args
        self.rows = args.batches[0]
        self.settings = {f"{reuse}, batch {self.rows}": (reuse, self.rows) for reuse in settings}
        self.reference = next(iter(self.settings))
        self.documents = Documents(1, 4 if args.quick else questions, perturbed=False)
        self.depth = len(ours.family.decoder(ours.model).layers)

    def run(self, name: str, method: InsideLLM | None) -> dict[str, Any]:
        """All settings of one case in turn, `rounds` times, after few documents to warm up."""
        kwargs = {"max_new_tokens": self.args.tokens}
        parts = parts_of(self.ours, self.documents, self.args.tokens)
        runs = {label: with_settings(self.ours, *how, method) for label, how in self.settings.items()}
        for model in runs.values():
            answer(model, Documents(1, 2, perturbed=False), kwargs)
        spent: dict[str, list[Spent]] = {}
        least: dict[str, list[Spent]] = {}
        answers: dict[str, list[str]] = {}
        shared = (self.depth if method is None else method.first_drop(self.depth), self.depth)
        for number in range(self.args.rounds):
            document = shown(self.documents, self.ours.device)
            spent.setdefault("document", []).append(document)
            for label, model in in_turns(runs, number):
                run, n = partial(answer, model, self.documents, kwargs), len(self.documents)
                one = beside_parts(label, run, parts, (self.rows, self.rows), document, n, method, shared)
                least.setdefault(label, []).append(one.bare)
                spent.setdefault(label, []).append(one.cost / n)
                for part, its in one.passes.items():
                    spent.setdefault(part, []).append(its)
                answers[label] = [result.text for result in one.results]
                counts = one.results[0].token_counts
        text = parts.length - parts.visual
        tokens = list(counts.visual_tokens)
        return {
            "workload": name,
            "reference": self.reference,
            "n": len(self.documents),
            "documents": len(self.documents),
            "layers": list(counts.visual_token_layers),
            "visual_tokens": tokens,
            "shared_layers": list(shared),
            "large": None if method is None else large_bound(method, tokens, text, len(self.documents)),
            "seconds": typical(spent),
            "rounds": by_round(spent, runs),
            "bare": by_round(least, least),
            "differing": {label: differing(answers[self.reference], answers[label]) for label in runs},
            "distinct_answers": len(set(answers[self.reference])),
        }


def large_bound(method: InsideLLM, visual_tokens: list[int], text: int, questions: int) -> tuple[int, float] | None:
    """Return the first drop in a model as large as LLaVA-1.5-7B, and how much less arithmetic its prefills then take.

    Prefills alone, by `cost.py`. None for a method whose layers are those of one model.

    Args:
        visual_tokens: of a prompt, then after each of the method's stages.
        text: other tokens of the prompt, all behind the image.
        questions: about one image.
    """
    if isinstance(method, LVPruning):
        return None
    layers = [0, *(stage.layer for stage in method.stages(LARGE.layers))]
    return layers[1], shared_bound(LARGE, layers, visual_tokens, text, questions)


def shared_bound(geometry: Geometry, layers: list[int], visual_tokens: list[int], text: int, questions: int) -> float:
    """Return the arithmetic of whole prefills over that of prefills whose first layers read the image once.

    Args:
        layers, visual_tokens: as in `cost.prefill_cost`; the layers before ``layers[1]`` are shared.
        text: other tokens of the prompt, all behind the image.
        questions: about one image.
    """
    whole = prefill_cost(geometry, layers, visual_tokens, text).flops
    first, image = layers[1], visual_tokens[0]
    once = geometry.flops(first * image, first * image * image)
    spared = geometry.flops(first * image, first * image * (image + text))
    return questions * whole / (once + questions * (whole - spared))


def inside(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """`reuse=prefix` against `reuse=vision` for every method inside the language model."""
    dtype = getattr(torch, args.dtype)
    ours = load_ours(OURS["llava"], build("llava", args.geometry, dtype, args.device, folder), dtype, args)
    own = Own(ours, args, ("vision", "prefix"), 16)
    for name, entry in METHODS.items():
        method = make_methods(MODELS[f"llava_{name}"], None, {}, ())[0] if entry.kind == "token reduction" else None
        if isinstance(method, LVPruning):
            method = Untrained.of(Geometry(**decoder_geometry(ours.model)))
        if isinstance(method, InsideLLM) and _asked(name, args):
            yield own.run(name, method)


def quantized(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """`reuse=vision` and `reuse=prefix` against `reuse=none` for int8, alone and with FastV.

    Half as many questions, as every case is asked them three times.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # or it says of every layer that it casts to float16
    dtype = getattr(torch, args.dtype)
    ours = load_ours("LlavaInt8", build("llava", args.geometry, dtype, args.device, folder), dtype, args)
    own = Own(ours, args, ("none", "vision", "prefix"), 8)
    for name, method in {"int8": None, "int8, fastv": FastV()}.items():
        if _asked(name, args):
            yield own.run(name, method)


def _asked(name: str, args: argparse.Namespace) -> bool:
    return not args.workloads or name in args.workloads
