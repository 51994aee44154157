"""Many tests at once, and what a test could have found.

A table of tasks x methods holds one McNemar p per cell. Read one by one, about one in twenty falls below 0.05 with
nothing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan, nan, sqrt
from typing import TYPE_CHECKING

from .divergence import Divergence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def holm(p: ArrayLike) -> Floats:
    """p-values adjusted by Holm's step-down rule, in the order given.

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection among them at or below
    alpha, whatever the tests' dependence. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.

    Args:
        p: p-values of one family. nan stands for a test that was not made: it stays nan and is not counted.

    Raises ValueError for a number outside [0, 1].
    """
    import numpy as np

    values, made, order = _sorted(p)
    m = len(order)
    steps = np.maximum.accumulate(values[made][order] * np.arange(m, 0, -1)) if m else np.empty(0)
    return _put_back(values, made, order, steps)


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """p-values adjusted for the false discovery rate, in the order given.

    Rejecting where the adjusted value is at most q keeps the expected share of false ones among the rejections at or
    below q, for independent and for positively dependent tests (methods compared with one baseline on the same samples
    are positively dependent). Benjamini and Hochberg, JRSS B 57 (1995), 289-300; Benjamini and Yekutieli, Annals of
    Statistics 29 (2001), 1165-1188.

    Args:
        p: as for `holm`.
    """
    import numpy as np

    values, made, order = _sorted(p)
    m = len(order)
    raw = values[made][order] * m / np.arange(1, m + 1)
    steps = np.minimum.accumulate(raw[::-1])[::-1] if m else raw
    return _put_back(values, made, order, steps)


def _sorted(p: ArrayLike) -> tuple[Floats, NDArray[np.bool_], NDArray[np.intp]]:
    """The values, which of them are tests, and the ascending order of those."""
    import numpy as np

    values = np.asarray(p, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"p-values of one family are a flat list, not of shape {values.shape}")
    made = ~np.isnan(values)
    if ((values[made] < 0) | (values[made] > 1)).any():
        raise ValueError("a p-value lies outside [0, 1]")
    return values, made, np.argsort(values[made], kind="stable")


def _put_back(values: Floats, made: NDArray[np.bool_], order: NDArray[np.intp], steps: Floats) -> Floats:
    import numpy as np

    adjusted = np.full(len(values), np.nan)
    places = np.flatnonzero(made)[order]
    adjusted[places] = np.minimum(steps, 1.0)
    return adjusted


def adjust(table: pd.DataFrame, p: str = "mcnemar_p", families: Sequence[str] = ()) -> pd.DataFrame:
    """The table with `<p>_holm` and `<p>_fdr` beside the p-values.

    Args:
        table: one row per test, e.g. `Comparison.table`; rows without p (averages) have none afterwards either.
        p: column of the p-values.
        families: columns whose values part the table into families of their own. By default all tests of the table,
            tasks x methods, are one family.
    """
    import numpy as np
    import pandas as pd

    values = pd.to_numeric(table[p]).to_numpy(dtype=float)
    adjusted = {f"{p}_holm": np.full(len(table), nan), f"{p}_fdr": np.full(len(table), nan)}
    groups = table.groupby(list(families), dropna=False, sort=False).indices.values() if families else [slice(None)]
    for rows in groups:
        adjusted[f"{p}_holm"][rows] = holm(values[rows])
        adjusted[f"{p}_fdr"][rows] = benjamini_hochberg(values[rows])
    return table.assign(**adjusted)


def adjust_rows(runs: Sequence[Sequence[Divergence]]) -> list[list[Divergence]]:
    """The rows of a comparison, by run, with adjusted p-values and what their tests could have found.

    All tests, tasks x runs, are one family. An adjusted p is only there where more than one test was made: of a single
    test it would be the p itself.
    """
    p = [row.mcnemar_p for rows in runs for row in rows]
    several = sum(not isnan(value) for value in p) > 1
    adjusted = zip(holm(p).tolist(), benjamini_hochberg(p).tolist(), strict=True) if several else None

    def fill(row: Divergence) -> Divergence:
        by_holm, by_fdr = next(adjusted) if adjusted else (nan, nan)
        flips = min(1.0, row.ndr.value + row.pdr.value)  # two rates of the same pairs: above 1 by rounding only
        effect = minimum_detectable_effect(row.n, flips)
        return replace(row, mcnemar_p_holm=by_holm, mcnemar_p_fdr=by_fdr, minimum_detectable_effect=effect)

    return [[fill(row) for row in rows] for rows in runs]


def minimum_detectable_effect(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Least true difference of two accuracies that a two-sided McNemar test finds with this power.

    The effect d solves d * sqrt(n) = z_a * sqrt(f) + z_b * sqrt(f - d^2), with f the discordant share and z_a, z_b the
    normal quantiles of 1 - alpha / 2 and of the power (Connor, Biometrics 43 (1987), 207-211; Connett, Smith and
    McHugh, Statistics in Medicine 6 (1987), 53-59). It is a normal approximation; the exact test is conservative: for
    a power of 0.80 it has 0.77 at 20 to 100 flips and 0.79 at 500.

    With f taken from the data this says how fine the comparison was, not what its chance of success is.

    Args:
        n: pairs.
        discordant: share of pairs with one right and one wrong answer, that is, flips: NDR + PDR.
        alpha: level of the test; for one of m tests under family-wise control alpha / m is the safe choice.
        power: wanted chance to reject.

    Returns:
        The difference as a fraction; nan if there is nothing to count, no flip, or if not even flips that all go one
        way (a difference of f, the greatest there can be) would be found.
    """
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha {alpha} and power {power} must lie between 0 and 1")
    if n < 0 or discordant < 0 or discordant > 1:
        raise ValueError(f"{n} pairs with a share {discordant} of flips: there is no such sample")
    if n == 0 or discordant != discordant or discordant == 0:
        return nan
    from scipy.special import ndtri

    z_a, z_b = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    # squared and solved for d; below zero there is no difference small enough to satisfy the equation
    under = n + z_b * z_b - z_a * z_a
    if under < 0:
        return nan
    effect = sqrt(discordant) * (z_a * sqrt(n) + z_b * sqrt(under)) / (n + z_b * z_b)
    return effect if effect <= discordant else nan
