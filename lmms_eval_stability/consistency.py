"""Whether answers stay the same where the spectrum of the visual features stays the same: LoFi's claim, on any runs.

Sun et al., "Silent Hazards of Token Reduction in Vision-Language Models" (arXiv 2503.06794 v1-v2), relate the change of
the inverse participation ratio (IPR) of the visual features, |IPR(kept) - IPR(all)|, to the consistency of answers,
1 - DR. Here as Spearman's rank correlation, across runs (one point per method and budget) and across the samples of one
run, each with a permutation p-value: exact where all orders can be listed, else of a stated number of random ones. The
direction is not assumed: p-values are two-sided. Their layers and ranks are not known to us; what is correlated is what
the sample log holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, isfinite, nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 9999
#: Permutations of long columns held at once, in numbers: 64 MB.
_BLOCK = 1 << 23


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        n: points.
        rho: nan for fewer than three points, or where one of the columns is constant.
        p: two-sided permutation p-value; nan where rho is.
        exact: whether all permutations were listed.
    """

    n: int
    rho: float
    p: float
    exact: bool = False

    def record(self) -> dict[str, Any]:
        """One flat dict, nan as None."""
        numbers = {"rho": self.rho, "p": self.p}
        return {"n": self.n, **{k: v if isfinite(v) else None for k, v in numbers.items()}, "exact": self.exact}


@dataclass(frozen=True)
class RunSpectrum:
    """What one run says of one task.

    Attributes:
        label: of the run. task: of the pairs.
        change: (pairs,) |IPR(kept) - IPR(all)| of each sample, mean over its images; nan where the log has none.
        changed: (pairs,) bool, whether the answer changed.
    """

    label: str
    task: str
    change: Floats
    changed: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which pairs have a change."""
        import numpy as np

        return np.isfinite(self.change)

    @property
    def consistency(self) -> float:
        """1 - DR over the pairs with a known change; nan without any."""
        known = self.known
        return 1 - float(self.changed[known].mean()) if known.any() else nan

    @property
    def mean_change(self) -> float:
        """Mean change of the IPR; nan without any."""
        known = self.known
        return float(self.change[known].mean()) if known.any() else nan

    def correlation(self, seed: int = 0) -> Correlation:
        """Across samples: change of the IPR against the answer staying the same."""
        known = self.known
        return spearman(self.change[known], ~self.changed[known], seed=seed)


def across_runs(runs: Sequence[RunSpectrum], seed: int = 0) -> Correlation:
    """Across runs of one task: mean change of the IPR against 1 - DR; runs without a change are left out."""
    points = [(run.mean_change, run.consistency) for run in runs if run.known.any()]
    return spearman([x for x, _ in points], [y for _, y in points], seed=seed)


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
    return Correlation(n, rho, (1 + extreme) / (1 + resamples))


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
