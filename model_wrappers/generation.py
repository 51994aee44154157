"""One batch through ``generate``: settings from the task, answers with their measurements."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError
from lmms_eval_stability.model_wrappers.measurements import Measurements

TOP_TOKENS = 5
_UNDERSTOOD = {"max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "until"}
_reported: set[str] = set()


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated: greedy unless the task sets a temperature above zero."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    until: tuple[str, ...] = ()

    @classmethod
    def from_task(cls, gen_kwargs: Mapping[str, Any], default_max_new_tokens: int) -> GenerationSettings:
        """Read a task's ``generation_kwargs``.

        As in lmms-eval's models ``do_sample`` does not matter (a temperature above zero samples) and keys that they do
        not know are left out; each such key is reported once.
        """
        for key in sorted(set(gen_kwargs) - _UNDERSTOOD - _reported):
            _reported.add(key)
            logger.warning(f"generation argument '{key}' of the task is not used by this model")
        until = gen_kwargs.get("until") or ()
        return cls(
            max_new_tokens=int(gen_kwargs.get("max_new_tokens", default_max_new_tokens)),
            temperature=float(gen_kwargs.get("temperature") or 0.0),
            top_p=gen_kwargs.get("top_p"),
            top_k=gen_kwargs.get("top_k"),
            num_beams=int(gen_kwargs.get("num_beams") or 1),
            until=(until,) if isinstance(until, str) else tuple(until),
        )

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidArgumentError(f"max_new_tokens={self.max_new_tokens}: at least one token must be generated")

    def for_generate(self) -> dict[str, Any]:
        """Return the arguments for ``generate``."""
        sample = self.temperature > 0
        # A task that says nothing of top_k samples with the checkpoint's own.
        top_k = {} if self.top_k is None else {"top_k": self.top_k}
        return {
            **(top_k if sample else {}),
            "do_sample": sample,
            "temperature": self.temperature if sample else None,
            "top_p": self.top_p if sample else None,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True)
class GeneratedRow:
    """One row's answer.

    Attributes:
        tokens: (n,) generated ids up to and including the end-of-sequence token.
        prefill_ms, decode_ms, first_token_logprobs, answer_logprob: as in ``Measurements``; the last three are ``None``
            under beam search, where steps do not belong to one row.
    """

    tokens: Tensor
    prefill_ms: float
    decode_ms: float | None
    first_token_logprobs: list[list[Any]] | None
    answer_logprob: float | None

    def noted_in(self, counts: Measurements) -> Measurements:
        """Return what is known of the prompt with what is known of the answer."""
        return dataclasses.replace(
            counts,
            output_tokens=len(self.tokens),
            prefill_ms=round(self.prefill_ms, 3),
            decode_ms=None if self.decode_ms is None else round(self.decode_ms, 3),
            first_token_logprobs=self.first_token_logprobs,
            answer_logprob=self.answer_logprob,
        )


class _StepScores(LogitsProcessor):  # type: ignore[misc]
    """Watches the scores that tokens are chosen by, without changing them and without keeping more than one step."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.prefill_seconds: float | None = None
        self.first: Tensor | None = None  # (rows, vocabulary), log-probabilities
        self._last: Tensor | None = None
        self._chosen: list[Tensor] = []  # per step: (rows,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = torch.log_softmax(scores.float(), dim=-1)
        if self._last is None:
            if scores.is_cuda:
                torch.cuda.synchronize(scores.device)
            self.prefill_seconds = time.perf_counter() - self.started
            self.first = logprobs
        else:
            self._note(self._last, input_ids[:, -1])
        self._last = logprobs
        return scores

    def _note(self, logprobs: Tensor, tokens: Tensor) -> None:
        self._chosen.append(logprobs.gather(1, tokens[:, None])[:, 0])

    def chosen(self, sequences: Tensor) -> Tensor:
        """Return (rows, steps): log-probability of each generated token of the finished ``sequences``."""
        if self._last is None:
            raise RuntimeError("generate finished without computing scores")
        self._note(self._last, sequences[:, -1])
        self._last = None
        return torch.stack(self._chosen, dim=1)


def generate(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    settings: GenerationSettings,
    *,
    use_cache: bool,
    started: float | None = None,
) -> list[GeneratedRow]:
    """Generate answers for a left-padded batch.

    Args:
        model: a transformers model with a language-model head.
        inputs: what the processor returned, on the model's device; ``input_ids`` is (rows, length).
        use_cache: whether to keep keys and values between steps.
        started: ``time.perf_counter()`` at which the work on the batch began, if that was before this call.

    Returns:
        One entry per row, in order.
    """
    rows, length = inputs["input_ids"].shape
    eos = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    started = time.perf_counter() if started is None else started
    watcher = _StepScores(started) if settings.num_beams == 1 else None
    with torch.inference_mode():
        sequences = model.generate(
            **inputs,
            **settings.for_generate(),
            use_cache=use_cache,
            eos_token_id=eos,
            pad_token_id=pad,
            logits_processor=LogitsProcessorList([watcher] if watcher else []),
        )
    if sequences.is_cuda:
        torch.cuda.synchronize(sequences.device)
    total = time.perf_counter() - started
    tokens = sequences[:, length:].cpu()
    lengths = _lengths(tokens, eos)
    if watcher is None or watcher.first is None or watcher.prefill_seconds is None:
        return [GeneratedRow(tokens[i, :n], 1e3 * total / rows, None, None, None) for i, n in enumerate(lengths)]
    chosen = watcher.chosen(sequences).cpu()
    first = top_tokens(tokenizer, watcher.first)
    return [
        GeneratedRow(
            tokens=tokens[i, :n],
            prefill_ms=1e3 * watcher.prefill_seconds / rows,
            decode_ms=1e3 * (total - watcher.prefill_seconds) / rows,
            first_token_logprobs=first[i],
            answer_logprob=round(float(chosen[i, :n].double().sum()), 6),
        )
        for i, n in enumerate(lengths)
    ]


def fill_padding(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return (rows, length) ids whose padding, on the left, repeats each row's last token.

    No layer sees padding, but logits processors read ids without a mask: a repetition penalty in a checkpoint's
    generation settings (Qwen's have one) would take the padding token for said before, in padded rows only, and a row's
    answer would depend on its batch. A token that the row holds anyway changes nothing.
    """
    return torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])


def _lengths(tokens: Tensor, eos: int) -> list[int]:
    """Return how many of each row's tokens belong to its answer, the end-of-sequence token included."""
    ends = tokens == eos
    first_end = torch.where(ends.any(1), ends.int().argmax(1) + 1, tokens.shape[1])
    return [int(n) for n in first_end]


def top_tokens(tokenizer: Any, logprobs: Tensor) -> list[list[list[Any]]]:
    """Return each row's most probable tokens, best first: (rows, vocabulary) -> [id, text, log-probability]."""
    top = logprobs.topk(min(TOP_TOKENS, logprobs.shape[1]), dim=1)
    return [
        [[token, tokenizer.decode([token]), round(value, 6)] for token, value in zip(ids, values, strict=True)]
        for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
