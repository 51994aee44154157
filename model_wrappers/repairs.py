"""Two places where lmms-eval stops tasks that score answers: before, and after, a chat model could score them.

In lmms-eval 0.7 the task class of chat models builds no log-likelihood requests ("Currently messages is used for
generation only"), and the evaluator turns every result that is not a text into one, the pair (loss, is_greedy) too,
which the task then cannot take apart. Both are repaired here, in processes that make one of this package's models, so
that a task of ``output_type: multiple_choice`` runs as any other. What worked before works as before.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.measurements import Measurements
from lmms_eval_stability.model_wrappers.scoring import Likelihood

_REPAIRED = "_lmms_eval_stability_repaired"
_SCORED = ("loglikelihood", "multiple_choice")


def repair_likelihood_tasks() -> None:
    """Repair what is loaded of lmms-eval, once only; a process without its evaluator evaluates nothing."""
    tasks, evaluator = sys.modules.get("lmms_eval.api.task"), sys.modules.get("lmms_eval.evaluator")
    if tasks is not None:
        simple = tasks.ConfigurableTask.construct_requests
        _replace(tasks.ConfigurableMessagesTask, "construct_requests", functools.partial(_scoring_chat, simple))
    if evaluator is not None:
        _replace(evaluator, "unwrap_generation_output", _keeping_pairs)


def _replace(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if not getattr(original, _REPAIRED, False):
        wrapped = functools.wraps(original)(wrap(original))
        setattr(wrapped, _REPAIRED, True)
        setattr(owner, name, wrapped)


def _scoring_chat(simple: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def construct_requests(self: Any, doc_id: int, ctx: str, **kwargs: Any) -> Any:
        if self.OUTPUT_TYPE not in _SCORED:
            return original(self, doc_id, ctx, **kwargs)
        if "acc_mutual_info" in self._metric_fn_list:
            raise UnsupportedInputError(
                f"task {self.config.task} asks for acc_mutual_info, where lmms-eval takes its models' losses for"
                " log-probabilities, so that the worst choice counts; take it out of the task's metric_list"
            )
        built = simple(self, doc_id, ctx, **kwargs)
        if self.multiple_input:  # the choices are the contexts, which chat turns made of the document would not hold
            return built
        for request in built if isinstance(built, list) else [built]:
            context, answer, _, *where = request.arguments
            request.arguments = (context, answer, self.doc_to_messages, *where)
        return built

    return construct_requests


def _keeping_pairs(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def unwrap_generation_output(output: Any) -> Any:
        if isinstance(output, Likelihood):
            return tuple(output), output.token_counts
        if isinstance(output, list) and len(output) == 2 and isinstance(output[0], float):
            # From lmms-eval's cache of responses, which keeps nothing but the numbers.
            failed = Measurements(error="failed in the run that filled lmms-eval's cache of responses")
            return tuple(output), failed if math.isinf(output[0]) else None
        return original(output)

    return unwrap_generation_output
