"""Intervals for samples that come in clusters: several questions about one image, or the rotations of one question.

A Wilson interval takes every question for an independent draw. Questions about one image are not: usually their answers
flip together, and the interval is then too narrow. (Where each image gets the same mix of easy and hard questions, as
in `shapes_vqa`, it can be too wide instead.) The cluster bootstrap draws whole clusters (Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Field and Welsh, JRSS B 69 (2007), 369-390).

A replicate needs no samples, only each cluster's sums, and clusters with equal sums are interchangeable. So a replicate
is one multinomial draw of how often each kind of cluster comes up: exactly the bootstrap, without its arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from .divergence import Rate, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

#: Numbers held at once while drawing: 8 MB for each of the few arrays.
_BLOCK = 1 << 20
#: A multinomial count costs about as much as drawing this many clusters one by one.
_COST = 8
#: Sums are told apart down to this: 0.1 + 0.2 and 0.3 are one kind of cluster.
_DIGITS = 9


@dataclass(frozen=True)
class ClusterRate(Rate):
    """A share or mean with the percentile interval of the cluster bootstrap.

    Attributes:
        clusters: clusters that hold a counted sample.
        design_effect: variance of the value with these clusters over its variance if the same samples were independent,
            both linearised; 1 for clusters of one, nan where either is undefined or the latter zero. The interval is
            about sqrt(design_effect) times as wide as it would be without clusters.
    """

    clusters: int = 0
    design_effect: float = nan


NO_CLUSTER_RATE = ClusterRate(nan, nan, nan)


def cluster_rate(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    among: ArrayLike | None = None,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> ClusterRate:
    """The mean of `values` over samples drawn in clusters, with its interval.

    The same data give the same interval whatever the order of rows and the names of clusters.

    Degenerate cases, in which replicates would all agree and an interval of no width would claim certainty:

    - One cluster, or none of the others counted: the ends are nan. Nothing shows how clusters differ.
    - All values 0, or all 1: one end is that of the Wilson interval for 0 (or all) of as many independent samples as
      there are clusters, the most cautious reading of "no event was seen". Values are taken to lie in [0, 1].
    - Any other constant share in all clusters: the ends are nan.

    With events in fewer than about ten clusters percentile intervals are too short; compare the Wilson interval.

    Args:
        values: (n,) 0 and 1 (events) or scores.
        clusters: (n,) labels, e.g. image ids. Every sample needs one.
        among: (n,) bool; count these samples only, as conditional NDR counts those that the baseline has right.
            Clusters without such a sample take part in the drawing; replicates without any are left out.
        replicates: bootstrap samples.
        level: confidence of the interval.
        seed: of the random generator.

    Raises ValueError for lengths that differ, values that are not finite, and samples without a label.
    """
    return _bootstrap(values, clusters, among, replicates, level, seed, signed=False)


def cluster_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike,
    *,
    among: ArrayLike | None = None,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> ClusterRate:
    """mean(first) - mean(second) over the same samples, with its interval: two methods, or two runs, paired.

    Drawing the samples of both together is what makes the interval honest: two intervals that overlap say little.
    Where both have the same values everywhere, the ends are -u and u, with u the Wilson end for no event in as many
    samples as there are clusters. All else is as for `cluster_rate`.
    """
    import numpy as np

    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != other.shape:
        raise ValueError(f"{one.shape} values against {other.shape}: not the same samples")
    return _bootstrap(one - other, clusters, among, replicates, level, seed, signed=True)


def _bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    among: ArrayLike | None,
    replicates: int,
    level: float,
    seed: int,
    signed: bool,
) -> ClusterRate:
    import numpy as np

    if not 0 < level < 1 or replicates < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, replicates {replicates} be at least 1")
    numbers, counted, codes = _checked(values, clusters, among)
    size = np.asarray(np.bincount(codes, weights=counted), dtype=float)
    total = np.asarray(np.bincount(codes, weights=np.where(counted, numbers, 0.0)), dtype=float).round(_DIGITS)
    filled = int((size > 0).sum())
    if not filled:
        return NO_CLUSTER_RATE
    value = float(numbers[counted].mean())
    residuals = total - value * size
    if np.allclose(residuals, 0.0, atol=1e-8):
        return _constant(value, filled, signed, level, bool((total == 0).all() and not numbers[counted].any()))
    effect = _design_effect(residuals, numbers[counted] - value)
    if filled == 1:
        return ClusterRate(value, nan, nan, filled, nan)
    means = np.concatenate(list(_replicates(total, size, replicates, np.random.default_rng(seed))))
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return ClusterRate(value, float(low), float(high), filled, effect)


def _checked(
    values: ArrayLike, clusters: ArrayLike, among: ArrayLike | None
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.intp]]:
    """Values, which of them count, and the number of each one's cluster."""
    import numpy as np
    import pandas as pd

    numbers = np.asarray(values, dtype=float)
    counted = np.ones(len(numbers), dtype=bool) if among is None else np.asarray(among, dtype=bool)
    # of a plain list numpy would make one type, and of a missing label the text "nan"
    labels = np.asarray(clusters) if hasattr(clusters, "dtype") else np.asarray(clusters, dtype=object)
    if not len(numbers) == len(counted) == len(labels):
        raise ValueError(f"{len(numbers)} values, {len(labels)} cluster labels and {len(counted)} marks: not one each")
    codes = pd.factorize(labels)[0]
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} of {len(codes)} samples have no cluster label")
    if not np.isfinite(numbers[counted]).all():
        raise ValueError(f"{int((~np.isfinite(numbers[counted])).sum())} of the values are no finite numbers")
    return numbers, counted, codes


def _constant(value: float, clusters: int, signed: bool, level: float, nothing: bool) -> ClusterRate:
    """What can be said where all replicates would be the same number."""
    if clusters < 2:
        return ClusterRate(value, nan, nan, clusters)
    bound = wilson(0, clusters, level).high
    if nothing:
        return ClusterRate(0.0, -bound if signed else 0.0, bound, clusters)
    if not signed and abs(value - 1) < 1e-12:
        return ClusterRate(1.0, 1 - bound, 1.0, clusters)
    return ClusterRate(value, nan, nan, clusters)


def _design_effect(residuals: Floats, deviations: Floats) -> float:
    """Linearised variance of a ratio of cluster sums over that of the mean of independent samples (Kish 1965)."""
    clusters, n = len(residuals), len(deviations)
    independent = float(deviations @ deviations) * n / (n - 1) if n > 1 else 0.0
    if clusters < 2 or independent == 0:
        return nan
    return float(residuals @ residuals) * clusters / (clusters - 1) / independent


def _replicates(total: Floats, size: Floats, replicates: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Means of bootstrap samples, in blocks; nan for one without any counted sample."""
    import numpy as np

    # sorted, so that the draw does not depend on the order of rows; common kinds first, which is faster
    kinds, times = np.unique(np.stack([total, size], axis=1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")
    kinds, times = kinds[order], times[order]
    n = len(total)
    few = len(kinds) * _COST <= n
    if not few:
        kinds = np.repeat(kinds, times, axis=0)
    step = max(1, _BLOCK // len(kinds))
    totals, sizes = np.ascontiguousarray(kinds.T)
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        if few:
            drawn = rng.multinomial(n, times / n, size=count).astype(float)
            sums, weights = drawn @ totals, drawn @ sizes
        else:
            places = rng.integers(0, n, size=(count, n), dtype=np.int32)
            sums, weights = totals[places].sum(axis=1), sizes[places].sum(axis=1)
        with np.errstate(invalid="ignore"):
            yield sums / weights
