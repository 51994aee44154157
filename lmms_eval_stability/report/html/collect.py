"""What a page needs of each task and run, kept while a comparison runs: diverged pairs, a few bytes of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...overlap import DivergedSet
from ...pairing import PairedSamples

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

_KEPT = [
    "doc_id", "target", "prediction_baseline", "prediction_run", "score_baseline", "score_run", "changed", "flip",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The pairs of one task of one run.

    Attributes:
        doc_id: (n,) ascending.
        at_risk: (n,) bool, right in the baseline.
        flip: (n,) int8: -1 right to wrong, 1 wrong to right, 0 neither.
        diverged: rows of the pairs whose prediction changed or that flipped, columns as in `PairedSamples.frame`.
    """

    task: str
    run: str
    doc_id: NDArray[np.int64]
    at_risk: NDArray[np.bool_]
    flip: NDArray[np.int8]
    diverged: pd.DataFrame


class PageCollector:
    """Receives pairs (`add_pairs` is a `comparison.PairSink`) and keeps what `html_model` takes."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def add_pairs(self, run: str, pairs: PairedSamples) -> None:
        """Keep the diverged pairs of one task of one run."""
        import numpy as np

        frame = pairs.frame
        flip = np.zeros(len(frame), dtype=np.int8)
        marked = frame["flip"].to_numpy()
        flip[marked == "negative"], flip[marked == "positive"] = -1, 1
        changed = frame["changed"].to_numpy(dtype=bool)
        docs: NDArray[np.int64] = frame["doc_id"].to_numpy(dtype=np.int64)
        # runs of one task mostly have the same documents: held once
        twins = [one.doc_id for one in self.parts if one.task == pairs.task and np.array_equal(one.doc_id, docs)]
        docs = twins[0] if twins else docs
        diverged = frame.loc[changed | (flip != 0), _KEPT].reset_index(drop=True)
        right = frame["correct_baseline"].to_numpy(dtype=bool)
        self.parts.append(Part(pairs.task, run, docs, right, flip, diverged))

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(part.run for part in self.parts))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(part.task for part in self.parts))

    def negative_sets(self, task: str) -> dict[str, DivergedSet]:
        """The negatively diverged samples of one task, of each run that has it."""
        return {
            part.run: DivergedSet(part.doc_id, part.at_risk, part.flip == -1)
            for part in self.parts
            if part.task == task
        }


def membership(sets: dict[str, DivergedSet]) -> tuple[pd.DataFrame, int]:
    """Which samples diverge under which runs, for an UpSet plot: one row per sample, one bool column per run.

    Returns:
        The table, over the samples that all runs have, and the number of samples left out because some run lacks them.
    """
    import numpy as np
    import pandas as pd

    every = [one.doc_id for one in sets.values()]
    common, known = every[0], every[0]
    for docs in every[1:]:
        common, known = np.intersect1d(common, docs, assume_unique=True), np.union1d(known, docs)
    columns = {run: one.diverged[np.searchsorted(one.doc_id, common)] for run, one in sets.items()}
    return pd.DataFrame(columns, index=pd.Index(common, name="sample")), len(known) - len(common)
