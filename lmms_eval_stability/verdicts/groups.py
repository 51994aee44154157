"""`shapes_vqa_spurious`: accuracy where the background has the answer's colour, where it has another, and at its worst.

A mean over samples hides a model that follows the background, as most backgrounds are right. Groups are answer x
(aligned or conflicting), as usual for worst-group accuracy (Sagawa et al., ICLR 2020, section 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Adapter
from .exact_match import NAME, normalise
from .pair_metrics import PairMetric, of_part

if TYPE_CHECKING:
    import pandas as pd

ALIGNED, CONFLICTING = "aligned", "conflicting"


def _group(row: dict[str, Any]) -> str | None:
    """The task's name of the line's group, answer and alignment; None where the line does not hold them."""
    record = row.get("shapes_record")
    group, answer = (record.get(key) if isinstance(record, dict) else None for key in ("group", "answer"))
    return f"{answer} {group}" if isinstance(answer, str) and isinstance(group, str) else None


def pair_metrics(frame: pd.DataFrame) -> tuple[PairMetric, ...]:
    """Accuracy on aligned and on conflicting backgrounds, and of the worst group, which may differ between the runs."""
    groups = frame["extra_baseline"]
    named = sorted(set(groups.dropna()))
    if not named:
        return ()
    sides = {side: groups.isin([one for one in named if one.endswith(f" {side}")]) for side in (ALIGNED, CONFLICTING)}
    parts = [of_part(frame, mask.to_numpy(bool), side, "pairs") for side, mask in sides.items()]
    each = [of_part(frame, (groups == one).to_numpy(bool), one, "pairs") for one in named]
    worst = PairMetric(
        "worst group",
        len(each),
        "groups",
        min(one.baseline for one in each),
        min(one.run for one in each),
        native="worst_group_accuracy",
    )
    return (*parts, worst)


SHAPES_SPURIOUS = Adapter(
    NAME, normalise, ("shapes_vqa_spurious",), ("exact_match",), extra=_group, pair_metrics=pair_metrics
)
