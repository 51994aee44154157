"""MMMU: multiple choice read out of free text, and open questions with several candidate answers.

lmms-eval logs what it parsed but no score, and where it finds no choice it logs a letter drawn at random, from several
threads, so that two runs of one model differ. Answers are therefore parsed again, by the same rules, with the options
read back from the logged prompt. An answer without a choice is `unparsable`, and wrong.

The rules are those of `eval/eval_utils.py` of github.com/MMMU-Benchmark/MMMU as lmms-eval applies them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..samples import answer_of, as_text
from . import generic
from .base import UNPARSABLE, Adapter
from .pair_metrics import PairMetric, of_part

if TYPE_CHECKING:
    import pandas as pd

    from ..log_lines import Row

MULTIPLE_CHOICE = "multiple-choice"
#: How a letter stands in an answer, in order of preference, and what its last occurrence is looked up as.
_SIGNS = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))
#: An option's text counts as its letter only in answers of more words than this.
_FEW_WORDS = 5
#: Words after which an open answer is expected; "=" only counts in the last line.
_TRIVIAL = frozenset(":,.!?;'")
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.5, .5
)
Candidate = str | float


def choice_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that the answer names, None if it names none.

    Args:
        answer: without blanks at its ends.
        options: text of each letter, in order.
    """
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for sign, place in _SIGNS:
        if found := [letter for letter in options if sign.format(letter) in text]:
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) > _FEW_WORDS:
        low = text.lower()
        if found := [letter for letter, option in options.items() if option.lower() in low]:
            return max(found, key=lambda letter: low.rfind(options[letter].lower()))
    return None


@lru_cache(maxsize=4096)
def options_of(prompt: str) -> dict[str, str]:
    """The options in a prompt, by letter: the last list of lines that begin with "A. ", "B. ", ...

    Prompts without such a list give the letters A to D with texts that no answer contains.
    """
    text = f"\n{prompt}"
    at = text.rfind("\nA. ")
    if at < 0:
        return dict.fromkeys("ABCD", "\0")
    starts = [at]
    while (at := text.find(f"\n{chr(ord('A') + len(starts))}. ", starts[-1] + 1)) > 0:
        starts.append(at)
    texts = [text[start + 4 : end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    # what asks for the answer follows after an empty line, in Qwen's prompt on the next one
    texts[-1] = texts[-1].rpartition("\n\n")[0] if "\n\n" in texts[-1] else texts[-1].partition("\n")[0]
    return {chr(ord("A") + i): option for i, option in enumerate(texts)}


@lru_cache(maxsize=65536)
def candidates_of(answer: str) -> tuple[Candidate, ...]:
    """What an open answer may mean: texts after its cue words and all numbers in them, in an order of their own."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    tails = [_shortest_tail(line, (*_CUES, "=") if line_no == len(lines) else _CUES)
             for line_no, line in enumerate(lines, 1)]  # fmt: skip
    texts = [tail for tail in tails if tail and tail not in _TRIVIAL] or [whole]
    numbers = [number for text in texts for pattern in _NUMBERS for number in pattern.findall(text)]
    distinct = {repr(one): one for text in (*texts, *numbers) for one in _normal(text)}
    return tuple(sorted(distinct.values(), key=lambda one: (isinstance(one, str), repr(one))))


def _shortest_tail(line: str, cues: tuple[str, ...]) -> str:
    shortest = ""
    for cue in cues:
        if cue in line:
            tail = line.rpartition(cue)[2].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normal(text: str) -> tuple[Candidate, ...]:
    """A number to two places where the text is one; else lower case, single characters with a blank on either side."""
    text = text.strip()
    try:
        return (round(float(text.replace(",", "")), 2) + 0.0,)  # + 0.0: no negative zero
    except ValueError:
        low = text.lower()
        return (f" {low}", f"{low} ") if len(low) == 1 else (low,)


def open_is_right(reference: str | list[str], candidates: tuple[Candidate, ...]) -> bool:
    """Whether a candidate text contains a reference text, or a candidate number equals a reference number."""
    references = [reference] if isinstance(reference, str) else reference
    right = [one for text in references for one in _normal(text)]
    texts = [one for one in right if isinstance(one, str)]
    return any(
        any(text in candidate for text in texts) if isinstance(candidate, str) else candidate in right
        for candidate in candidates
    )


@lru_cache(maxsize=65536)
def _choice(answer: str, prompt: str) -> str | None:
    return choice_of(answer, options_of(prompt))


def _record(row: Row) -> dict[str, Any] | None:
    """What lmms-eval logs about one answer; None for several answers to one question, and for other tasks."""
    record = row.get("mmmu_acc")
    parsed = record.get("parsed_pred") if isinstance(record, dict) else None
    return record if isinstance(parsed, list) and len(parsed) == 1 else None


def _kind(row: Row) -> Any:
    record = _record(row)
    return None if record is None else as_text(record.get("question_type"))


def _text(row: Row) -> str:
    return answer_of(row["filtered_resps"])[0].strip()  # lmms-eval strips every answer before a task sees it


def _prediction(row: Row) -> str | None:
    kind = _kind(row)
    if kind is None:
        return None
    if kind == MULTIPLE_CHOICE:
        return _choice(_text(row), as_text(row["input"])) or UNPARSABLE
    return json.dumps(candidates_of(_text(row)), ensure_ascii=False)


def _score(row: Row) -> float | None:
    record = _record(row)
    if record is None or "answer" not in record:
        return None
    given = record["answer"]
    answers = [as_text(one) for one in given] if isinstance(given, list) else [as_text(given)]
    if _kind(row) == MULTIPLE_CHOICE:
        return float(_choice(_text(row), as_text(row["input"])) in answers)
    return float(open_is_right(answers, candidates_of(_text(row))))


def pair_metrics(frame: pd.DataFrame) -> tuple[PairMetric, ...]:
    """Accuracy on either kind of question, where the pairs have both."""
    choice = (frame["extra_baseline"] == MULTIPLE_CHOICE).to_numpy()
    if choice.all() or not choice.any():
        return ()
    return (
        of_part(frame, choice, "multiple-choice accuracy", "questions"),
        of_part(frame, ~choice, "open accuracy", "questions"),
    )


MMMU = Adapter(
    "MMMU",
    generic.normalise,
    ("mmmu_val",),
    ("mmmu_acc",),
    _prediction,
    _score,
    parses=True,
    extra=_kind,
    pair_metrics=pair_metrics,
)
