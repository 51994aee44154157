"""MMBench: a letter read out of free text, and questions asked again with their options rotated.

lmms-eval logs answers without scores. It reads a letter by rule where it can; for the rest, `mmbench_en_dev` asks a
language model and, without one, draws a letter at random, while `mmbench_en_dev_static` reads more generously. Neither
is in the log, so answers are read again by the same rules. What no rule reads is `unparsable`, and wrong.

Of rows whose index differs by multiples of a million, each is one question with its options in another order. The
benchmark counts a question as right only if all of its rows are: "circular" accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import generic
from .base import UNPARSABLE, Adapter
from .pair_metrics import PairMetric, of_part, of_verdicts, ratio

if TYPE_CHECKING:
    import pandas as pd

    from ..log_lines import Row

#: Index of a question + n times this: the same question, its options rotated n times.
ROTATION = 1_000_000
_LETTERS = "ABCDE"
#: What may stand around a letter that is a word of its own, in order of preference.
_AROUND = (
    *(("", after) for after in (".", ",", ":", ")", ").")),
    *(("(", after) for after in (")", ").")),
    *((":", after) for after in ("", ",", ".", ")", ").")),
)
_NO_ANSWER = "Failed to obtain answer via API"
#: From this many words on, a lone "A" may be an article.
_MANY_WORDS = 4

_NOUNS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
_PHRASES = (
    *(f"{article}{noun} is" for article in ("the ", "") for noun in _NOUNS),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_MARKED = ("({})", "{}.", "{}:", "{})", "{} ", "{}")


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that the answer names: as a word of its own, else the only option whose text the answer contains.

    Args:
        answer: without blanks at its ends.
        options: text of each letter in lower case.
    """
    if _NO_ANSWER not in answer and (letter := _lone_letter(answer.split())):
        return letter
    low = answer.lower()
    contained = [letter for letter, option in options.items() if option in low]
    return contained[0] if len(contained) == 1 else None


def _lone_letter(words: list[str]) -> str | None:
    alone = [letter for letter in _LETTERS if letter in words]
    if len(alone) == 1 and not (alone == ["A"] and len(words) >= _MANY_WORDS):
        return alone[0]
    for before, after in _AROUND:
        found = [letter for letter in _LETTERS if f"{before}{letter}{after}" in words]
        if len(found) == 1:
            return found[0]
    return None


def generous_letter_of(answer: str, letters: str) -> str | None:
    """lmms-eval's second reading for `mmbench_en_dev_static`: a capital letter anywhere, most telling place first.

    The places are: beginning, end, after a phrase ("the answer is"), "(A)", "A.", "A:", "A)", "A " and anywhere; of
    several letters in one kind of place, the last.

    Args:
        answer: any text.
        letters: those to look for, A to H if empty.
    """
    text = answer.strip()
    if not text:
        return None
    letters = letters or "ABCDEFGH"
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    padded = f" {text} "
    text = padded.strip()
    for edge, neighbour in ((text[:1], text[1:2]), (text[-1:], text[-2:-1])):
        if edge and edge in letters and not neighbour.isalpha():
            return edge
    low = padded.lower()
    starts = [low.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in low]
    places = [[(padded.find(letter, start), letter) for start in starts for letter in letters]]
    places += [[(padded.rfind(mark.format(letter)), letter) for letter in letters] for mark in _MARKED]
    for found in places:
        at, letter = max(found, default=(-1, ""), key=lambda one: one[0])
        if at >= 0:
            return letter
    return None


@lru_cache(maxsize=65536)
def _letter(answer: str, options: tuple[tuple[str, str], ...], generous: bool) -> str | None:
    letter = letter_of(answer, dict(options))
    if letter is None and generous:
        return generous_letter_of(answer, "".join(letter for letter, _ in options))
    return letter


def _record(row: Row) -> dict[str, Any] | None:
    record = row.get("gpt_eval_score")
    return record if isinstance(record, dict) and isinstance(record.get("prediction"), str) else None


def options_of(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Letter and text in lower case of each option that there is; missing ones are null or NaN, never an empty text."""
    given = ((letter, record.get(letter)) for letter in "ABCD")
    return tuple((letter, str(text).lower()) for letter, text in given if text is not None and text == text)


def _read(row: Row, generous: bool) -> str | None:
    record = _record(row)
    return None if record is None else _letter(record["prediction"], options_of(record), generous) or UNPARSABLE


def _score(row: Row, generous: bool) -> float | None:
    record = _record(row)
    return None if record is None else float(_read(row, generous) == record.get("answer"))


def _index(row: Row) -> int | None:
    record = _record(row)
    index = None if record is None else record.get("index")
    return index if type(index) is int and index >= 0 else None


def pair_metrics(frame: pd.DataFrame) -> tuple[PairMetric, ...]:
    """Accuracy over rows, and circular accuracy and divergence over questions.

    A question counts if its row with the smallest index (below a million) is there; its prediction has changed if
    that of any of its rows has.
    """
    import numpy as np

    rows = of_part(frame, np.ones(len(frame), dtype=bool), "row accuracy", "rows")
    known = frame[frame["extra_baseline"].notna()]
    if known.empty:
        return (rows,)
    index = known["extra_baseline"].to_numpy(dtype=np.int64)
    questions = known.groupby(index % ROTATION)
    asked = np.unique(index[index < ROTATION])
    before, after = (questions[f"correct_{side}"].all().loc[asked].to_numpy(bool) for side in ("baseline", "run"))
    changed = questions["changed"].any().loc[asked].to_numpy(bool)
    return (
        PairMetric(
            "circular accuracy",
            len(asked),
            "questions",
            ratio(int(before.sum()), len(asked)),
            ratio(int(after.sum()), len(asked)),
            *of_verdicts(before, after, changed),
            native="gpt_eval_score",
            scale=100.0,
        ),
        rows,
    )


def _adapter(name: str, tasks: tuple[str, ...], generous: bool) -> Adapter:
    return Adapter(
        name,
        generic.normalise,
        tasks,
        ("gpt_eval_score",),
        lambda row: _read(row, generous),
        lambda row: _score(row, generous),
        parses=True,
        extra=_index,
        pair_metrics=pair_metrics,
    )


MMBENCH = _adapter("MMBench", ("mmbench_en_dev", "mmbench_cn_dev", "mmbench_ko_dev", "mmbench_ru_dev"), generous=False)
MMBENCH_STATIC = _adapter("MMBench, static", ("mmbench_en_dev_static",), generous=True)
