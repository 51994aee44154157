"""How probable a given answer is: prompt and answer in one forward pass, no generation.

The prompt is encoded as for generation and the answer's tokens go behind it. Methods that rank visual tokens by the
attention of the prompt's end are told where that is, so that no answer has a say in which visual tokens it is judged
by, and all answers to a question are judged by the same ones.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.generation import top_tokens
from lmms_eval_stability.model_wrappers.measurements import Measurements
from lmms_eval_stability.model_wrappers.requests import Candidate
from lmms_eval_stability.model_wrappers.token_reduction.base import Session

#: Inputs with one entry per token: (what padding has there, what the answer's tokens have there).
_PER_TOKEN = {"attention_mask": (0, 1), "mm_token_type_ids": (0, 0), "token_type_ids": (0, 0)}


class Likelihood(tuple[float, bool]):
    """What ``loglikelihood`` returns for one request: the pair (loss, is_greedy), with its measurements.

    Attributes:
        loss: mean over the answer's tokens of their negative natural log-probability.
        is_greedy: whether each of them is the most probable token at its place.
        token_counts: what goes into the sample log.
    """

    token_counts: Measurements

    def __new__(cls, loss: float, is_greedy: bool, token_counts: Measurements) -> Likelihood:
        pair = super().__new__(cls, (loss, is_greedy))
        pair.token_counts = token_counts
        return pair

    @property
    def loss(self) -> float:
        return self[0]

    @property
    def is_greedy(self) -> bool:
        return self[1]


@dataclass(frozen=True)
class ScoredRow:
    """One answer's score.

    Attributes:
        logprobs: (n,) float32 on the CPU, natural log-probability of each of the answer's tokens.
        is_greedy: whether each of them is the most probable token at its place.
        first_token_logprobs: the most probable first tokens, as in ``Measurements``.
        milliseconds: time of the batch's forward pass divided by its rows.
    """

    logprobs: Tensor
    is_greedy: bool
    first_token_logprobs: list[list[Any]]
    milliseconds: float

    @property
    def total(self) -> float:
        """Log-probability of the whole answer."""
        return float(self.logprobs.double().sum())

    @property
    def loss(self) -> float:
        """Mean negative log-probability of its tokens."""
        return -self.total / len(self.logprobs)

    def noted_in(self, counts: Measurements) -> Measurements:
        """Return what is known of the prompt with what is known of the answer."""
        return dataclasses.replace(
            counts,
            prefill_ms=round(self.milliseconds, 3),
            first_token_logprobs=self.first_token_logprobs,
            answer_tokens=len(self.logprobs),
            answer_logprob=round(self.total, 6),
        )


def answer_ids(tokenizer: Any, prompt: str, answer: str, placeholders: Sequence[int]) -> list[int]:
    """Return the tokens by which ``answer`` goes on after ``prompt``.

    They are what the tokenizer makes of both together, beyond the prompt's own tokens, so that a word at the border
    gets the token that it would be generated as. Where it would make the end of the prompt and the start of the answer
    one token, the prompt keeps its tokens, and the answer is tokenised as after the start of a line.

    Args:
        tokenizer: the checkpoint's.
        prompt: a rendered prompt.
        answer: the text to score, with any space that stands before it.
        placeholders: ids that stand for visual tokens.

    Raises:
        UnsupportedInputError: there is no such token, or one is an image placeholder.
    """
    for before in (prompt, "\n", tokenizer.eos_token):
        start, whole = tokenizer(before)["input_ids"], tokenizer(before + answer)["input_ids"]
        if whole[: len(start)] == start:
            break
    else:
        raise UnsupportedInputError(f"the answer {answer!r} cannot be tokenised apart from what stands before it")
    ids: list[int] = list(whole[len(start) :])
    if not ids:
        raise UnsupportedInputError(f"the answer {answer!r} has no tokens to score")
    if set(ids) & set(placeholders):
        raise UnsupportedInputError(f"the answer {answer!r} holds an image placeholder")
    return ids


def append_answers(inputs: Mapping[str, Tensor], answers: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Put each row's answer behind its prompt, all rows padded on the left.

    Args:
        inputs: what the processor returned for the prompts, padded on the left; ``input_ids`` is (rows, length).
        answers: one sequence of token ids per row.
        pad: the padding token.

    Returns:
        The inputs with answers; what has no entry per token is as it was. The rows end with their answers.
    """
    real = inputs["attention_mask"].bool()
    fill = {"input_ids": (pad, None), **_PER_TOKEN}
    rows: dict[str, Tensor] = {}
    for name in fill.keys() & inputs.keys():
        padding, value = fill[name]
        extended = []
        for row, keep, answer in zip(inputs[name], real, answers, strict=True):
            more = row.new_tensor(list(answer) if value is None else [value] * len(answer))
            extended.append(torch.cat([row[keep], more]))
        rows[name] = torch.nn.utils.rnn.pad_sequence(
            extended, batch_first=True, padding_value=padding, padding_side="left"
        )
    return {**inputs, **rows}


def score(
    model: Any, tokenizer: Any, inputs: Mapping[str, Tensor], lengths: Sequence[int], session: Session | None
) -> list[ScoredRow]:
    """Score the answers at the rows' ends in one forward pass.

    Args:
        model: a transformers model with a language-model head.
        tokenizer: only for reading tokens back.
        inputs: what ``append_answers`` returned, on the model's device.
        lengths: tokens of each row's answer, at least 1.
        session: of the method that is attached to the model, if any.

    Returns:
        One entry per row, in order. Log-probabilities are those of the model's own logits in fp32: no logits processor
        of the checkpoint's generation settings has touched them.
    """
    columns = inputs["input_ids"].shape[1]
    last_of_prompt = [columns - 1 - n for n in lengths]
    window = max(lengths) + 1  # rows end together, so the last logits are all that is needed
    started = time.perf_counter()
    with torch.inference_mode(), nullcontext() if session is None else session.pin_query(last_of_prompt):
        logits = model(**inputs, use_cache=False, logits_to_keep=window).logits
        found = [
            _score_row(tokenizer, logits[row, window - 1 - n : -1], inputs["input_ids"][row, columns - n :])
            for row, n in enumerate(lengths)
        ]
    milliseconds = 1e3 * (time.perf_counter() - started) / len(lengths)
    return [ScoredRow(*parts, milliseconds) for parts in found]


def _score_row(tokenizer: Any, logits: Tensor, answer: Tensor) -> tuple[Tensor, bool, list[list[Any]]]:
    """Score one row: logits (n, vocabulary) at the places before the answer's tokens (n,)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, answer[:, None])[:, 0].cpu()
    is_greedy = bool((logprobs.argmax(dim=1) == answer).all())
    return chosen, is_greedy, top_tokens(tokenizer, logprobs[:1])[0]


def failing_together(candidates: Sequence[Candidate], results: Sequence[Likelihood]) -> list[Likelihood]:
    """Return the results, all answers to a question failed where one is: they are only of use together.

    Args:
        candidates: the requests.
        results: theirs, in the same order; failed ones carry an error.
    """
    failed: dict[str, str] = {}
    for candidate, result in zip(candidates, results, strict=True):
        if result.token_counts.error:
            failed.setdefault(candidate.name, result.token_counts.error)
    together = []
    for candidate, result in zip(candidates, results, strict=True):
        reason = failed.get(candidate.name)
        counts = dataclasses.replace(result.token_counts, error=reason)
        together.append(result if reason is None else Likelihood(math.inf, False, counts))
    return together
