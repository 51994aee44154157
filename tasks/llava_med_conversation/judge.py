"""The language model that compares two answers, reached through lmms-eval's own judge interface.

As for lmms-eval's built-in judged tasks the environment chooses it: `API_TYPE` names the provider (openai, azure,
local, ..., or one that was registered with `ProviderFactory`), `MODEL_VERSION` the model, and each provider reads its
own key and address. The prompt is lmms-eval's comparative one, which descends from the same source as LLaVA-Med's.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lmms_eval.llm_judge import ServerConfig, ServerInterface, get_server
from lmms_eval.llm_judge.base import AsyncServerInterface
from loguru import logger

#: What lmms-eval's own judged tasks ask for. LLaVA-Med asked gpt-4-0314, which is no longer served.
DEFAULT_MODEL = "gpt-4o-2024-11-20"
LOWEST, HIGHEST = 1, 10
_INSTRUCTION = (
    "The question is about a figure of a biomedical article that you cannot see; the context gives its caption and"
    f" where the article mentions it. Score each response from {LOWEST} to {HIGHEST}."
)
_TWO_NUMBERS = re.compile(r"(\d+(?:\.\d+)?)[\s,;]+(\d+(?:\.\d+)?)")
_KEYS = {
    "openai": "set OPENAI_API_KEY (and OPENAI_API_URL for another server that speaks its protocol)",
    "azure": "set AZURE_API_KEY and AZURE_ENDPOINT",
    "local": "start an OpenAI-compatible server and set LLM_JUDGE_URL to its .../v1/chat/completions",
}


class JudgeUnavailableError(RuntimeError):
    """There is no judge to ask, as the environment is set."""


@dataclass(frozen=True)
class Judgement:
    """What the judge said about one answer.

    Attributes:
        reference_score, answer_score: 1 to 10; None when the judge gave no two scores.
        model: the judge, as its provider names it.
        review: its reply as it came.
        error: why there are no scores; empty when there are.
    """

    reference_score: float | None
    answer_score: float | None
    model: str
    review: str
    error: str = ""

    @property
    def relative(self) -> float | None:
        """The answer's score in percent of the reference's; None without scores. May exceed 100."""
        if self.reference_score is None or self.answer_score is None:
            return None
        return 100 * self.answer_score / self.reference_score


def server() -> ServerInterface:
    """Return the judge that the environment names; made once.

    Raises:
        JudgeUnavailableError: an unknown provider, one without its key or address, or one that works in coroutines.
    """
    return _server(os.getenv("API_TYPE", "openai").lower(), os.getenv("MODEL_VERSION", DEFAULT_MODEL))


@functools.cache
def _server(provider: str, model: str) -> ServerInterface:
    remedy = f"{_KEYS.get(provider, 'see the provider for what it needs')}, or choose another provider with API_TYPE"
    try:
        made = get_server(provider, ServerConfig(model_name=model, temperature=0.0))
        available = made.is_available()
    except Exception as error:
        raise JudgeUnavailableError(f"the judge API_TYPE={provider} cannot be set up: {error}; {remedy}") from error
    if isinstance(made, AsyncServerInterface):
        raise JudgeUnavailableError(
            f"the judge API_TYPE={provider} works in coroutines, but lmms-eval scores documents in threads; use"
            f" API_TYPE={provider.removeprefix('async_')}"
        )
    if not available:
        raise JudgeUnavailableError(f"the judge API_TYPE={provider} is not available: {remedy}")
    return made


def compare(doc: Mapping[str, str], answer: str) -> Judgement:
    """Ask the judge to score the reference (as assistant 1) and the answer (as assistant 2) to a question.

    Never raises for a failed request: the answers of a whole run hang on it. What went wrong is in `error`.
    """
    judge = server()
    asked = judge.config.model_name
    try:
        reply = judge.evaluate_comparative(
            question=doc["question"],
            response1=doc["reference"],
            response2=answer,
            context=doc["context"],
            score_range=(LOWEST, HIGHEST),
            evaluation_instruction=_INSTRUCTION,
        )
    except Exception as error:  # a provider raises what its library raises, after its own retries
        logger.error(f"question {doc['question_id']} could not be judged: {type(error).__name__}: {error}")
        return Judgement(None, None, asked, "", f"request failed: {type(error).__name__}: {error}")
    review, model = str(reply["raw_response"] or ""), str(reply["model"] or asked)
    if not reply["success"]:
        return Judgement(None, None, model, review, "request failed: the provider reports no success")
    scores = parse_scores(review)
    if scores is None:
        return Judgement(None, None, model, review, f"no two scores from {LOWEST} to {HIGHEST} in the reply")
    return Judgement(*scores, model, review)


def parse_scores(review: str) -> tuple[float, float] | None:
    """Return the two scores in the first line of a reply, or None.

    That line must be two numbers from 1 to 10 and nothing else, as the judge was told. lmms-eval's own parser takes the
    first two numbers of the line, and so reads "Assistant 1: 8" as the scores 1 and 8.
    """
    lines = review.strip().splitlines()
    match = _TWO_NUMBERS.fullmatch(lines[0].strip()) if lines else None
    if match is None:
        return None
    first, second = float(match[1]), float(match[2])
    return (first, second) if all(LOWEST <= score <= HIGHEST for score in (first, second)) else None
