"""Multiple choice that asks for a letter and compares text: AI2D and ScienceQA.

Both read a letter from the beginning of an answer only if a full stop follows it ("B. a leaf"), and compare anything
else as it is: "(B)" and "The answer is B" are wrong, whatever the reference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..samples import answer_of
from . import exact_match
from .base import Adapter
from .pair_metrics import PairMetric, ratio

if TYPE_CHECKING:
    import pandas as pd

    from ..log_lines import Row

_LETTERED = re.compile(r"\s*([A-Z])\.")


def normalise_ai2d(answer: str) -> str:
    """The letter before a full stop at the beginning, else the answer; lower case, without punctuation.

    lmms-eval takes the letter before it logs an answer; on a logged one this rule finds the same.
    """
    found = _LETTERED.match(answer)
    return exact_match.normalise(found[1] if found else answer)


def normalise_scienceqa(answer: str) -> str:
    """The letter before a full stop at the beginning, else the answer; lower case."""
    text = answer.strip()
    return text[0].lower() if text[1:2] == "." and text[0].isupper() else text.lower()


def _ai2d(row: Row) -> Any:
    return normalise_ai2d(answer_of(row["filtered_resps"])[0])


def _scienceqa(row: Row) -> Any:
    return normalise_scienceqa(answer_of(row["filtered_resps"])[0])


def _no_letter(frame: pd.DataFrame) -> tuple[PairMetric, ...]:
    """The share of answers that are no single letter, where the references are letters and any answer is none."""
    if not all(len(target) == 1 for target in set(frame["target"])):
        return ()  # another prompt format of the task, which asks for the text of an option
    n = len(frame)
    before, after = (sum(len(text) != 1 for text in frame[f"extra_{side}"]) for side in ("baseline", "run"))
    if not before and not after:
        return ()
    return (PairMetric("answers that are no letter", n, "pairs", ratio(before, n), ratio(after, n)),)


AI2D = Adapter(exact_match.NAME, normalise_ai2d, ("ai2d",), ("exact_match",), extra=_ai2d, pair_metrics=_no_letter)
SCIENCEQA = Adapter(
    "ScienceQA", normalise_scienceqa, ("scienceqa",), ("exact_match",), extra=_scienceqa, pair_metrics=_no_letter
)  # fmt: skip
