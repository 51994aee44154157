"""The noise floor: how often the baseline disagrees with itself, from any number of its re-runs, and DR above it.

All re-runs answer the same samples and are compared with the same first run. Their changes are therefore not
independent: a sample whose two best tokens are nearly tied changes in most re-runs, and where the first run drew the
rarer answer it changes in all of them. Here a sample (or an image, with `clusters`) is the unit that is drawn, with all
its re-runs. What no interval here covers is the choice of the first run itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import nan
from typing import TYPE_CHECKING

from .bootstrap import NO_CLUSTER_RATE, ClusterRate, cluster_difference, cluster_rate
from .divergence import NO_RATE, Divergence, Rate, accepted_counts, wilson

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from .pairing import PairedSamples

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseFloor:
    """DR of the baseline against its own re-runs.

    Attributes:
        n: samples that the baseline and all re-runs have. left_out: samples that some re-run lacks.
        each: DR of every re-run over its own pairs, with Wilson intervals.
        dr: mean DR over the re-runs and the n samples. Its interval is Wilson's for one re-run without clusters, and
            the cluster bootstrap's otherwise.
        ever: share of the samples that change in at least one re-run; grows with their number.
    """

    n: int
    left_out: int
    each: tuple[Rate, ...]
    dr: Rate
    ever: Rate

    @property
    def reruns(self) -> int:
        """Number of re-runs."""
        return len(self.each)


@dataclass(frozen=True)
class Excess:
    """DR of a run above the noise floor, over the samples that the baseline, the run and all re-runs have.

    Attributes:
        n: those samples. left_out: samples that one of them lacks.
        dr: DR of the run. floor: mean DR of the re-runs. excess: dr - floor, with the paired bootstrap's interval; an
            interval that reaches 0 or below leaves open whether the run differs from noise at all.
    """

    n: int
    left_out: int
    dr: float
    floor: float
    excess: ClusterRate


def noise_floor(
    reruns: Sequence[PairedSamples],
    clusters: pd.Series | None = None,
    *,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> NoiseFloor:
    """The floor from the baseline's re-runs, each paired with the baseline.

    Args:
        reruns: at least one.
        clusters: labels, e.g. image ids, by doc_id; each sample for itself by default.
        replicates, level, seed: of the bootstrap, see `bootstrap.cluster_rate`.

    Raises ValueError without any re-run, and for a sample that `clusters` does not name.
    """
    if not reruns:
        raise ValueError("no re-run of the baseline")
    docs, left_out, changed = _aligned(reruns)
    each = tuple(wilson(int(one.frame["changed"].sum()), len(one.frame), level) for one in reruns)
    if not len(docs):
        return NoiseFloor(0, left_out, each, NO_RATE, NO_RATE)
    labels = _labels(docs, clusters)
    bootstrap = {"replicates": replicates, "level": level, "seed": seed}

    def rate(values: Floats) -> Rate:
        if clusters is None and set(values.tolist()) <= {0.0, 1.0}:
            return wilson(int(values.sum()), len(values), level)
        return cluster_rate(values, labels, **bootstrap)  # type: ignore[arg-type]

    # the mean over the re-runs is one number per sample, so that a sample is drawn with all its re-runs
    return NoiseFloor(len(docs), left_out, each, rate(changed.mean(axis=0)), rate(changed.max(axis=0)))


def excess_divergence(
    run: PairedSamples,
    reruns: Sequence[PairedSamples],
    clusters: pd.Series | None = None,
    *,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Excess:
    """How much oftener the run differs from the baseline than the baseline from itself.

    Args:
        run: the run paired with the baseline; `reruns`: re-runs paired with the same baseline.
        clusters, replicates, level, seed: as for `noise_floor`.
    """
    if not reruns:
        raise ValueError("no re-run of the baseline")
    docs, left_out, changed = _aligned([run, *reruns])
    if not len(docs):
        return Excess(0, left_out, nan, nan, NO_CLUSTER_RATE)
    own, noise = changed[0], changed[1:].mean(axis=0)
    excess = cluster_difference(own, noise, _labels(docs, clusters), replicates=replicates, level=level, seed=seed)
    return Excess(len(docs), left_out, float(own.mean()), float(noise.mean()), excess)


def with_floor(
    row: Divergence, run: PairedSamples, reruns: Sequence[PairedSamples], clusters: pd.Series | None = None
) -> Divergence:
    """The row of `run` with the noise floor beside it, and what is left of its DR.

    Args:
        row: numbers of `run`. reruns, clusters: as for `excess_divergence`.
    """
    floor, excess = noise_floor(reruns, clusters), excess_divergence(run, reruns, clusters).excess
    accepted = dict(row.accepted)
    for one in reruns:
        for kind, count in accepted_counts(one).items():
            accepted[f"rerun_{kind}"] = accepted.get(f"rerun_{kind}", 0) + count
    return replace(
        row,
        reruns=floor.reruns,
        rerun_n=floor.n,
        rerun_dr=floor.dr,
        excess_dr=excess.value,
        excess_dr_low=excess.low,
        excess_dr_high=excess.high,
        accepted=accepted,
    )


def _aligned(runs: Sequence[PairedSamples]) -> tuple[NDArray[np.int64], int, Floats]:
    """Documents that all have, how many some lack, and (runs, documents) 1 where the prediction changed."""
    import numpy as np

    ids = [one.frame["doc_id"].to_numpy() for one in runs]
    docs = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), ids)
    changed = [
        one.frame["changed"].to_numpy(dtype=float)[np.searchsorted(own, docs)]
        for one, own in zip(runs, ids, strict=True)
    ]
    return docs, len(np.unique(np.concatenate(ids))) - len(docs), np.stack(changed)


def _labels(docs: NDArray[np.int64], clusters: pd.Series | None) -> NDArray[np.generic]:
    if clusters is None:
        return docs
    import pandas as pd

    places = pd.Index(clusters.index).get_indexer(pd.Index(docs))
    unknown = docs[places < 0]
    if len(unknown):
        raise ValueError(f"{len(unknown)} of {len(docs)} samples have no cluster, the first is {unknown[0]}")
    labels: NDArray[np.generic] = clusters.to_numpy()[places]
    return labels
