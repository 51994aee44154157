"""One architecture of `throughput.py`: lmms-eval's model and ours on one copy of the weights, and the parts."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lmms_eval.models import get_model
from throughput_models import SPLIT, TASK, Documents, build
from throughput_parts import Parts, Spent, bare, needed, timed, with_settings
from throughput_tables import RIVALS

from lmms_eval_stability.cost import Geometry, prefill_cost
from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.arguments import make_methods
from lmms_eval_stability.model_wrappers.geometry import decoder_geometry
from lmms_eval_stability.model_wrappers.registry import METHODS, MODELS

T = TypeVar("T")

OURS = {"llava": "LlavaBaseline", "qwen2_vl": "Qwen2VlBaseline", "qwen2_5_vl": "Qwen25VlBaseline"}


@dataclass(frozen=True)
class Workload:
    """Questions about images, and the ratios that are to be reached, by configuration.

    Attributes:
        only: configurations that are run; all if empty.
    """

    name: str
    images: int
    questions: int
    perturbed: bool
    targets: dict[str, float]
    only: tuple[str, ...] = ()

    @property
    def documents(self) -> Documents:
        return Documents(self.images, self.questions, perturbed=self.perturbed)


def workloads(kind: str, configurations: Sequence[str], *, quick: bool) -> list[Workload]:
    """The workloads of one architecture; fewer images where a question takes longer."""
    one, _, batch, prefix = configurations[:4]
    single = {name: 1.0 for name in configurations if name != one}
    five = {"vision, batch 1": 1.15, batch: 1.15, prefix: 3.5}
    if quick:
        return [Workload("5 per image", 2, 5, False, {}), Workload("2 per image, perturbed", 2, 2, True, {})]
    chosen = [
        Workload("1 per image", 8 if kind == "llava" else 4, 1, False, single),
        Workload("5 per image", 3, 5, False, five),
        # those that answer one by one would take most of the time, and have nothing more to show
        Workload("32 per image", 2, 32, False, {prefix: 8.0}, only=(batch, prefix)),
        Workload("5 per image, perturbed", 3 if kind == "llava" else 1, 5, True, five),
    ]
    if kind == "llava":
        chosen.insert(3, Workload("1 per image, perturbed", 8, 1, True, single))
    return chosen


def load_ours(name: str, path: Path, dtype: torch.dtype, args: argparse.Namespace, **arguments: Any) -> Any:
    """Load a model of this package by the name of its class."""
    own = str(dtype).removeprefix("torch.")
    return getattr(models, name)(pretrained=str(path), device=args.device, dtype=own, **arguments)


def answer(model: Any, documents: Documents, gen_kwargs: dict[str, Any]) -> tuple[Spent, Any]:
    """Return what it costs to answer all documents, and the answers."""
    model.task_dict = {TASK: {SPLIT: documents}}
    requests = documents.requests(gen_kwargs, simple=model.is_simple)
    return timed(lambda: model.generate_until(requests), model.device)


def parts_of(ours: Any, documents: Documents, tokens: int) -> Parts:
    """Return the bare passes of a model on the second document, whose question has the mean length."""
    doc = documents[min(1, len(documents) - 1)]
    return Parts(ours, documents.messages(doc), doc["question"], tokens)


@dataclass(frozen=True)
class Beside:
    """One run of a configuration, with the passes that it is made of right before and after it.

    Attributes:
        cost: of the run.
        results: of the run.
        passes: means of both times, by name.
        bare: what a question costs at least.
    """

    cost: Spent
    results: Any
    passes: dict[str, Spent]
    bare: Spent


def beside_parts(
    name: str,
    run: Callable[[], tuple[Spent, Any]],
    parts: Parts,
    batches: tuple[int, int],
    document: Spent,
    questions: int,
    method: Any = None,
    shared: tuple[int, int] = (1, 1),
) -> Beside:
    """Run a configuration between two measurements of its passes; arguments as in ``throughput_parts``."""
    names = needed(name, inside=shared[0] < shared[1])
    before = parts.measure(names, batches, method)
    cost, results = run()
    after = parts.measure(names, batches, method)
    passes = {one: (before[one] + after[one]) / 2 for one in names}
    return Beside(cost, results, passes, bare(name, passes, document, questions, shared))


def shown(documents: Documents, device: torch.device) -> Spent:
    """Return what it costs the task to show one document."""
    return timed(lambda: [documents.messages(documents[i]) for i in range(len(documents))], device)[0] / len(documents)


def typical(spent: dict[str, list[Spent]]) -> dict[str, list[float]]:
    """Return the medians over the rounds: wall and processor time."""
    return {
        name: [statistics.median(one.wall for one in all_), statistics.median(one.user for one in all_)]
        for name, all_ in spent.items()
    }


def in_turns(runs: dict[str, T], number: int) -> list[tuple[str, T]]:
    """Return what is run in a round, in order; the next round begins with another, so that none always comes first."""
    first = number % len(runs)
    return [*list(runs.items())[first:], *list(runs.items())[:first]]


def by_round(spent: dict[str, list[Spent]], names: Iterable[str]) -> dict[str, list[list[float]]]:
    """Return wall and processor time of every round."""
    return {name: [[one.wall, one.user] for one in spent[name]] for name in names}


def differing(expected: Sequence[str], got: Sequence[str]) -> int | str:
    """Return how many answers differ."""
    if not expected:
        return "-"  # that configuration was not run
    return sum(a != b for a, b in zip(expected, got, strict=True))


class Bench:
    """One architecture: the rival, our configurations, and the parts."""

    def __init__(self, kind: str, args: argparse.Namespace, folder: Path) -> None:
        self.kind, self.args = kind, args
        dtype = torch.bfloat16 if kind == "qwen2_5_vl" else getattr(torch, args.dtype)  # the rival loads nothing else
        path = build(kind, args.geometry, dtype, args.device, folder)
        pixels = {} if kind == "llava" else {"min_pixels": 3136, "max_pixels": 602112}
        self.rival = get_model(RIVALS[kind])(
            pretrained=str(path), device=args.device, device_map=args.device, **pixels
        )  # fmt: skip
        self.rival._model = None
        self.ours = load_ours(OURS[kind], path, dtype, args, **pixels)
        self.rival._model = self.ours.model  # one copy of the weights, for both
        small, large = args.batches
        self.settings = {
            "none, batch 1": ("none", 1),
            "vision, batch 1": ("vision", 1),
            f"vision, batch {small}": ("vision", small),
            f"prefix, batch {large}": ("prefix", large),
        }
        self.gen_kwargs = {"max_new_tokens": args.tokens}

    def run(self, workload: Workload) -> dict[str, Any]:
        """All configurations in turn, `rounds` times, after one round of few documents to warm up."""
        documents, parts = workload.documents, parts_of(self.ours, workload.documents, self.args.tokens)
        runs = {"lmms-eval": self.rival}
        asked = self.args.configurations or workload.only or list(self.settings)
        chosen = {name: how for name, how in self.settings.items() if name in asked}
        runs |= {name: with_settings(self.ours, *how) for name, how in chosen.items()}
        warm = Documents(1, min(2, workload.questions), perturbed=workload.perturbed)
        for model in runs.values():
            answer(model, warm, self.gen_kwargs)
        spent: dict[str, list[Spent]] = {}
        least: dict[str, list[Spent]] = {}
        answers: dict[str, list[str]] = {}
        prefills: dict[str, float] = {}
        full, large = (min(rows, len(documents)) for rows in self.args.batches)
        batches = full, large
        for number in range(self.args.rounds):
            document = shown(documents, self.ours.device)
            spent.setdefault("document", []).append(document)
            for name, model in in_turns(runs, number):
                run = partial(answer, model, documents, self.gen_kwargs)
                if name == "lmms-eval":
                    cost, results = run()
                else:
                    one = beside_parts(name, run, parts, batches, document, workload.questions)
                    cost, results = one.cost, one.results
                    least.setdefault(name, []).append(one.bare)
                    for part, its in one.passes.items():
                        spent.setdefault(part, []).append(its)
                spent.setdefault(name, []).append(cost / len(documents))
                answers[name] = [one if isinstance(one, str) else one.text for one in results]
                if name != "lmms-eval" and "prefix" not in name:
                    prefills[name] = sum(r.token_counts.prefill_ms - r.token_counts.vision_ms for r in results) / 1e3
        expected = answers["lmms-eval"]
        own = answers.get("none, batch 1", [])
        return {
            "workload": workload.name,
            "n": workload.questions,
            "documents": len(documents),
            "targets": workload.targets,
            "visual": parts.visual,
            "text": parts.length - parts.visual,
            "question_batch": large,
            "seconds": typical(spent),
            "rounds": by_round(spent, runs),
            "bare": by_round(least, least),
            "differing": {name: differing(expected, answers[name]) for name in chosen},
            "differing_from_none": {name: differing(own, answers[name]) for name in chosen},
            "flops": {name: self._flops(parts, len(documents)) / seconds for name, seconds in prefills.items()},
            "distinct_answers": len(set(expected)),
        }

    def _flops(self, parts: Parts, rows: int) -> float:
        """Floating-point operations of the language model's prefills; a multiply-add is two."""
        geometry = Geometry(**decoder_geometry(self.ours.model))
        return 2 * rows * prefill_cost(geometry, [0], [parts.visual], parts.length - parts.visual).flops

    def _method(self, name: str, **arguments: Any) -> Any:
        if name == "lofi" and self.args.geometry == "tiny":
            arguments["rank"] = 8  # a tiny image has 16 tokens, fewer than the rank by default
        return make_methods(MODELS[f"{self.kind}_{name}"], None, arguments, ())[0]

    def methods(self) -> dict[str, Any]:
        """Prefill of every method beside its theory, and the cost of a method that does nothing."""
        documents = Documents(2 if self.args.quick else 4, 1, perturbed=False)
        geometry, parts = Geometry(**decoder_geometry(self.ours.model)), parts_of(self.ours, documents, 1)
        chosen = {"baseline": None, **{name: self._method(name) for name in _token_reductions(self.kind)}}
        measured: dict[str, list[float]] = {name: [] for name in chosen}
        theory: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(self.args.rounds):
            for name, method in chosen.items():
                model = with_settings(self.ours, "none", 1, method)
                for result in answer(model, documents, {"max_new_tokens": 1})[1]:
                    counts = result.token_counts
                    measured[name].append((counts.prefill_ms - counts.vision_ms) / 1e3)
                    text = counts.input_tokens - counts.visual_tokens[0]
                    cost = prefill_cost(geometry, counts.visual_token_layers, counts.visual_tokens, text)
                    theory[name].append(cost.flops_ratio)
        base = statistics.median(measured["baseline"])
        rows = {n: [statistics.median(v) / base, statistics.mean(theory[n])] for n, v in measured.items() if v}
        return {"methods": rows, "baseline_seconds": base, "overhead": self._overhead(parts)}

    def _overhead(self, parts: Parts) -> dict[str, dict[str, float]]:
        """What FastV costs that keeps every token, as a share of a bare prefill; by wall-clock and processor time."""
        empty = self._method("fastv", r=0.0)
        bare, hooked = [], []
        parts.first_token(empty)
        for _ in range(4 * self.args.rounds):
            bare.append(parts.first_token())
            hooked.append(parts.first_token(empty))
        found = {}
        for kind in ("wall", "user"):
            without, with_it = ([getattr(one, kind) for one in some] for some in (bare, hooked))
            ratios = [b / a for a, b in zip(without, with_it, strict=True)]
            found[kind] = {"median": statistics.median(ratios) - 1, "best": min(with_it) / min(without) - 1}
        return found


def _token_reductions(kind: str) -> list[str]:
    """Names of the methods that need neither trained modules nor another kind of model."""
    left_out = {"lvpruning", *(["downsample"] if kind == "llava" else [])}
    return [name for name, one in METHODS.items() if one.kind == "token reduction" and name not in left_out]
