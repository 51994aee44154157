"""Which samples of a log belong together, and the intervals of a table's rates that know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .bootstrap import cluster_rate
from .categories import CLUSTER, IMAGE
from .divergence import Divergence

if TYPE_CHECKING:
    import pandas as pd

    from .pairing import PairedSamples

#: Of the bootstrap of every interval in a report.
REPLICATES, SEED = 10_000, 0
#: What says which samples belong together, and the word for it in reports.
SOURCES = {CLUSTER: "record", IMAGE: "image fingerprint"}


@dataclass(frozen=True)
class Clusters:
    """Samples that are not independent draws: questions about one image, rotations of one question.

    Attributes:
        codes: number of the cluster, by doc_id.
        source: one of the values of `SOURCES`.
    """

    codes: pd.Series
    source: str


def find_clusters(labels: pd.DataFrame | None) -> Clusters | None:
    """The clusters that a log names; None where it names none, or nothing but clusters of one.

    Where both the benchmark's record and the models' image fingerprints name some, the coarser ones count: two
    questions about one image are related even if a perturbation gave each its own noise, and so are two MMBench
    questions with their rotations if they share an image. A line that names no cluster is one of its own: a question
    without an image depends on no other.

    Args:
        labels: of the baseline, see `samples.SampleTable`.
    """
    import numpy as np
    import pandas as pd

    best: Clusters | None = None
    least = 0 if labels is None else len(labels)
    for name, source in SOURCES.items():
        if labels is None or name not in labels:
            continue
        codes, uniques = pd.factorize(labels[name])
        alone = codes < 0
        codes = codes.astype(np.int64)
        codes[alone] = len(uniques) + np.arange(alone.sum())
        if len(uniques) + int(alone.sum()) < least:
            least = len(uniques) + int(alone.sum())
            best = Clusters(pd.Series(codes, index=labels.index), source)
    return best


def with_clusters(row: Divergence, pairs: PairedSamples, clusters: Clusters | None) -> Divergence:
    """The row with intervals of its rates from the bootstrap over clusters, see `bootstrap.cluster_rate`.

    Without clusters, and where each pair is a cluster of its own, the row keeps its Wilson intervals.
    """
    if clusters is None or not len(pairs.frame):
        return row
    frame = pairs.frame
    codes = clusters.codes.reindex(frame["doc_id"]).to_numpy()
    right = frame["correct_baseline"].to_numpy(dtype=bool)
    flip = frame["flip"].to_numpy()
    dr = cluster_rate(frame["changed"].to_numpy(), codes, replicates=REPLICATES, seed=SEED)
    if dr.clusters == len(frame):
        return row
    negative, positive = flip == "negative", flip == "positive"
    return replace(
        row,
        dr=dr,
        ndr=cluster_rate(negative, codes, replicates=REPLICATES, seed=SEED),
        pdr=cluster_rate(positive, codes, replicates=REPLICATES, seed=SEED),
        conditional_ndr=cluster_rate(negative, codes, among=right, replicates=REPLICATES, seed=SEED),
        intervals="cluster bootstrap",
        clusters=dr.clusters,
        clustered_by=clusters.source,
        design_effect=dr.design_effect,
    )
