"""Any other task with a number per sample.

What the benchmark compares is not known here, so the prediction is the logged answer with case and white space evened
out and nothing else: removing punctuation would make "3.5" and "35" one answer. It is the cautious side: two answers
that the benchmark treats as equal can still count as different.
"""

from __future__ import annotations

from .base import Adapter


def normalise(answer: str) -> str:
    """The answer in lower case with every run of white space as one blank and none at its ends."""
    return " ".join(answer.lower().split())


GENERIC = Adapter("text", normalise, metrics=("exact_match", "acc", "accuracy", "score"))

#: Multiple choice by log-likelihood: the reader has already turned the numbers into the choice they make.
CHOICE = Adapter("most likely choice", str)
