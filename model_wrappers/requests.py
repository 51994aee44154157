"""lmms-eval's requests as this package reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import Instance

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError


@dataclass(frozen=True)
class Request:
    """A document to put to the model.

    Attributes:
        index: place in the list of requests.
        context: the document as one text.
        doc_id, task, split: where the document is in lmms-eval's ``task_dict``.
        show: document -> chat turns, or -> media that stand before ``context``.
    """

    index: int
    context: str
    doc_id: int
    task: str
    split: str
    show: Callable[[Any], Any]

    @property
    def name(self) -> str:
        return f"task {self.task}, document {self.doc_id}"

    @property
    def group(self) -> str:
        """What the requests of one batch must have in common."""
        return ""

    def messages(self, document: Any) -> list[Any]:
        """Return the document as chat turns."""
        shown = self.show(document) or []
        if shown and all(isinstance(part, dict) and "role" in part for part in shown):
            return list(shown)
        from lmms_eval.api.task import ConfigurableMessagesTask  # takes seconds, and lmms-eval has it by then

        turns: list[Any] = ConfigurableMessagesTask._build_user_turn(shown, self.context)
        return turns


@dataclass(frozen=True)
class Question(Request):
    """A request of ``generate_until``."""

    gen_kwargs: dict[str, Any]

    @classmethod
    def read(cls, index: int, instance: Instance) -> Question:
        context, show, gen_kwargs, doc_id, task, split = instance.args
        return cls(index, context, doc_id, task, split, show, gen_kwargs)

    @property
    def group(self) -> str:
        return repr(sorted(self.gen_kwargs.items()))


@dataclass(frozen=True)
class Candidate(Request):
    """A request of ``loglikelihood``.

    Attributes:
        answer: the text to score, or document -> that text.
    """

    answer: str | Callable[[Any], Any]

    @classmethod
    def read(cls, index: int, instance: Instance) -> Candidate:
        """Read ``(context, answer, show, doc_id, task, split)``.

        Raises:
            UnsupportedInputError: the request is another one.
        """
        try:
            context, answer, show, doc_id, task, split = instance.args
        except ValueError:
            raise UnsupportedInputError(
                f"task {instance.task_name} sends log-likelihood requests with {len(instance.args)} arguments; answered"
                " are those with context, answer, media, document, task and split"
            ) from None
        return cls(index, context, doc_id, task, split, show, answer)

    def text(self, document: Any) -> str:
        """Return the text to score.

        Raises:
            UnsupportedInputError: it is empty, or none.
        """
        answer = self.answer if isinstance(self.answer, str) else self.answer(document)
        if not isinstance(answer, str):
            raise UnsupportedInputError(f"the answer to score is {answer!r}, not a text; let doc_to_target give a text")
        if not answer:
            raise UnsupportedInputError("the answer to score is empty; see the task's doc_to_choice and doc_to_target")
        return answer
