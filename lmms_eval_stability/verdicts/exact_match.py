"""Benchmarks that compare one short answer for equality: GQA, and the shapes questions that ship with this package.

The comparison ignores case, punctuation and surrounding blanks, so the prediction is the answer without them:
"Red." and "red" are the same answer and do not diverge.
"""

from __future__ import annotations

import string

from .base import Adapter

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """The answer in lower case, without ASCII punctuation and without blanks at its ends."""
    return answer.strip().lower().translate(_NO_PUNCTUATION)


GQA = Adapter("exact match", normalise, tasks=("gqa",), metrics=("exact_match",))
SHAPES_VQA = Adapter("exact match", normalise, tasks=("shapes_vqa",), metrics=("exact_match",))
