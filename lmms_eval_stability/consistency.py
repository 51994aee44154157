"""Whether answers stay the same where the spectrum of the visual features stays the same: LoFi's claim, on any runs.

Sun et al., "Silent Hazards of Token Reduction in Vision-Language Models" (arXiv 2503.06794 v1-v2), relate the change of
the inverse participation ratio (IPR) of the visual features, |IPR(kept) - IPR(all)|, to the consistency of answers,
1 - DR. Here as Spearman's rank correlation, across runs (one point per method and budget) and across the samples of one
run, each with a permutation p-value: exact where all orders can be listed, else of a stated number of random ones. The
direction is not assumed: p-values are two-sided. Their layers and ranks are not known to us; what is correlated is what
the sample log holds.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, isfinite, nan
from typing import TYPE_CHECKING, Any

from .divergence import NO_RATE, Rate, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from .pairing import PairedSamples

    Floats = NDArray[np.float64]

RESAMPLES = 9999
#: Permutations of long columns held at once, in numbers: 64 MB.
_BLOCK = 1 << 23
#: Across samples, permutations times samples are at most so many numbers, a twentieth of a second ...
_NUMBERS = 5_000_000
#: ... but permutations at least so many.
_LEAST = 999


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        n: points.
        rho: nan for fewer than three points, or where one of the columns is constant.
        p: two-sided permutation p-value; nan where rho is.
        exact: whether all permutations were listed.
        resamples: random permutations, where they were not.
    """

    n: int
    rho: float
    p: float
    exact: bool = False
    resamples: int = 0

    def record(self) -> dict[str, Any]:
        """One flat dict, nan as None."""
        numbers = {"rho": self.rho, "p": self.p}
        known = {name: value if isfinite(value) else None for name, value in numbers.items()}
        return {"points": self.n, **known, "exact": self.exact, "resamples": self.resamples}


@dataclass(frozen=True)
class RunConsistency:
    """What one run says of one task.

    Attributes:
        run: its label.
        n: pairs whose log has both numbers. missing: pairs without.
        change: mean |IPR(kept) - IPR(all)| over these.
        consistency: 1 - DR over these, with Wilson's interval.
        samples: across samples, the change of the IPR against the answer staying the same.
    """

    run: str
    n: int
    missing: int
    change: float
    consistency: Rate
    samples: Correlation

    def record(self) -> dict[str, Any]:
        """One flat dict, nan as None."""
        same = self.consistency
        ends = {"consistency": same.value, "consistency_low": same.low, "consistency_high": same.high}
        whole = {"run": self.run, "n": self.n, "missing": self.missing, "ipr_change": self.change, **ends}
        return {**whole, **{name: value for name, value in self.samples.record().items() if name != "points"}}


@dataclass(frozen=True)
class TaskConsistency:
    """All runs of a task whose logs have both numbers, and the correlation across them: mean change against 1 - DR."""

    task: str
    runs: tuple[RunConsistency, ...]
    across: Correlation

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"task": self.task, "across": self.across.record(), "runs": [run.record() for run in self.runs]}


class IprColumns:
    """What the lines of a log say about the IPR of their visual tokens: 16 bytes per line that says anything."""

    def __init__(self) -> None:
        self._docs, self._changes = array("q"), array("d")

    def __len__(self) -> int:
        return len(self._docs)

    def add(self, doc_id: int, diagnostics: Any) -> None:
        """Note |IPR(kept) - IPR(all)| of one line, mean over its images; nothing if the line does not say."""
        if type(diagnostics) is not dict:
            return
        full, kept = diagnostics.get("ipr_full"), diagnostics.get("ipr_kept")
        if type(full) is not list or type(kept) is not list or len(full) != len(kept):
            return
        pairs = [(a, b) for a, b in zip(full, kept, strict=True) if _is_ratio(a) and _is_ratio(b)]
        if pairs:
            self._docs.append(doc_id)
            self._changes.append(sum(abs(b - a) for a, b in pairs) / len(pairs))

    def changes(self, docs: ArrayLike) -> Floats:
        """(m,) change of these documents; nan where their line does not say. Of several lines the first counts."""
        import numpy as np

        wanted = np.asarray(docs, dtype=np.int64)
        found = np.full(len(wanted), nan)
        if not self._docs:
            return found
        known, first = np.unique(np.array(self._docs, dtype=np.int64), return_index=True)
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        there = known[places] == wanted
        found[there] = np.array(self._changes)[first][places[there]]
        return found


def _is_ratio(value: Any) -> bool:
    return type(value) in (float, int) and 0 <= value <= 1.001


class ConsistencyStudy:
    """Collects what the runs of a comparison say, task by task."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[RunConsistency]] = {}

    def add(self, run: str, pairs: PairedSamples, ipr: IprColumns) -> None:
        """Measure one task of one run; nothing if its log has no IPR (baselines, quantisation, other models)."""
        if len(ipr):
            frame = pairs.frame
            found = measure_consistency(run, ipr.changes(frame["doc_id"]), frame["changed"])
            if found.n:
                self._tasks.setdefault(pairs.task, []).append(found)

    def tasks(self) -> tuple[TaskConsistency, ...]:
        """What was found."""
        return tuple(TaskConsistency(task, tuple(runs), across_runs(runs)) for task, runs in self._tasks.items())


def measure_consistency(run: str, change: ArrayLike, changed: ArrayLike, seed: int = 0) -> RunConsistency:
    """Relate the change of the IPR of each sample to whether its answer changed.

    Args:
        run: label.
        change: (n,) |IPR(kept) - IPR(all)|; nan where unknown.
        changed: (n,) whether the answer changed.
        seed: of the permutations.
    """
    import numpy as np

    change, changed = np.asarray(change, dtype=float), np.asarray(changed, dtype=bool)
    known = np.isfinite(change)
    n = int(known.sum())
    if not n:
        return RunConsistency(run, 0, len(known), nan, NO_RATE, Correlation(0, nan, nan))
    same = ~changed[known]
    resamples = max(_LEAST, min(RESAMPLES, _NUMBERS // n))
    rank = spearman(change[known], same, resamples=resamples, seed=seed)
    return RunConsistency(run, n, len(known) - n, float(change[known].mean()), wilson(int(same.sum()), n), rank)


def across_runs(runs: Sequence[RunConsistency], seed: int = 0) -> Correlation:
    """Across runs of one task: mean change of the IPR against 1 - DR; runs without a change are left out."""
    known = [run for run in runs if run.n]
    return spearman([run.change for run in known], [run.consistency.value for run in known], seed=seed)


def spearman(x: ArrayLike, y: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Correlation:
    """Spearman's rho with a permutation p-value; ties get mean ranks.

    Args:
        x, y: (n,) finite numbers.
        resamples: random permutations where n! is larger; p is then (1 + as extreme) / (1 + resamples).
        seed: of the permutations.

    Raises ValueError for lengths that differ.
    """
    import numpy as np
    from scipy.stats import rankdata

    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} values against {len(second)}: not one each")
    n = len(first)
    if n < 3 or (first == first[0]).all() or (second == second[0]).all():
        return Correlation(n, nan, nan)
    ranks = [rankdata(one) for one in (first, second)]
    a, b = ((one - one.mean()) / np.sqrt(((one - one.mean()) ** 2).sum()) for one in ranks)
    rho = float(a @ b)
    if factorial(min(n, 12)) <= resamples:
        return Correlation(n, rho, _listed(a, b, abs(rho)), exact=True)
    extreme = sum(_extreme(a, b, abs(rho), count, rng) for count, rng in _blocks(n, resamples, seed))
    return Correlation(n, rho, (1 + extreme) / (1 + resamples), resamples=resamples)


def _listed(a: Floats, b: Floats, least: float) -> float:
    """Share of all orders of b whose correlation is as large."""
    from itertools import permutations

    import numpy as np

    orders = np.array(list(permutations(range(len(b)))))
    return float((np.abs(b[orders] @ a) >= least - 1e-12).mean())


def _blocks(n: int, resamples: int, seed: int) -> list[tuple[int, np.random.Generator]]:
    import numpy as np

    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK // n)
    return [(min(size, resamples - start), rng) for start in range(0, resamples, size)]


def _extreme(a: Floats, b: Floats, least: float, count: int, rng: np.random.Generator) -> int:
    import numpy as np

    shuffled = rng.permuted(np.broadcast_to(b, (count, len(b))), axis=1)
    return int((np.abs(shuffled @ a) >= least - 1e-12).sum())
