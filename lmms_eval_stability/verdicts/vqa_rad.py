"""VQA-RAD as the `vqa_rad` tasks of this package score it: closed questions 0 or 1, open ones by token recall.

Either way the score is soft in the sense of the threshold, and two answers are the same when they are after the
task's normalisation, which the log holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Adapter
from .pair_metrics import PairMetric, of_part
from .soft_vqa import spell, strip_punctuation

if TYPE_CHECKING:
    import pandas as pd

_CLOSED = frozenset({"yes", "no"})


def normalise(answer: str) -> str:
    """The clean-up of LLaVA-Med's evaluation: lower case, no punctuation, no articles, numbers up to ten as digits."""
    return spell(strip_punctuation(answer.strip().lower()))


def _logged(row: dict[str, Any]) -> str | None:
    record = row.get("vqa_rad_record")
    prediction = record.get("pred") if isinstance(record, dict) else None
    return prediction if isinstance(prediction, str) else None


def pair_metrics(frame: pd.DataFrame) -> tuple[PairMetric, ...]:
    """Recall over open questions, accuracy over closed ones (yes or no), and both weighted by their questions.

    The drop of the last is that of Sun et al. (EMNLP 2025), table 6.
    """
    import numpy as np

    kinds = {target: normalise(target) in _CLOSED for target in set(frame["target"])}
    closed = np.array([kinds[target] for target in frame["target"]], dtype=bool)
    return (
        of_part(frame, ~closed, "open recall", "questions", "vqa_rad_open_recall"),
        of_part(frame, closed, "closed accuracy", "questions", "vqa_rad_closed_accuracy"),
        of_part(frame, closed | ~closed, "open and closed, sample-weighted", "questions", "vqa_rad_score"),
    )


VQA_RAD = Adapter("VQA-RAD", normalise, ("vqa_rad",), ("vqa_rad_score",), _logged, pair_metrics=pair_metrics)
