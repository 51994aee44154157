"""POPE: yes-or-no questions about objects, reported as F1, precision and recall of "yes" beside accuracy.

The answer is compared as it is but for case and surrounding blanks: "yes." is neither yes nor no. The three scores
count as in lmms-eval, where such an answer to a yes question is no false negative: recall is over the answers "yes"
and "no" only. lmms-eval's own `pope_yes_ratio` is the share of yes among the references, whatever the
model says; the yes rate here is the share of yes among the answers.
"""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any

from ..samples import answer_of
from .base import Adapter
from .pair_metrics import PairMetric, ratio

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Texts = NDArray[np.object_]


def normalise(answer: str) -> str:
    """The answer in lower case without blanks at its ends."""
    return answer.lower().strip()


def _logged(row: dict[str, Any]) -> str | None:
    record = row.get("pope_accuracy")
    prediction = record.get("prediction") if isinstance(record, dict) else None
    return prediction if isinstance(prediction, str) else None


def _scored(row: dict[str, Any]) -> str:
    logged = _logged(row)
    return normalise(answer_of(row["filtered_resps"])[0]) if logged is None else logged


def rates(said: Texts, truth: Texts) -> dict[str, float]:
    """F1, precision, recall and yes rate of one run, and the share of answers that are neither yes nor no.

    Args:
        said: normalised answers, shape (n,).
        truth: "yes" or "no" for each, shape (n,).

    As in lmms-eval, precision, recall and F1 are 0 where nothing counts towards them.
    """
    n = len(said)
    yes = said == "yes"
    hits, alarms = int((yes & (truth == "yes")).sum()), int((yes & (truth == "no")).sum())
    misses = int(((said == "no") & (truth == "yes")).sum())
    precision = hits / (hits + alarms) if hits + alarms else 0.0
    recall = hits / (hits + misses) if hits + misses else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    neither = n - int(yes.sum()) - int((said == "no").sum())
    return {
        "F1": f1 if n else nan,
        "precision": precision if n else nan,
        "recall": recall if n else nan,
        "yes rate": ratio(int(yes.sum()), n),
        "neither yes nor no": ratio(neither, n),
    }


_NATIVE = {"F1": "pope_f1_score", "precision": "pope_precision", "recall": "pope_recall"}


def pair_metrics(frame: pd.DataFrame) -> tuple[PairMetric, ...]:
    """The metrics of both runs over their pairs."""
    import numpy as np

    truth = np.array([normalise(target) for target in frame["target"]], dtype=object)
    before, after = (rates(frame[f"extra_{side}"].to_numpy(), truth) for side in ("baseline", "run"))
    return tuple(
        PairMetric(name, len(frame), "pairs", before[name], after[name], native=_NATIVE.get(name, ""))
        for name in before
        if name != "neither yes nor no" or before[name] or after[name]
    )


POPE = Adapter(
    "POPE", normalise, ("pope",), ("pope_accuracy",), _logged, extra=_scored, pair_metrics=pair_metrics
)  # fmt: skip
