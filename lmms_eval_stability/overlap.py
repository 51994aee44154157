"""Whether methods break the same samples: the overlap of their diverged sets, beside what chance alone would give.

Two methods that each flip one in ten of the right answers share some flips in any case. Overlap says something about
the samples only where it exceeds that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from .pairing import PairedSamples

    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class DivergedSet:
    """The samples that one method changed, among those it could have changed.

    Attributes:
        doc_id: (n,) int64, ascending, one per pair.
        at_risk: (n,) bool, samples that can diverge: for negative divergence those that the baseline has right.
        diverged: (n,) bool, those that did; part of `at_risk`.
    """

    doc_id: NDArray[np.int64]
    at_risk: Mask
    diverged: Mask

    @classmethod
    def negative(cls, pairs: PairedSamples) -> DivergedSet:
        """Right in the baseline and wrong in the run, among those right in the baseline."""
        frame = pairs.frame
        return cls(
            frame["doc_id"].to_numpy(),
            frame["correct_baseline"].to_numpy(dtype=bool),
            (frame["flip"] == "negative").to_numpy(dtype=bool),
        )

    @classmethod
    def changed(cls, pairs: PairedSamples) -> DivergedSet:
        """Another prediction than the baseline's, among all samples."""
        import numpy as np

        changed = pairs.frame["changed"].to_numpy(dtype=bool)
        return cls(pairs.frame["doc_id"].to_numpy(), np.ones(len(changed), dtype=bool), changed)


@dataclass(frozen=True)
class SharedDivergence:
    """Which samples diverge under every method, and under any.

    Attributes:
        methods: number of methods.
        n: samples at risk that all methods have. left_out: samples that some method lacks.
        every, any: doc_ids that diverge under all methods, and under at least one.
        expected_every: size of `every` if the methods diverged independently: n times the product of their shares.
        counts: how many samples at risk diverge under 0, 1, ... methods.
    """

    methods: int
    n: int
    left_out: int
    every: tuple[int, ...]
    any: tuple[int, ...]
    expected_every: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TaskOverlap:
    """Whether the runs of a comparison diverge on the same samples of one task.

    Attributes:
        of: "negative" (right in the baseline, wrong in the run, among those right in the baseline) or "changed".
        table: as `overlap_table` makes it. shared: over the samples that all runs have.
    """

    task: str
    of: str
    table: pd.DataFrame
    shared: SharedDivergence


def task_overlaps(
    task: str, negative: Mapping[str, DivergedSet], changed: Mapping[str, DivergedSet]
) -> list[TaskOverlap]:
    """Both kinds of overlap of one task's runs, by label; none for fewer than two."""
    kinds = {"negative": negative, "changed": changed}
    return [
        TaskOverlap(task, name, overlap_table(sets), shared_divergence(sets))
        for name, sets in kinds.items()
        if len(sets) > 1
    ]


def overlap_table(sets: Mapping[str, DivergedSet]) -> pd.DataFrame:
    """One row per ordered pair of methods, A against B, each over the samples that both have.

    Columns: method (A), other (B), n (samples at risk), n_method = |A|, n_other = |B|, both = |A and B|; containment =
    both / |A|, the share of A's divergences that B shows too (not symmetric); jaccard = both / |A or B|; expected =
    |A| |B| / n, the size of the overlap if A and B were drawn independently from the samples at risk; lift = both /
    expected, 1 for chance. The containment that chance gives is |B| / n. Shares of nothing are nan.

    Raises ValueError when two sets were not made against one baseline.
    """
    import pandas as pd

    names = ["method", "other", "n", "n_method", "n_other", "both", "containment", "jaccard", "expected", "lift"]
    rows = []
    for first in sets:
        for second in sets:
            if first == second:
                continue
            _, risk, (one, other) = _aligned({name: sets[name] for name in (first, second)})
            n, a, b, both = (int(mask.sum()) for mask in (risk, one, other, one & other))
            expected = a * b / n if n else nan
            union = a + b - both
            shares = (_share(both, a), _share(both, union), expected, _share(both, expected))
            rows.append((first, second, n, a, b, both, *shares))
    return pd.DataFrame(rows, columns=names)


def shared_divergence(sets: Mapping[str, DivergedSet]) -> SharedDivergence:
    """Samples that diverge under all and under any of the methods, over the samples that all methods have.

    Raises ValueError without any set, and when the sets were not made against one baseline.
    """
    import numpy as np

    docs, risk, masks = _aligned(sets)
    times = np.sum(masks, axis=0)[risk]
    n = int(risk.sum())
    known = np.unique(np.concatenate([one.doc_id for one in sets.values()]))
    return SharedDivergence(
        methods=len(sets),
        n=n,
        left_out=len(known) - len(docs),
        every=tuple(docs[risk][times == len(sets)].tolist()),
        any=tuple(docs[risk][times > 0].tolist()),
        expected_every=n * prod(int(mask.sum()) / n for mask in masks) if n else nan,
        counts=tuple(np.bincount(times, minlength=len(sets) + 1).tolist()),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else nan


def _aligned(sets: Mapping[str, DivergedSet]) -> tuple[NDArray[np.int64], Mask, list[Mask]]:
    """Documents that all sets have, which of them are at risk, and each set's diverged ones, row by row."""
    import numpy as np

    if not sets:
        raise ValueError("no method to look at")
    (name, reference), *others = sets.items()
    docs = reference.doc_id
    for _, one in others:
        if not np.array_equal(docs, one.doc_id):
            docs = np.intersect1d(docs, one.doc_id, assume_unique=True)
    # as many as there are in common: those in common, one by one
    places = {
        key: slice(None) if len(one.doc_id) == len(docs) else np.searchsorted(one.doc_id, docs)
        for key, one in sets.items()
    }
    risk = reference.at_risk[places[name]]
    for key, one in others:
        differs = one.at_risk[places[key]] != risk
        if differs.any():
            raise ValueError(
                f"{name} and {key} were not compared with one baseline: doc {docs[differs][0]} can diverge in one only"
            )
    return docs, risk, [one.diverged[places[key]] for key, one in sets.items()]
