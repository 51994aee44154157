"""The numbers that a benchmark reports beside, or instead of, the mean over its samples, for a pair of runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from ..divergence import NO_RATE, Rate, wilson

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PairMetric:
    """One number of a benchmark for both runs of a pair. All values are fractions.

    Attributes:
        name: "F1", "open recall", ...
        n: how many of `unit` it is about.
        unit: what n counts: "pairs", "rows", "questions", ...
        baseline, run: the number for either run; nan where there is nothing to count.
        dr, ndr, pdr: divergence over the n; without a value where the metric is no mean over them.
        native: the score in the results JSON that is `scale` times this one; empty where none is.
        task: the task; set by the comparison.
    """

    name: str
    n: int
    unit: str
    baseline: float
    run: float
    dr: Rate = NO_RATE
    ndr: Rate = NO_RATE
    pdr: Rate = NO_RATE
    native: str = ""
    scale: float = 1.0
    task: str = ""

    @property
    def drop(self) -> float:
        """Baseline minus run; positive when the run is worse (or, of a rate such as "yes rate", lower)."""
        return self.baseline - self.run

    def record(self) -> dict[str, Any]:
        """The metric as one flat dict for JSON, with the keys of `divergence.Divergence` where they mean the same."""
        flat: dict[str, Any] = {"task": self.task, "metric": self.name, "n": self.n, "unit": self.unit}
        flat |= {"score_baseline": self.baseline, "score_run": self.run, "drop": self.drop}
        for name in ("dr", "ndr", "pdr"):
            rate: Rate = getattr(self, name)
            flat |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in flat.items()}


def ratio(count: int, total: int) -> float:
    """`count / total`; nan for nothing to count."""
    return count / total if total else nan


def of_part(frame: pd.DataFrame, part: Mask, name: str, unit: str, native: str = "") -> PairMetric:
    """The mean score and the divergence over a part of the pairs.

    Args:
        frame: pairs, see `pairing.PairedSamples`.
        part: which of them, shape (pairs,).
    """
    chosen = frame[part]
    before, after = chosen["correct_baseline"].to_numpy(bool), chosen["correct_run"].to_numpy(bool)
    scores = (chosen[f"score_{side}"].to_numpy(float) for side in ("baseline", "run"))
    means = [float(score.mean()) if len(chosen) else nan for score in scores]
    rates = of_verdicts(before, after, chosen["changed"].to_numpy(bool))
    return PairMetric(name, len(chosen), unit, means[0], means[1], *rates, native=native)


def of_verdicts(before: Mask, after: Mask, changed: Mask) -> tuple[Rate, Rate, Rate]:
    """DR, NDR and PDR from who is right before and after and whose prediction changed, each of shape (n,)."""
    counts = (changed, before & ~after, ~before & after)
    dr, ndr, pdr = (wilson(int(count.sum()), len(before)) for count in counts)
    return dr, ndr, pdr
