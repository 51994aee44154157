"""How sure the model was, and whether that tells which answers flip: margins, calibration, logits of the first token.

All of it needs log-probabilities in the logs, as the models of this package write them: `first_token_logprobs`, the
five most probable first tokens as [id, text, natural log-probability], and `answer_logprob`, the sum over the whole
answer. Samples without them are nan in the arrays and left out of every number; n counts the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

from .divergence import NO_RATE, Rate, wilson

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

#: Log-probabilities are logged with six decimals: a probability may come out above 1 by this much.
RESOLUTION = 1e-6
#: How many of the most probable first tokens are logged.
LOGGED = 5


@dataclass(frozen=True)
class TopTokens:
    """The most probable first tokens of n answers.

    Attributes:
        ids: (n, 5) int64, most probable first; -1 where there is none.
        logprobs: (n, 5) natural log-probabilities; nan where there is none.
    """

    ids: NDArray[np.int64]
    logprobs: Floats

    @classmethod
    def from_log(cls, logged: Iterable[Any]) -> TopTokens:
        """From the logs' `first_token_logprobs`, one item per sample; None for a sample without.

        Raises ValueError, with the place of the sample, for what is no list of [id, text, log-probability].
        """
        import numpy as np

        rows = list(logged)
        ids = np.full((len(rows), LOGGED), -1, dtype=np.int64)
        logprobs = np.full((len(rows), LOGGED), np.nan)
        for i, row in enumerate(rows):
            try:
                for j, (token, _, logprob) in enumerate(() if row is None else row[:LOGGED]):
                    ids[i, j], logprobs[i, j] = token, logprob
            except (TypeError, ValueError) as error:
                raise ValueError(f"sample {i}: no list of [id, text, log-probability]: {row!r}") from error
        order = np.argsort(-logprobs, axis=1, kind="stable")
        return cls(np.take_along_axis(ids, order, 1), np.take_along_axis(logprobs, order, 1))

    def part(self, start: int, stop: int) -> TopTokens:
        """Those of the samples from start up to stop."""
        return TopTokens(self.ids[start:stop], self.logprobs[start:stop])

    @property
    def margin(self) -> Floats:
        """(n,) log-probability of the first token minus that of the second, in nats; nan without two tokens.

        The log of the ratio of both probabilities: 0 is a tie, 0.1 means 10 % more probable.
        """
        margin: Floats = self.logprobs[:, 0] - self.logprobs[:, 1]
        return margin

    @property
    def confidence(self) -> Floats:
        """(n,) probability of the most probable first token; nan where not logged."""
        import numpy as np

        return np.asarray(np.exp(self.logprobs[:, 0]), dtype=float)


@dataclass(frozen=True)
class Calibration:
    """Whether confidence is the chance to be right.

    Attributes:
        n: samples with a confidence.
        accuracy, confidence: their means.
        ece: expected calibration error, sum over bins of share * |accuracy - mean confidence|.
        brier: mean of (confidence - correct)^2. nll: mean of -log of the probability given to what happened, with
            confidences kept 2.2e-16 away from 0 and 1 (one sure error costs 36, not infinity).
        auroc: chance that a right answer has a higher confidence than a wrong one, with DeLong's interval.
        bins: the table behind `ece`: low, high (inclusive ends of the confidences in it), n, accuracy, confidence.
        scheme: "mass" or "width", how the bins were made.
    """

    n: int
    accuracy: float
    confidence: float
    ece: float
    brier: float
    nll: float
    auroc: Rate
    bins: pd.DataFrame
    scheme: str


def calibrate(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, scheme: str = "mass") -> Calibration:
    """Calibration of confidences against right and wrong.

    ECE depends on its bins. Bins of equal mass (Nixon et al., CVPR Workshops 2019) are the default: models are sure
    most of the time, and equal width (Guo et al., ICML 2017) leaves most bins all but empty. It is biased upwards, the
    more so the fewer samples a bin holds: a calibrated model has an expected ECE of about sqrt(bins / n) / 3.

    Args:
        confidence: (n,) in [0, 1], e.g. `TopTokens.confidence` or exp(answer_logprob); nan where unknown.
        correct: (n,) bool.
        bins: number of bins. Equal confidences share a bin, so that "mass" may give fewer and unequal ones.
        scheme: "mass" or "width".

    Raises ValueError for a confidence outside [0, 1] or an unknown scheme.
    """
    import numpy as np

    sure, right = _usable(confidence, correct)
    if ((sure < 0) | (sure > 1 + RESOLUTION)).any():
        raise ValueError("a confidence lies outside [0, 1]; log-probabilities need exp() first")
    sure = np.minimum(sure, 1.0)
    table = _binned(sure, bin_numbers(sure, bins, scheme), {"accuracy": right.astype(float), "confidence": sure})
    n = len(sure)
    if not n:
        return Calibration(0, nan, nan, nan, nan, nan, NO_RATE, table, scheme)
    gaps = (table["accuracy"] - table["confidence"]).abs().to_numpy(dtype=float)
    clipped = np.clip(sure, np.finfo(float).eps, 1 - np.finfo(float).eps)
    return Calibration(
        n=n,
        accuracy=float(right.mean()),
        confidence=float(sure.mean()),
        ece=float(table["n"].to_numpy(dtype=float) @ gaps / n),
        brier=float(((sure - right) ** 2).mean()),
        nll=float(-np.log(np.where(right, clipped, 1 - clipped)).mean()),
        auroc=auroc(sure, right),
        bins=table,
        scheme=scheme,
    )


def flip_rate_by_margin(margin: ArrayLike, flipped: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Share of samples that flip (or change, or are lost), by the baseline's margin: near ties flip first.

    The plot of Dutta et al., "Accuracy is Not All You Need", NeurIPS 2024 (arXiv 2407.09141), on the first token.

    Args:
        margin: (n,) of the baseline, see `TopTokens.margin`; nan where unknown.
        flipped: (n,) bool.
        bins: number of bins of equal mass; samples with equal margins share a bin.

    Returns:
        One row per bin, least margin first: low, high (inclusive), n, rate, rate_low, rate_high (Wilson).
    """
    values, events = _usable(margin, flipped)
    table = _binned(values, bin_numbers(values, bins, "mass"), {"rate": events.astype(float)})
    rates = [wilson(round(rate * n), n) for rate, n in zip(table["rate"].tolist(), table["n"].tolist(), strict=True)]
    return table.assign(rate_low=[rate.low for rate in rates], rate_high=[rate.high for rate in rates])


def auroc(values: ArrayLike, positive: ArrayLike, level: float = 0.95) -> Rate:
    """Chance that a positive sample has a greater value than a negative one, ties counting one half.

    For "does low confidence foretell flips" give the negated confidence and the flips. 0.5 says it tells nothing. The
    interval is DeLong, DeLong and Clarke-Pearson's (Biometrics 44 (1988), 837-845), cut to [0, 1]; its ends are nan
    with fewer than two samples of a kind, and where the kinds are parted so cleanly that its variance is 0.

    Args:
        values: (n,), nan where unknown. positive: (n,) bool.

    Returns:
        nan when one of both kinds is missing.
    """
    import numpy as np

    numbers, kind = _usable(values, positive)
    above, below = np.sort(numbers[kind]), np.sort(numbers[~kind])
    if not (len(above) and len(below)):
        return NO_RATE
    # of each sample, the share of the other kind that it beats
    wins = (np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")) / (2 * len(below))
    losses = 1 - (np.searchsorted(above, below, "left") + np.searchsorted(above, below, "right")) / (2 * len(above))
    area = float(wins.mean())
    if min(len(wins), len(losses)) < 2:
        return Rate(area, nan, nan)
    variance = float(wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses))
    if variance <= 0:
        return Rate(area, nan, nan)
    from scipy.special import ndtri

    half = float(ndtri(0.5 + level / 2)) * variance**0.5
    return Rate(area, max(0.0, area - half), min(1.0, area + half))


def _usable(values: ArrayLike, marks: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Both without the samples whose value is nan."""
    import numpy as np

    numbers, events = np.asarray(values, dtype=float), np.asarray(marks, dtype=bool)
    if numbers.shape != events.shape or numbers.ndim != 1:
        raise ValueError(f"{numbers.shape} values against {events.shape} marks: not one of each per sample")
    known = ~np.isnan(numbers)
    return numbers[known], events[known]


def bin_numbers(values: Floats, bins: int, scheme: str) -> NDArray[np.intp]:
    """The bin of each value, a function of the value alone."""
    import numpy as np

    if bins < 1:
        raise ValueError(f"{bins} bins: at least one is needed")
    if scheme == "width":
        # (0, 1/bins], (1/bins, 2/bins], ... with 0 in the first, as Guo et al. have them
        return np.clip(np.ceil(values * bins) - 1, 0, bins - 1).astype(np.intp)
    if scheme != "mass":
        raise ValueError(f"scheme {scheme!r}: expected mass or width")
    if not len(values):
        return np.empty(0, dtype=np.intp)
    inner = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    return np.searchsorted(np.unique(inner), values, side="left")


def _binned(values: Floats, numbers: NDArray[np.intp], means: dict[str, Floats]) -> pd.DataFrame:
    """One row per bin that holds a value: low, high, n and the means of further columns."""
    import pandas as pd

    groups = pd.DataFrame({"value": values, **means}).groupby(numbers)
    ends = {"low": groups["value"].min(), "high": groups["value"].max(), "n": groups["value"].size()}
    return pd.DataFrame({**ends, **{name: groups[name].mean() for name in means}}).reset_index(drop=True)
