"""Intervals for differences of ECE and its parts, sums over bins of the size |g| of a gap that may well be 0.

|g| has a kink at 0: a noisy gap's size is too large on average, by up to 0.8 standard errors, and a bootstrap folds
noise up once more, so percentile intervals miss. Choosing a side of the kink by a test of each bin (Fang and Santos,
Review of Economic Studies 86 (2019)) fails for gaps of one or two standard errors, which no test can tell from 0. No
unbiased estimate of |g| exists (Cai and Low, Annals of Statistics 39 (2011)). So here:

1. each bin's |g| is corrected so that its bias is at most `LARGEST_BIAS` standard errors, wherever g lies;
2. the standard error of the difference of the sums comes from the cluster bootstrap of both runs together;
3. the half-width allows for the bias that may be left (Armstrong and Kolesár, Econometrica 86 (2018)).

How often the intervals hold the true difference: `scripts/simulate_calibration_intervals.py`, docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: The numbers concerned, with their bins and what of the gaps they sum.
BINNED = {
    "ece_mass": ("mass", "size"),
    "ece_width": ("width", "size"),
    "over_confidence": ("mass", "over"),
    "under_confidence": ("mass", "under"),
}
#: Greatest bias of `corrected_size`, in standard errors, for a gap with normal noise. The size itself has 0.80.
LARGEST_BIAS = 0.172
#: Of the correction exp(-z²/2) (a - b z²): minimise the greatest bias plus a twentieth of the greatest variance.
_AT_KINK, _CURVE = 1.53, 1.285
#: A gap beyond so many standard errors lies clear of the kink.
_CLEAR = 3.0


@dataclass(frozen=True)
class Gaps:
    """Gaps of one run's bins: summed confidence minus right answers, as shares of all samples.

    Attributes:
        values: (bins,). drawn: (r, bins) the same in r bootstrap samples, r >= 2.
        calibrated: (bins,) standard errors that a calibrated model with independent samples would have.
    """

    values: Floats
    drawn: Floats
    calibrated: Floats


@dataclass(frozen=True)
class CorrectedDifference:
    """A difference without the bins' noise as far as it can be removed, and the ends of its interval; or all nan."""

    value: float
    low: float
    high: float


NO_CORRECTED = CorrectedDifference(nan, nan, nan)


def corrected_size(gaps: Floats, errors: Floats) -> Floats:
    """|gap| with the mean of its noise taken away: |g| - s exp(-z²/2) (1.53 - 1.285 z²), with z = g / s.

    For g normal around G with standard error s the mean lies within `LARGEST_BIAS` s of |G|. Below 0 where g is near 0,
    which sums over bins need to be right on average.

    Args:
        gaps: (..., bins). errors: (bins,); 0 for a gap without noise, which is left as it is.
    """
    import numpy as np

    squares = (gaps / np.where(errors > 0, errors, np.inf)) ** 2
    return np.asarray(np.abs(gaps) - errors * np.exp(-squares / 2) * (_AT_KINK - _CURVE * squares), dtype=float)


def corrected_difference(
    baseline: Gaps, run: Gaps, part: str = "size", level: float = 0.95, least: float = 1e-12
) -> CorrectedDifference:
    """The difference, run minus baseline, of sums over bins, with an interval that holds wherever the gaps lie.

    It is an interval of the difference of both models' sums over all samples there could be, in the bins of these data.

    Args:
        baseline, run: drawn together, one row per bootstrap sample.
        part: "size": |gap|, as in ECE. "over": what lies above 0. "under": what lies below.
        level: of the interval. least: a spread up to which all draws agree.

    Returns:
        nan without draws, and where all of them agree.

    Raises ValueError for an unknown part.
    """
    if part not in ("size", "over", "under"):
        raise ValueError(f"part {part!r}: expected size, over or under")
    if len(run.drawn) < 2:
        return NO_CORRECTED
    sides = [_Side.of(gaps, part) for gaps in (baseline, run)]
    differences = sides[1].drawn - sides[0].drawn
    if differences.max() - differences.min() <= least:
        return NO_CORRECTED
    value = sides[1].value - sides[0].value
    # as though the runs were independent: what they share leaves their biases, too
    spread = sqrt(sides[0].drawn.var() + sides[1].drawn.var())
    half = _critical((sides[0].bias + sides[1].bias) / spread, level) * float(differences.std())
    return CorrectedDifference(value, value - half, value + half)


def corrected_differences(
    baseline: Mapping[str, Gaps], run: Mapping[str, Gaps], level: float = 0.95
) -> dict[str, CorrectedDifference]:
    """`corrected_difference` of each of `BINNED`, from both runs' gaps by scheme ("mass", "width")."""
    return {
        name: corrected_difference(baseline[scheme], run[scheme], part, level)
        for name, (scheme, part) in BINNED.items()
    }


@dataclass(frozen=True)
class _Side:
    """One run's corrected sum, draws of it, (r,), and the most by which it may be off on average."""

    value: float
    drawn: Floats
    bias: float

    @classmethod
    def of(cls, gaps: Gaps, part: str) -> _Side:
        import numpy as np

        found, errors = gaps.values, gaps.drawn.std(axis=0)
        # without a wrong answer a bin's draws show hardly any noise, however few its samples are: where its gap is one
        # that a calibrated model may show, its error is at least that of such a model
        unclear = (np.abs(found) < _CLEAR * gaps.calibrated) & (errors < gaps.calibrated)
        own, errors = errors, np.where(unclear, gaps.calibrated, errors)
        noise = (gaps.drawn - found) * np.where(own > 0, errors / np.where(own > 0, own, 1.0), 1.0)
        bias = LARGEST_BIAS * float(errors[np.abs(found) < _CLEAR * errors].sum())
        return cls(
            float(_sums(found, errors, part)),
            _sums(found + noise, errors, part),
            bias if part == "size" else bias / 2,
        )


def _sums(gaps: Floats, errors: Floats, part: str) -> Floats:
    """(...,) sums over the bins: max(g, 0) is (|g| + g) / 2, and max(-g, 0) is (|g| - g) / 2."""
    import numpy as np

    sizes, signed = corrected_size(gaps, errors).sum(axis=-1), gaps.sum(axis=-1)
    return np.asarray({"size": sizes, "over": (sizes + signed) / 2, "under": (sizes - signed) / 2}[part], dtype=float)


def _critical(bias: float, level: float) -> float:
    """What |Z + bias| exceeds with a chance of 1 - level, Z being standard normal: 1.96 for no bias and 95 %."""
    from scipy.special import chndtrix

    return sqrt(float(chndtrix(level, 1, bias * bias)))
