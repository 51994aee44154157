"""A model of lmms-eval that looks answers up: right, wrong, partly right and unreadable ones, by a digest.

What random weights answer is nearly always wrong. This model's answers make lmms-eval's own scoring write every kind of
line that a benchmark's adapter has to read. `seed=0` is the baseline; any other seed keeps about half of its answers.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

PROSE = ("I do not know", "It could be anything, really.", "none of them")
#: Ways to write a letter, some of which some benchmarks can read.
LETTER = ("{}", "{}", "{}.", "{}. {text}", "({})", "The answer is {}", "{text}", "{low}")
WORD = ("{}", "{}", " {}.", "The {}", "{up}")


def digest(*key: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def pick(choices: Sequence[str], *key: object) -> str:
    return choices[digest("pick", *key) % len(choices)]


def options_of(task: str, doc: dict[str, Any]) -> list[str]:
    """The texts of a document's options; empty where it has none."""
    if task.startswith("mmbench"):
        return [doc[letter] for letter in "ABCD" if doc[letter] != "nan"]
    given = doc.get("choices") or doc.get("options") or []
    return list(ast.literal_eval(given) if isinstance(given, str) else given)


def right_letter(task: str, doc: dict[str, Any]) -> str:
    answer = str(doc["answer"])
    return chr(ord("A") + int(answer)) if task.startswith(("ai2d", "scienceqa")) else answer


def written_answer(doc: dict[str, Any], key: tuple[object, ...]) -> str:
    """An answer in words: the reference, one of the annotators', or neither."""
    given = doc.get("answers") or [doc.get("answer")]
    texts = [one["answer"] if isinstance(one, dict) else str(one) for one in given]
    text = pick([texts[0], texts[0], texts[-1], "yes", "no", "something else"], *key)
    return pick(WORD, "form", *key).format(text, up=text.upper())


def answer_to(task: str, doc: dict[str, Any], *key: object) -> str:
    if digest("prose", *key) % 6 == 0:
        return pick(PROSE, *key)
    options = options_of(task, doc)
    if not options:
        return written_answer(doc, key)
    letters = [chr(ord("A") + n) for n in range(len(options))]
    letter = pick([right_letter(task, doc)] * len(letters) + letters, *key)
    text = options[letters.index(letter)]
    return pick(LETTER, "form", *key).format(letter, text=text, low=letter.lower())


class Scripted(lmms):
    """`--model scripted --model_args seed=N,empty=SHARE`: `empty` is the share of answers that are empty."""

    is_simple = False

    def __init__(self, seed: int = 0, empty: float = 0.0, pretrained: str = "", **_: Any) -> None:
        super().__init__()
        self.seed, self.empty = seed, empty

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context: str, messages: Any, _: Any, doc_id: int, task: str, split: str) -> str:
        doc = self.task_dict[task][split][doc_id]
        messages(doc)  # as a real model does: perturbed tasks note what they did to what was shown
        if digest("empty", self.seed, task, doc_id) % 1000 < 1000 * self.empty:
            return ""
        changes = self.seed and digest("changes", self.seed, task, doc_id) % 2
        return answer_to(task, doc, self.seed if changes else 0, task, doc_id)

    def loglikelihood(self, requests: list[Instance]) -> Any:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        raise NotImplementedError
