"""Benchmarks that compare one short answer for equality: GQA, the shapes questions that ship with this package, and
every task whose results JSON says how lmms-eval's own `exact_match` compared.

GQA's comparison ignores case, punctuation and surrounding blanks, so the prediction is the answer without them:
"Red." and "red" are the same answer and do not diverge.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from .base import Adapter

NAME = "exact match"
#: Options of lmms-eval's `exact_match` that say which answers are equal.
OPTIONS = ("regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers")
_NO_DIGITS = str.maketrans("", "", string.digits)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """The answer in lower case, without ASCII punctuation and without blanks at its ends."""
    return answer.strip().lower().translate(_NO_PUNCTUATION)


def adapter_of(options: Mapping[str, Any]) -> Adapter | None:
    """The adapter of a task that lmms-eval scored by `exact_match` with these options; None for a broken pattern."""
    listed = options.get("regexes_to_ignore") or ()
    if not (isinstance(listed, (list, tuple)) and all(isinstance(pattern, str) for pattern in listed)):
        return None
    try:
        patterns = [re.compile(pattern) for pattern in listed]
    except re.error:
        return None

    def compared(answer: str) -> str:
        text = answer.strip()  # lmms-eval strips every answer before a task sees it
        for pattern in patterns:
            text = pattern.sub("", text)
        text = text.lower() if options.get("ignore_case") else text
        text = text.translate(_NO_PUNCTUATION) if options.get("ignore_punctuation") else text
        return text.translate(_NO_DIGITS) if options.get("ignore_numbers") else text

    return Adapter(NAME, compared, metrics=("exact_match",))


GQA = Adapter(NAME, normalise, tasks=("gqa",), metrics=("exact_match",))
SHAPES_VQA = Adapter(NAME, normalise, tasks=("shapes_vqa",), metrics=("exact_match",))
