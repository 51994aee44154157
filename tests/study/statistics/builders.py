"""Paired samples made directly, without logs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lmms_eval_stability.pairing import PairedSamples


def pairs(
    before: Sequence[float],
    after: Sequence[float],
    answers: tuple[Sequence[str], Sequence[str]] | None = None,
    docs: Sequence[int] | None = None,
    task: str = "gqa",
    correct_at: float = 0.9,
) -> PairedSamples:
    """Pairs with these scores; without answers, equal scores have equal ones."""
    first, second = np.array(before, dtype=float), np.array(after, dtype=float)
    one, other = answers or ([str(s) for s in first], [str(s) for s in second])
    right, still = first >= correct_at - 1e-6, second >= correct_at - 1e-6
    flip = np.where(right & ~still, "negative", np.where(~right & still, "positive", "")).astype(object)
    ids = np.arange(len(first)) if docs is None else np.array(docs)
    frame = pd.DataFrame(
        {
            "doc_id": ids.astype(np.int64),
            "target": pd.Series(["t"] * len(first), dtype=object),
            "prediction_baseline": pd.Series(list(one), dtype=object),
            "prediction_run": pd.Series(list(other), dtype=object),
            "score_baseline": first,
            "score_run": second,
            "correct_baseline": right,
            "correct_run": still,
            "changed": np.array([a != b for a, b in zip(one, other, strict=True)], dtype=bool),
            "flip": pd.Series(flip, dtype=object),
        }
    )
    return PairedSamples(task, "exact_match", frame, adapter="exact match")
