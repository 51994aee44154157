"""What the changed answers changed into: DR taken apart by right and wrong."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any

from .divergence import Rate, wilson

if TYPE_CHECKING:
    from .pairing import PairedSamples


@dataclass(frozen=True)
class Changes:
    """Every pair is in one of these groups, as a share of all n pairs; all nan without pairs.

    Attributes:
        same: the prediction and the verdict stayed.
        right_to_wrong, wrong_to_right: the verdict changed: NDR and PDR.
        wrong_to_other_wrong: another wrong answer. No score sees it, and yet the model behaves otherwise.
        right_to_other_right: another right answer: soft scores and benchmarks with several references only.

    DR is the sum of the last four, less the flips whose prediction stayed the same (`Divergence.same_prediction_flips`,
    0 wherever equal predictions get equal verdicts).
    """

    n: int
    same: Rate
    right_to_wrong: Rate
    wrong_to_right: Rate
    wrong_to_other_wrong: Rate
    right_to_other_right: Rate


#: Names of the groups.
GROUPS = tuple(item.name for item in fields(Changes) if item.name != "n")


@dataclass(frozen=True)
class TaskChanges:
    """The changes of one task of a run."""

    task: str
    changes: Changes

    def record(self) -> dict[str, Any]:
        """One flat dict: task, n, and each group with the ends of its interval; None for what there is not."""
        flat: dict[str, Any] = {"task": self.task, "n": self.changes.n}
        for name in GROUPS:
            rate: Rate = getattr(self.changes, name)
            flat |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in flat.items()}


def changes(pairs: PairedSamples) -> Changes:
    """Count the groups of one task's pairs."""
    frame = pairs.frame
    before, after = frame["correct_baseline"].to_numpy(dtype=bool), frame["correct_run"].to_numpy(dtype=bool)
    changed, flipped = frame["changed"].to_numpy(dtype=bool), before != after
    groups = (
        ~changed & ~flipped,
        before & ~after,
        ~before & after,
        changed & ~before & ~after,
        changed & before & after,
    )
    n = len(frame)
    return Changes(n, *(wilson(int(group.sum()), n) for group in groups))
