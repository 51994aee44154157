"""Robustness to perturbed inputs, method by method, relative to the baseline: corruption errors and their mean.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
section 4: the errors over the severities of a corruption, summed, over the sum of a reference model's, CE; their mean
over corruptions, mCE; and the same with each model's error on clean inputs taken off first, relative CE. Theirs refer
to AlexNet, ours to the unaccelerated model: 1 means that acceleration costs nothing on this perturbation.

Departs from them in that an error is 1 minus a sample's score, which is soft in some benchmarks, and that each sample
is seen at one level only: the error at a level is the mean over the samples that drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from .bootstrap import ClusterRate
from .errors import StabilityError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MEAN = "mean"
#: Bootstrap samples drawn at once.
_BLOCK = 64


class ScoreRangeError(StabilityError):
    """Scores outside [0, 1] have no error rate."""


@dataclass(frozen=True)
class CorruptionError:
    """How much more a run errs than the baseline on inputs perturbed by one method.

    Attributes:
        task: the perturbed task.
        method: the perturbation; `MEAN` for the mean over methods, whose `ce` is mCE.
        n, levels: pairs, and severities (of the mean: levels over all methods) that some pair drew.
        error_baseline, error_run: mean over the levels of 1 - score.
        ce: sum of the run's errors over the levels by that of the baseline's, with its interval; nan where the baseline
            makes no error.
        relative: the same of the errors beyond those on clean inputs; nan where the clean task is not known or the
            baseline loses nothing.
        undefined: of the mean, methods left out of `ce` because the baseline makes no error there.
    """

    task: str
    method: str
    n: int
    levels: int
    error_baseline: float
    error_run: float
    ce: ClusterRate
    relative: float
    undefined: int = 0

    def record(self) -> dict[str, Any]:
        """One flat dict, nan as None."""
        flat: dict[str, Any] = {"task": self.task, "method": self.method, "n": self.n, "levels": self.levels}
        flat |= {"error_baseline": self.error_baseline, "error_run": self.error_run}
        flat |= {"ce": self.ce.value, "ce_low": self.ce.low, "ce_high": self.ce.high}
        flat |= {"relative_ce": self.relative, "undefined": self.undefined}
        return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in flat.items()}


@dataclass(frozen=True)
class CleanErrors:
    """Mean of 1 - score of either run on the unperturbed task."""

    baseline: float
    run: float


def corruption_errors(
    task: str,
    frame: pd.DataFrame,
    labels: pd.DataFrame,
    clean: CleanErrors | None = None,
    codes: NDArray[np.int64] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[CorruptionError]:
    """Corruption errors of each method that a perturbed task's log names, in alphabetical order, and their mean.

    Args:
        task: name of the perturbed task.
        frame: its pairs, see `pairing.PairedSamples`, with scores in [0, 1].
        labels: by doc_id, with the columns "perturbation" and "severity" (`categories.read_labels`); pairs without a
            method are left out.
        clean: for relative errors.
        codes: (pairs,) number of each pair's cluster, from 0; None for independent pairs.
        replicates, level, seed: of the bootstrap over clusters.

    Raises ScoreRangeError for scores outside [0, 1].
    """
    import numpy as np
    import pandas as pd

    found = labels.reindex(frame["doc_id"])
    if "perturbation" not in found:
        return []
    severity = found["severity"] if "severity" in found else pd.Series("", index=found.index)
    named = found["perturbation"].notna().to_numpy()
    methods = found["perturbation"].to_numpy(dtype=object)[named]
    if not len(methods):
        return []
    names = np.array([f"{a}\x1f{b}" for a, b in zip(methods, severity.to_numpy(dtype=object)[named], strict=True)])
    levels, level_codes = np.unique(names, return_inverse=True)
    method_of_level = np.array([name.split("\x1f")[0] for name in levels], dtype=object)
    errors = np.stack([_errors(task, frame[f"score_{side}"].to_numpy(float)[named]) for side in ("baseline", "run")])
    clusters = np.arange(len(names)) if codes is None else np.unique(np.asarray(codes)[named], return_inverse=True)[1]
    sums = _sums(errors, level_codes, clusters, len(levels))
    table = _Table(task, method_of_level, clean, level)
    drawn = _drawn(sums, replicates, np.random.default_rng(seed))
    return table.rows(sums, drawn)


def with_clean(rows: Sequence[CorruptionError], clean: CleanErrors) -> list[CorruptionError]:
    """The rows with relative errors, for clean inputs that are seen after the perturbed ones.

    Args:
        rows: as `corruption_errors` returns them, the mean at the end.
        clean: errors of both runs on clean inputs.
    """
    found = [replace(row, relative=_relative(row.error_baseline, row.error_run, clean)) for row in rows[:-1]]
    known = [row.relative for row in found if isfinite(row.relative)]
    return [*found, *(replace(row, relative=sum(known) / len(known) if known else nan) for row in rows[-1:])]


def _relative(before: float, after: float, clean: CleanErrors | None) -> float:
    """Mean errors over the levels beyond those on clean inputs; nan where the baseline loses nothing."""
    if clean is None:
        return nan
    lost = before - clean.baseline
    return (after - clean.run) / lost if lost > 0 else nan


def _errors(task: str, scores: Floats) -> Floats:
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise ScoreRangeError(
            f"task {task}: scores from {scores.min():g} to {scores.max():g} have no error rate; choose a metric between"
            " 0 and 1 with --metric"
        )
    return 1 - scores


@dataclass(frozen=True)
class _Sums:
    """Per cluster and level, sparse (clusters, levels): pairs, and the two runs' summed errors."""

    count: Any
    baseline: Any
    run: Any

    def of(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Return pairs and mean errors, each (draws, levels), of draws with these weights (draws, clusters)."""
        import numpy as np

        counts, before, after = (
            np.asarray(weights @ part, dtype=float) for part in (self.count, self.baseline, self.run)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return counts, before / counts, after / counts


def _sums(errors: Floats, levels: NDArray[np.intp], clusters: NDArray[np.intp], n_levels: int) -> _Sums:
    from scipy.sparse import csr_array

    shape = (int(clusters.max()) + 1, n_levels)
    one = errors[0] * 0 + 1
    return _Sums(*(csr_array((part, (clusters, levels)), shape=shape) for part in (one, errors[0], errors[1])))


def _drawn(sums: _Sums, replicates: int, rng: np.random.Generator) -> list[tuple[Floats, Floats, Floats]]:
    """Return counts and errors of bootstrap samples of the clusters, in blocks of (draws, levels)."""
    import numpy as np

    n = sums.count.shape[0]
    blocks = []
    for start in range(0, replicates, _BLOCK):
        weights = np.stack(
            [np.bincount(rng.integers(0, n, size=n), minlength=n) for _ in range(min(_BLOCK, replicates - start))]
        )
        blocks.append(sums.of(weights.astype(float)))
    return blocks


@dataclass(frozen=True)
class _Table:
    """Makes the rows: which level belongs to which method, and what is known of clean inputs."""

    task: str
    method_of_level: NDArray[np.object_]
    clean: CleanErrors | None
    confidence: float

    def rows(self, sums: _Sums, drawn: list[tuple[Floats, Floats, Floats]]) -> list[CorruptionError]:
        import numpy as np

        counts, before, after = sums.of(np.ones((1, sums.count.shape[0])))
        masks = [(str(name), self.method_of_level == name) for name in sorted(set(self.method_of_level))]
        values = np.array([float(_ratio(before[:, mask], after[:, mask])[0]) for _, mask in masks])
        resampled = np.stack(
            [np.concatenate([_ratio(b[:, mask], a[:, mask]) for _, b, a in drawn]) for _, mask in masks]
        )
        n_clusters = sums.count.shape[0]
        rows = [
            CorruptionError(
                task=self.task,
                method=name,
                n=round(float(counts[0, mask].sum())),
                levels=int(mask.sum()),
                error_baseline=float(before[0, mask].mean()),
                error_run=float(after[0, mask].mean()),
                ce=self._rate(values[i], resampled[i], n_clusters),
                relative=_relative(float(before[0, mask].mean()), float(after[0, mask].mean()), self.clean),
            )
            for i, (name, mask) in enumerate(masks)
        ]
        return [*rows, self._mean(rows, values, resampled, n_clusters)]

    def _mean(self, rows: list[CorruptionError], values: Floats, resampled: Floats, clusters: int) -> CorruptionError:
        """Mean over methods; those without an error of the baseline cannot take part in mCE."""
        import numpy as np

        defined = np.isfinite(values)
        known = [row.relative for row in rows if isfinite(row.relative)]
        value = float(values[defined].mean()) if defined.any() else nan
        return CorruptionError(
            task=self.task,
            method=MEAN,
            n=sum(row.n for row in rows),
            levels=sum(row.levels for row in rows),
            error_baseline=float(np.mean([row.error_baseline for row in rows])),
            error_run=float(np.mean([row.error_run for row in rows])),
            ce=self._rate(value, _mean(resampled[defined]), clusters),
            relative=float(np.mean(known)) if known else nan,
            undefined=int((~defined).sum()),
        )

    def _rate(self, value: float, resampled: Floats, clusters: int) -> ClusterRate:
        """Percentile interval; none for one cluster, or where over 5 % of the draws have no error to divide by."""
        import numpy as np

        usable = resampled[np.isfinite(resampled)]
        if clusters < 2 or not isfinite(value) or len(usable) < 0.95 * len(resampled):
            return ClusterRate(value, nan, nan, clusters)
        low, high = np.quantile(usable, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return ClusterRate(value, float(low), float(high), clusters)


def _ratio(before: Floats, after: Floats) -> Floats:
    """Return (draws,): summed errors of the run over those of the baseline, levels without samples left out."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.nansum(after, axis=1) / np.nansum(before, axis=1)
    return np.where(np.isfinite(ratio), ratio, nan)


def _mean(resampled: Floats) -> Floats:
    """Return (draws,): mean over methods of each bootstrap sample, nan where none is defined."""
    import numpy as np

    if not len(resampled):
        return np.zeros(0)
    known = np.isfinite(resampled)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = np.where(known, resampled, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean
