"""Whether confidence tells inputs like those of training from others: detection of out-of-distribution (OOD) inputs.

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR
2017: the model's confidence as the detector's score, in-distribution (ID) inputs expected to have the greater one. FPR
at 95 % TPR: Liang, Li and Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural
Networks", ICLR 2018. Both runs answer the same inputs, so they are compared in pairs.

Every number is a function of the samples' weights, as in `reliability_scores`: one piece of code gives the value and
its bootstrap replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from .divergence import Rate
from .reliability_scores import SEED, drawn_weights, percentiles, replicates_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

#: Share of ID inputs that the threshold of FPR95 has to accept.
TPR = 0.95
#: The numbers, in the order of every output, with what they are called in tables.
DETECTION_SCORES = {
    "auroc": "AUROC",
    "aupr_in": "AUPR, ID positive",
    "aupr_out": "AUPR, OOD positive",
    "fpr95": f"FPR at {TPR:.0%} TPR",
    "confidence_in": "mean confidence, ID",
    "confidence_out": "mean confidence, OOD",
}


class Detector:
    """The numbers of one run's confidences on ID and on OOD inputs.

    A threshold accepts inputs at least as confident as it is. Equal confidences are accepted or rejected together,
    which no threshold can part, so ties are never resolved in the detector's favour: they count one half in AUROC, are
    one step of a precision-recall curve, and are accepted as a whole where 95 % TPR falls among them (FPR95 is then
    the higher one).

    Args:
        inside, outside: confidences (n_id,) and (n_ood,), all known; the greater the surer.

    Raises ValueError for a confidence that is not finite, and for an empty set.
    """

    def __init__(self, inside: ArrayLike, outside: ArrayLike) -> None:
        import numpy as np

        parts = [np.asarray(part, dtype=float) for part in (inside, outside)]
        if not all(len(part) and np.isfinite(part).all() for part in parts):
            raise ValueError("confidence in and out of distribution: each needs samples, all of them known")
        self._parts = parts
        values = np.unique(np.concatenate(parts))
        self._places = [np.searchsorted(values, part) for part in parts]
        self._levels = len(values)

    def scores(self, inside: Floats, outside: Floats) -> dict[str, Floats]:
        """(r,) of each of `DETECTION_SCORES`.

        Args:
            inside, outside: weights (r, n_id) and (r, n_ood), at least 0; a set without any gives nan.
        """
        import numpy as np

        accepted, false = (self._summed(w, at) for w, at in zip((inside, outside), self._places, strict=True))
        total, wrong = accepted[:, -1:], false[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = accepted / total, false / wrong
            # chance that an ID input has the greater confidence: the area under a ROC curve of straight pieces
            steps = np.diff(fpr, axis=1, prepend=0.0)
            before = np.concatenate([np.zeros_like(total), tpr[:, :-1]], axis=1)
            # a draw's sums of many weights reach 95 % exactly where the data do: not a rounding error later
            first = (tpr < TPR - 1e-12).sum(axis=1)
            found = {
                "auroc": (steps * (tpr + before) / 2).sum(axis=1),
                "aupr_in": _average_precision(accepted, false),
                "aupr_out": _average_precision(*(_from_below(part) for part in (false, accepted))),
                "fpr95": fpr[np.arange(len(fpr)), np.minimum(first, self._levels - 1)],
                "confidence_in": inside @ self._parts[0] / total[:, 0],
                "confidence_out": outside @ self._parts[1] / wrong[:, 0],
            }
        known = (total * wrong)[:, 0] > 0
        return {name: np.where(known, found[name], nan) for name in DETECTION_SCORES}

    def _summed(self, weights: Floats, places: NDArray[np.intp]) -> Floats:
        """(r, levels) weight at least as confident as each level, from the highest level to the lowest."""
        import numpy as np
        from scipy.sparse import csr_array

        n = len(places)
        into = csr_array((np.ones(n), (np.arange(n), self._levels - 1 - places)), shape=(n, self._levels))
        return np.asarray(np.cumsum(weights @ into, axis=1), dtype=float)


def _from_below(summed: Floats) -> Floats:
    """The same sums from the lowest level to the highest: confidence turned round."""
    import numpy as np

    return np.asarray(np.cumsum(np.diff(summed, axis=1, prepend=0.0)[:, ::-1], axis=1), dtype=float)


def _average_precision(hits: Floats, false: Floats) -> Floats:
    """Sum over the levels of precision times the recall gained there, of (r, levels) cumulated sums.

    No interpolation, which is too optimistic (Davis and Goadrich, ICML 2006).
    """
    import numpy as np

    covered = hits + false
    precision = np.where(covered > 0, hits / covered, 0.0)
    return np.asarray((np.diff(hits, axis=1, prepend=0.0) * precision).sum(axis=1) / hits[:, -1], dtype=float)


@dataclass(frozen=True)
class DetectionScore:
    """One number of both runs, each with its interval.

    Attributes:
        name: one of `DETECTION_SCORES`. difference: run minus baseline.
    """

    name: str
    baseline: Rate
    run: Rate
    difference: Rate


@dataclass(frozen=True)
class Confidences:
    """Confidences of both runs on the same inputs.

    Attributes:
        baseline, run: (n,), all known. clusters: (n,) numbers from 0; None: each sample its own.
    """

    baseline: ArrayLike
    run: ArrayLike
    clusters: ArrayLike | None = None


def detection_scores(
    inside: Confidences,
    outside: Confidences,
    *,
    replicates: int | None = None,
    level: float = 0.95,
    seed: int = SEED,
) -> list[DetectionScore]:
    """All `DETECTION_SCORES` of both runs and their differences, with percentile intervals of the cluster bootstrap.

    Both runs are drawn together, cluster by cluster; ID and OOD inputs are two samples and drawn independently, each
    with its own size. Intervals are nan where either set has fewer than two clusters, and where all replicates agree.

    Args:
        inside, outside: ID and OOD inputs.
        replicates, level, seed: of the bootstrap; as many as `replicates_for` both sets if None.

    Raises ValueError for an empty set, unknown confidences, and lengths that differ.
    """
    import numpy as np

    sizes = [_size(part) for part in (inside, outside)]
    replicates = replicates_for(sum(sizes)) if replicates is None else replicates
    detectors = [Detector(*pair) for pair in ((inside.baseline, outside.baseline), (inside.run, outside.run))]
    values = [detector.scores(np.ones((1, sizes[0])), np.ones((1, sizes[1]))) for detector in detectors]
    drawn: list[list[dict[str, Floats]]] = [[], []]
    # the same seed would draw two sets of equal size alike
    seeds = np.random.SeedSequence(seed).spawn(2)
    sets = [
        drawn_weights(size, part.clusters, replicates, one, together=sum(sizes))
        for size, part, one in zip(sizes, (inside, outside), seeds, strict=True)
    ]
    for weights in zip(*sets, strict=False):
        for found, detector in zip(drawn, detectors, strict=True):
            found.append(detector.scores(*weights))
    return [_score(name, values, drawn, level) for name in DETECTION_SCORES]


def _size(part: Confidences) -> int:
    import numpy as np

    sizes = {len(np.asarray(one)) for one in (part.baseline, part.run, part.clusters) if one is not None}
    if len(sizes) > 1:
        raise ValueError("confidences of both runs, and clusters: not one of each per sample")
    return sizes.pop()


def _score(
    name: str, values: list[dict[str, Floats]], drawn: list[list[dict[str, Floats]]], level: float
) -> DetectionScore:
    import numpy as np

    before, after = (float(one[name][0]) for one in values)
    replicates = [np.concatenate([one[name] for one in run] or [np.empty(0)]) for run in drawn]
    return DetectionScore(
        name,
        Rate(before, *percentiles(replicates[0], level)),
        Rate(after, *percentiles(replicates[1], level)),
        Rate(after - before, *percentiles(replicates[1] - replicates[0], level)),
    )
