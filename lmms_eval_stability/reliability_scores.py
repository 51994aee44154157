"""Whether confidence can be relied on, for baseline and run, and the interval of their difference.

Every number is a function of the samples' weights, so that the same code gives the value (all weights 1) and its
bootstrap replicates (how often each sample's cluster was drawn), many at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from .binned_intervals import BINNED, NO_CORRECTED, Gaps, corrected_differences
from .calibration import RESOLUTION, bin_numbers
from .divergence import NO_RATE, Rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

#: Of bootstrap and test, see `replicates_for`.
MOST_REPLICATES, LEAST_REPLICATES, SEED = 1_000, 200, 0
#: Replicates times samples: about ten seconds.
_WORK = 20_000_000
#: Bins of ECE, whose value depends on them.
BINS = 15
#: Coverage at which selective accuracy is stated.
COVERAGE = 0.8
#: Numbers held at once while drawing: 16 MB for each of the few arrays.
_BLOCK = 1 << 21

#: The numbers, in the order of every output, with what they are called in tables.
SCORES = {
    "accuracy": "accuracy",
    "confidence": "mean confidence",
    "gap": "confidence − accuracy",
    "ece_mass": f"ECE ({BINS} bins of equal mass)",
    "ece_width": f"ECE ({BINS} bins of equal width)",
    "over_confidence": "over-confidence",
    "under_confidence": "under-confidence",
    "ece_calibrated": "ECE of a calibrated model (mass)",
    "brier": "Brier",
    "nll": "NLL (nats)",
    "auroc": "AUROC of confidence for correctness",
    "aurc": "AURC",
    "selective_accuracy": f"accuracy at {COVERAGE:.0%} coverage",
}


class Scorer:
    """The numbers of one run's confidences, see `docs/reliability.md` for what each is.

    Args:
        confidence: (n,) in [0, 1], all known. correct: (n,) bool.

    Raises ValueError for a confidence outside [0, 1].
    """

    def __init__(self, confidence: ArrayLike, correct: ArrayLike) -> None:
        import numpy as np

        sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
        if not ((sure >= 0) & (sure <= 1 + RESOLUTION)).all():
            raise ValueError("a confidence is unknown or lies outside [0, 1]; log-probabilities need exp() first")
        self.order = np.argsort(sure, kind="stable")
        self._sure = np.minimum(sure[self.order], 1.0)
        self._right = right[self.order].astype(float)
        # in order of confidence, bins and groups of equal confidences are stretches: their sums are differences of
        # cumulated ones
        self._bins = {scheme: _ends(bin_numbers(self._sure, BINS, scheme)) for scheme in ("mass", "width")}
        self._equal = _ends(self._sure)
        clipped = np.clip(self._sure, np.finfo(float).eps, 1 - np.finfo(float).eps)
        self._brier = (self._sure - self._right) ** 2
        # of a calibrated model the summed gap of a bin has this variance, and the mean size of a normal with it
        self._variance = self._sure * (1 - self._sure)
        self._nll = -np.log(np.where(self._right > 0, clipped, 1 - clipped))

    def scores(self, weights: Floats) -> dict[str, Floats]:
        """(r,) of each of `SCORES`, for r sets of weights.

        Args:
            weights: (r, n), in the order of the samples; at least 0. A set without any gives nan.
        """
        return self.scores_and_gaps(weights)[0]

    def scores_and_gaps(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """`scores`, and the (r, bins) gaps behind the `BINNED` ones, by scheme, see `binned_intervals.Gaps`."""
        import numpy as np

        w = weights[:, self.order]
        total = w.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            summed = [np.cumsum(part, axis=1) for part in (w, w * self._right, w * self._sure)]
            size, hits = (_groups(part, self._equal) for part in summed[:2])
            gaps = {scheme: _gaps(summed, ends) for scheme, ends in self._bins.items()}
            noise = _groups(np.cumsum(w * self._variance, axis=1), self._bins["mass"])
            found = {
                "accuracy": w @ self._right / total,
                "confidence": w @ self._sure / total,
                "gap": w @ (self._sure - self._right) / total,
                "ece_mass": np.abs(gaps["mass"]).sum(axis=1) / total,
                "ece_width": np.abs(gaps["width"]).sum(axis=1) / total,
                "over_confidence": np.maximum(gaps["mass"], 0.0).sum(axis=1) / total,
                "under_confidence": np.maximum(-gaps["mass"], 0.0).sum(axis=1) / total,
                "ece_calibrated": np.sqrt(2 / np.pi * noise).sum(axis=1) / total,
                "brier": w @ self._brier / total,
                "nll": w @ self._nll / total,
                "auroc": _auroc(hits, size - hits),
                **_selective(size, size - hits),
            }
            gaps = {scheme: part / total[:, None] for scheme, part in gaps.items()}
        return {name: np.asarray(found[name], dtype=float) for name in SCORES}, gaps

    def gaps(self, drawn: list[dict[str, Floats]]) -> dict[str, Gaps]:
        """By scheme, the gaps of the data with those of bootstrap samples: one block or more of `scores_and_gaps`."""
        import numpy as np

        n, variance = len(self._variance), np.cumsum(self._variance)[None]
        _, whole = self.scores_and_gaps(np.ones((1, n)))
        errors = {scheme: np.sqrt(_groups(variance, ends)[0].clip(0)) / n for scheme, ends in self._bins.items()}
        blocks = {scheme: np.concatenate([block[scheme] for block in drawn]) for scheme in whole}
        return {scheme: Gaps(values[0], blocks[scheme], errors[scheme]) for scheme, values in whole.items()}


def replicates_for(n: int) -> int:
    """1,000 for up to 20,000 samples; fewer for more, but at least 200, whose ends are good to a tenth of the width."""
    return max(LEAST_REPLICATES, min(MOST_REPLICATES, _WORK // max(n, 1)))


def _ends(values: NDArray[np.generic]) -> NDArray[np.intp]:
    """Places of the last element of each stretch of equal values."""
    import numpy as np

    if not len(values):
        return np.empty(0, dtype=np.intp)
    return np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)


def _groups(summed: Floats, ends: NDArray[np.intp]) -> Floats:
    """(r, groups) sums of each stretch, from the cumulated sums."""
    import numpy as np

    return np.diff(summed[:, ends], axis=1, prepend=0.0)


def _gaps(summed: list[Floats], ends: NDArray[np.intp]) -> Floats:
    """(r, bins) summed confidence minus right answers: above 0 where the model is too sure."""
    _, hits, sure = (_groups(part, ends) for part in summed)
    return sure - hits


def _auroc(positive: Floats, negative: Floats) -> Floats:
    """Chance that a positive has the greater value, ties one half, of (r, groups) in ascending order of the value."""
    import numpy as np

    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    return np.asarray(wins / (positive.sum(axis=1) * negative.sum(axis=1)), dtype=float)


def _selective(size: Floats, errors: Floats) -> dict[str, Floats]:
    """AURC and selective accuracy, of (r, groups) in ascending order of confidence."""
    import numpy as np

    size, errors = size[:, ::-1], errors[:, ::-1]
    covered, wrong = np.cumsum(size, axis=1), np.cumsum(errors, axis=1)
    total = covered[:, -1:] if covered.shape[1] else np.full((len(covered), 1), nan)
    risk = np.where(covered > 0, wrong / covered, 0.0)
    aurc = (size * risk).sum(axis=1) / total[:, 0]
    # the group in which the coverage ends counts by the share that is needed of it
    wanted = COVERAGE * total[:, 0]
    last = np.minimum((covered < wanted[:, None]).sum(axis=1), max(covered.shape[1] - 1, 0))
    if not covered.shape[1]:
        return {"aurc": aurc, "selective_accuracy": aurc}
    rows = np.arange(len(covered))
    inside = wanted - (covered - size)[rows, last]
    counted = (wrong - errors)[rows, last] + errors[rows, last] * inside / size[rows, last]
    return {"aurc": aurc, "selective_accuracy": 1 - counted / wanted}


@dataclass(frozen=True)
class ScoreDifference:
    """One number of both runs.

    Attributes:
        name: one of `SCORES`. baseline, run: its values.
        difference: run minus baseline. low, high: ends of its 95 % interval; nan where there is none.
        p: that the runs are exchangeable, see `swap_p`.
        corrected: of `BINNED`, the difference without the bins' noise, around which the interval lies; else nan.
    """

    name: str
    baseline: float
    run: float
    difference: float
    low: float
    high: float
    p: float = nan
    corrected: float = nan


def score_differences(
    baseline: tuple[ArrayLike, ArrayLike],
    run: tuple[ArrayLike, ArrayLike],
    clusters: ArrayLike | None = None,
    *,
    replicates: int | None = None,
    level: float = 0.95,
    seed: int = SEED,
) -> list[ScoreDifference]:
    """All `SCORES` of both runs and their differences, with intervals of the cluster bootstrap.

    Both runs are drawn together, cluster by cluster, which is what makes the interval of a difference narrow. Bins are
    those of the data, not of the replicate. Intervals are percentiles, of `BINNED` numbers those of `binned_intervals`;
    nan with fewer than two clusters, and where all replicates agree: nothing then shows how far the value could be off.
    `ece_calibrated`, a reference for chance, has a p alone.

    Args:
        baseline, run: confidence (n,), all known, and correct (n,), of the same samples.
        clusters: (n,) number of each sample's cluster, from 0; each sample its own if None.
        replicates, level, seed: of bootstrap and test; `replicates_for` so many samples if None.

    Raises ValueError for lengths that differ and for confidences outside [0, 1].
    """
    import numpy as np

    n = len(np.asarray(baseline[0]))
    replicates = replicates_for(n) if replicates is None else replicates
    if {len(np.asarray(part)) for part in (*baseline, *run)} != {n}:
        raise ValueError("confidences and verdicts of both runs: not one of each per sample")
    scorers = Scorer(*baseline), Scorer(*run)
    whole = np.ones((1, n))
    values = [{name: float(score[0]) for name, score in scorer.scores(whole).items()} for scorer in scorers]
    drawn = [[scorer.scores_and_gaps(w) for scorer in scorers] for w in drawn_weights(n, clusters, replicates, seed)]
    sides = [scorer.gaps([draw[i][1] for draw in drawn]) for i, scorer in enumerate(scorers) if drawn]
    corrected = corrected_differences(sides[0], sides[1], level) if drawn else {}
    tests = swap_p(baseline, run, clusters, replicates=replicates, seed=seed)
    found = []
    for name in SCORES:
        one, other, better = values[0][name], values[1][name], corrected.get(name, NO_CORRECTED)
        ends = better.low, better.high
        if drawn and name not in BINNED and name != "ece_calibrated":
            ends = percentiles(np.concatenate([after[name] - before[name] for (before, _), (after, _) in drawn]), level)
        found.append(ScoreDifference(name, one, other, other - one, *ends, p=tests[name], corrected=better.value))
    return found


def swap_p(
    baseline: tuple[ArrayLike, ArrayLike],
    run: tuple[ArrayLike, ArrayLike],
    clusters: ArrayLike | None = None,
    *,
    replicates: int | None = None,
    seed: int = SEED,
) -> dict[str, float]:
    """Two-sided p of each of `SCORES`: how often a difference as large comes about if the runs are exchangeable.

    A paired permutation test: in each replicate, each cluster's answers change places between the runs with a chance of
    one half (Good, Permutation Tests, 2000). It holds for binned numbers, too, whose bias is the same on both sides;
    bins are those of both runs together. The least p is 1 / (replicates + 1). nan where a number is not defined, and
    with fewer than two clusters.
    """
    import numpy as np

    sure, right = (np.concatenate([np.asarray(baseline[i]), np.asarray(run[i])]) for i in (0, 1))
    n = len(sure) // 2
    codes = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(codes.max()) + 1 if n else 0
    if count < 2:
        return dict.fromkeys(SCORES, nan)
    scorer, rng = Scorer(sure, right), np.random.default_rng(seed)
    replicates = replicates_for(n) if replicates is None else replicates
    step = max(1, _BLOCK // (2 * n))
    found: dict[str, list[Floats]] = {name: [] for name in SCORES}
    # the first is the data themselves
    for start in range(0, replicates + 1, step):
        swapped = rng.random((min(step, replicates + 1 - start), count)) < 0.5
        if not start:
            swapped[0] = False
        moved = swapped[:, codes].astype(float)
        after = scorer.scores(np.concatenate([moved, 1 - moved], axis=1))
        before = scorer.scores(np.concatenate([1 - moved, moved], axis=1))
        for name in SCORES:
            found[name].append(np.abs(after[name] - before[name]))
    return {name: _share_as_large(np.concatenate(sizes)) for name, sizes in found.items()}


def _share_as_large(sizes: Floats) -> float:
    """Share of all that are at least the first, which counts itself; nan if that is not finite."""
    import numpy as np

    known = sizes[np.isfinite(sizes)]
    return float((known >= sizes[0] - 1e-12).mean()) if np.isfinite(sizes[0]) else nan


def flip_auroc(
    values: ArrayLike,
    flipped: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    replicates: int | None = None,
    level: float = 0.95,
    seed: int = SEED,
) -> Rate:
    """AUROC of a value, all known, for flips, and the ends of its bootstrap interval; nan without both kinds."""
    import numpy as np

    numbers, events = np.asarray(values, dtype=float), np.asarray(flipped, dtype=float)
    order = np.argsort(numbers, kind="stable")
    ends, marks = _ends(numbers[order]), events[order]

    def area(weights: Floats) -> Floats:
        w = weights[:, order]
        with np.errstate(invalid="ignore", divide="ignore"):
            return _auroc(*(_groups(np.cumsum(w * part, axis=1), ends) for part in (marks, 1 - marks)))

    if not len(numbers):
        return NO_RATE
    replicates = replicates_for(len(numbers)) if replicates is None else replicates
    drawn = [area(weights) for weights in drawn_weights(len(numbers), clusters, replicates, seed)]
    low, high = percentiles(np.concatenate(drawn or [np.empty(0)]), level)
    return Rate(float(area(np.ones((1, len(numbers))))[0]), low, high)


def percentiles(drawn: Floats, level: float) -> tuple[float, float]:
    """Ends of the percentile interval; nan where there are no finite replicates, or all agree."""
    import numpy as np

    known = drawn[np.isfinite(drawn)]
    if not len(known) or np.ptp(known) <= 1e-12:
        return nan, nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def drawn_weights(
    n: int,
    clusters: ArrayLike | None,
    replicates: int,
    seed: int | np.random.SeedSequence,
    together: int | None = None,
) -> Iterator[Floats]:
    """(r, n) weights of bootstrap samples, in blocks: how often each sample's cluster was drawn. None for one cluster.

    Args:
        n: samples. clusters: (n,) numbers from 0, or None. The rest is as for `score_differences`.
        together: samples of all sets whose blocks are to be equally long; n if None.
    """
    import numpy as np

    codes = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(codes.max()) + 1 if n else 0
    if count < 2:
        return
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // (n if together is None else together))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        # each replicate has draws of its own: the block's size does not change them
        times = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(rows)]
        yield np.stack(times).astype(float)[:, codes]


@dataclass(frozen=True)
class Curve:
    """Risk over coverage: `risk[i]` is the share of errors among the most confident `coverage[i]` of all samples."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]


def risk_coverage(confidence: ArrayLike, correct: ArrayLike, points: int = 50) -> Curve:
    """The risk-coverage curve at about so many coverages, always at whole groups of equal confidences.

    El-Yaniv and Wiener, JMLR 11 (2010); Geifman and El-Yaniv, NeurIPS 2017.
    """
    import numpy as np

    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    order = np.argsort(-sure, kind="stable")
    ends = _ends(sure[order])
    if not len(ends):
        return Curve((), ())
    wanted = np.searchsorted(ends, np.ceil(np.arange(1, points + 1) / points * len(sure)).astype(int) - 1)
    ends = np.unique(ends[np.minimum(wanted, len(ends) - 1)])
    wrong = np.cumsum(~right[order])[ends]
    return Curve(tuple(((ends + 1) / len(sure)).tolist()), tuple((wrong / (ends + 1)).tolist()))
