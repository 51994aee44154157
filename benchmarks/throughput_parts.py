"""The passes that answers are made of, run bare: what limits `throughput.py`'s ratios."""

from __future__ import annotations

import copy
import functools
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lmms_eval_stability.model_wrappers.prefix_cache import Prefix, PrefixMemory


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, and seconds of processor time in user mode over all threads."""

    wall: float
    user: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.user + other.user)

    def __mul__(self, number: float) -> Spent:
        return Spent(self.wall * number, self.user * number)

    def __truediv__(self, number: float) -> Spent:
        return self * (1 / number)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Spent, Any]:
    """Return what a call costs and what it returns."""
    _wait(device)
    user, wall = resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
    result = call()
    _wait(device)
    spent = Spent(time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF).ru_utime - user)
    return spent, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """The bare passes of one model on one prompt.

    Args:
        ours: a model of this package, whose processor, prompt and weights are used.
        messages: the prompt's chat turns.
        question: the prompt's text.
        tokens: tokens to generate.
    """

    def __init__(self, ours: Any, messages: list[dict[str, Any]], question: str, tokens: int) -> None:
        self.model, self.tokens, self.device = ours.model, tokens, ours.device
        self._backbone, self._family = ours.family.backbone(ours.model), ours.family
        self._tokenizer = ours.tokenizer
        prompt = ours.family.build_prompt(ours.processor, messages, question)
        made = ours.family.encode(ours.processor, [prompt]).to(self.device)
        floating = {name for name, value in made.items() if value.is_floating_point()}
        self.inputs = {name: value.to(self.model.dtype) if name in floating else value for name, value in made.items()}
        self._images = {
            name: value for name, value in self.inputs.items() if name in ("pixel_values", "image_grid_thw")
        }
        ids = self.inputs["input_ids"][0]
        places = torch.isin(ids, torch.tensor(ours.family.placeholder_ids(self.model.config), device=self.device))
        self.visual, self.length = int(places.sum()), len(ids)
        self._end = int(places.nonzero()[-1]) + 1
        self._memory = PrefixMemory()
        with torch.inference_mode():
            self._features = self._encode()
            self._prefix = Prefix(ids[: self._end], self._prefill(), self._end)

    def measure(self, names: Iterable[str], batches: tuple[int, int], method: Any = None) -> dict[str, Spent]:
        """Return the cost per row or image of some passes.

        ``whole``: vision tower, prompt and answer of one row; ``rest``: without the tower, alone and in a batch, inside
        ``method``; ``vision``; ``prefix``: the language model up to the image's end; ``question_batch``: what follows
        it, and the answer.

        Args:
            batches: rows of full prompts, and of questions.
        """
        rows, questions = batches
        passes: dict[str, tuple[Callable[[], Any], int]] = {
            "whole": (self._generate, 1),
            "rest": (lambda: self._generate_served(1), 1),
            "rest_batch": (lambda: self._generate_served(rows), rows),
            "vision": (self._encode, 1),
            "prefix": (self._prefill, 1),
        }
        found = {}
        for name in names:
            with torch.inference_mode(), self._inside(method if name.startswith("rest") else None):
                if name == "question_batch":
                    cache = self._cache(questions)
                    found[name] = timed(partial(self._answer, cache, questions), self.device)[0] / questions
                else:
                    call, count = passes[name]
                    found[name] = timed(call, self.device)[0] / count
        return found

    def first_token(self, method: Any = None) -> Spent:
        """Return the cost of a bare ``generate`` of one token, vision tower included; with ``method``, inside it."""
        with torch.inference_mode(), self._inside(method):
            return timed(lambda: self._generate(1), self.device)[0]

    def _inside(self, method: Any) -> AbstractContextManager[Any]:
        return nullcontext() if method is None else method.attach(self.model, self._family)

    def _encode(self) -> list[Any]:
        found = self._backbone.get_image_features(**self._images, return_dict=True).pooler_output
        return list(found)

    @contextmanager
    def _served(self, rows: int) -> Iterator[None]:
        features = self._features * rows

        @functools.wraps(self._backbone.get_image_features)  # generate reads its signature
        def get_image_features(*_: Any, **__: Any) -> Any:
            return BaseModelOutputWithPooling(pooler_output=features)

        self._backbone.get_image_features = get_image_features
        try:
            yield
        finally:
            del self._backbone.get_image_features

    def _generate(self, tokens: int | None = None, inputs: dict[str, Any] | None = None) -> Any:
        return self.model.generate(
            **(inputs or self.inputs),
            do_sample=False,
            max_new_tokens=tokens or self.tokens,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
        )

    def _generate_served(self, rows: int) -> Any:
        with self._served(rows):
            return self._generate(inputs={name: torch.cat([value] * rows) for name, value in self.inputs.items()})

    def _prefill(self) -> list[Any]:
        text = {name: value[:, : self._end] for name, value in self.inputs.items() if name not in self._images}
        cache = DynamicCache()
        with self._served(1):
            self.model(**text, **self._images, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def _cache(self, rows: int) -> DynamicCache:
        return self._memory.begin_with([self._prefix] * rows, self.length - self._end + self.tokens)

    def _answer(self, cache: DynamicCache, rows: int) -> None:
        """Read the question and generate, without anything around the passes."""
        ids = self.inputs["input_ids"][:, self._end :].expand(rows, -1)
        start = self._end
        for _ in range(self.tokens):
            mask = torch.ones(rows, start + ids.shape[1], dtype=torch.long, device=self.device)
            positions = torch.arange(start, start + ids.shape[1], device=self.device).expand(rows, -1)
            if hasattr(self._backbone, "get_rope_index"):
                positions = positions.expand(3, -1, -1)
            made = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            start += ids.shape[1]
            ids = made.logits[:, -1:].argmax(-1)


def needed(name: str, *, inside: bool = False) -> tuple[str, ...]:
    """Return the passes that a configuration (``vision, batch 8``) is made of; ``inside`` a method it shares less."""
    reuse, single = name.split(",")[0], name.endswith("batch 1")
    if reuse == "prefix":
        return ("vision", "prefix", "rest_batch" if inside else "question_batch")
    return ("whole",) if single and reuse == "none" else ("vision", "rest" if single else "rest_batch")


def bare(
    name: str, cost: Mapping[str, Spent], document: Spent, questions: int, shared: tuple[int, int] = (1, 1)
) -> Spent:
    """Return what a question costs at least, with so many about an image: what cannot be left out.

    With a method inside the language model, what a question does on the image's tokens in the layers before the first
    drop is done once; a layer takes its share of the prefix's time.

    Args:
        cost: of the passes that are ``needed``.
        document: of showing one.
        shared: layers that share the prefix, of how many.
    """
    reuse, single = name.split(",")[0], name.endswith("batch 1")
    if reuse == "none":
        return document + (cost["whole"] if single else cost["vision"] + cost["rest_batch"])
    if reuse == "vision":
        return document + cost["vision"] / questions + cost["rest" if single else "rest_batch"]
    once = cost["vision"] + cost["prefix"] * (shared[0] / shared[1])
    if shared[0] == shared[1]:
        return document + once / questions + cost["question_batch"]
    return document + once / questions + cost["rest_batch"] + cost["prefix"] * (-shared[0] / shared[1])


def with_settings(ours: Any, reuse: str, rows: int, method: Any = None) -> Any:
    """Return a model that shares the weights of ``ours`` and answers in another way."""
    from lmms_eval_stability.model_wrappers.answering import Answerer, AnswerSettings
    from lmms_eval_stability.model_wrappers.arguments import read_batch_size

    other = copy.copy(ours)
    other.reuse, other.rows, other.method = reuse, read_batch_size(rows, None), method
    other._answerer = Answerer(ours.model, ours.tokenizer, ours.family, ours.device, AnswerSettings(reuse))
    return other
