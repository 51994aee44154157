"""VQA-RAD as the `vqa_rad` tasks of this package score it: closed questions 0 or 1, open ones by token recall.

Either way the score is soft in the sense of the threshold, and two answers are the same when they are after the
task's normalisation, which the log holds.
"""

from __future__ import annotations

from typing import Any

from .base import Adapter
from .soft_vqa import spell, strip_punctuation


def normalise(answer: str) -> str:
    """The clean-up of LLaVA-Med's evaluation: lower case, no punctuation, no articles, numbers up to ten as digits."""
    return spell(strip_punctuation(answer.strip().lower()))


def _logged(row: dict[str, Any]) -> str | None:
    record = row.get("vqa_rad_record")
    prediction = record.get("pred") if isinstance(record, dict) else None
    return prediction if isinstance(prediction, str) else None


VQA_RAD = Adapter("VQA-RAD", normalise, ("vqa_rad",), ("vqa_rad_score",), _logged)
