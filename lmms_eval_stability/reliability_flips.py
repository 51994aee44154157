"""Which samples flip: how many flips the closest calls hold, and a logistic regression of flips on what samples are.

A flip is a verdict that changes, in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, isfinite, nan
from typing import TYPE_CHECKING, Any

from .bootstrap import cluster_rate
from .divergence import Rate, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

#: Shares of the samples, least margin first, of which it is said how many flips they hold.
LOWEST = (0.05, 0.10, 0.25, 0.50)
#: Fewer flips, or fewer samples without one, say nothing about what makes them flip.
LEAST_EVENTS = 10
#: Categories with fewer flips, or fewer samples without one, are taken together.
LEAST_IN_CATEGORY = 5
#: Above it a term says nearly what the others say together (Belsley, Kuh and Welsch 1980; 10 is the usual mark).
MOST_VIF = 10.0
#: Fewer flips per term and the intervals are rough (Peduzzi et al., J. Clin. Epidemiol. 49 (1996)).
EVENTS_PER_TERM = 10
#: Name of what small categories are taken together as.
OTHER = "(other)"
#: A coefficient per standard deviation beyond this is looked at for separation: e^10 is no odds ratio.
_SUSPECT = 10.0


@dataclass(frozen=True)
class Concentration:
    """The samples with the least margins.

    Attributes:
        share: of all samples with a margin, 0.1 for the lowest 10 %.
        margin: the greatest margin among them, in nats.
        flips: share of all flips that they hold, with its interval.
        rate: share of them that flip. rate_all: share of all samples that flip.
    """

    share: float
    margin: float
    flips: Rate
    rate: float
    rate_all: float


def lowest_margins(margin: ArrayLike, flipped: ArrayLike, clusters: ArrayLike | None = None) -> list[Concentration]:
    """How many flips the samples of the `LOWEST` margins hold; empty without margins or flips.

    Of samples whose margins tie where the share ends, each counts by the part of the tie that belongs to it.

    Args:
        margin: (n,) of the baseline, nan where unknown. flipped: (n,) bool.
        clusters: (n,) for the intervals, see `bootstrap.cluster_rate`; Wilson's for None.
    """
    import numpy as np

    values, events = np.asarray(margin, dtype=float), np.asarray(flipped, dtype=bool)
    known = np.isfinite(values)
    values, events = values[known], events[known]
    codes = None if clusters is None else np.asarray(clusters)[known]
    n, flips = len(values), int(events.sum())
    if not flips:
        return []
    ordered = np.sort(values)
    found = []
    for share in LOWEST:
        wanted = share * n
        end = float(ordered[min(n - 1, int(np.ceil(wanted)) - 1)])
        below, tied = values < end, values == end
        part = np.where(below, 1.0, np.where(tied, (wanted - below.sum()) / tied.sum(), 0.0))
        held = float(part[events].sum())
        if codes is None:
            rate = wilson(round(held), flips)
            rate = Rate(held / flips, rate.low, rate.high)
        else:
            rate = cluster_rate(part, codes, among=events)
        found.append(Concentration(share, end, rate, held / wanted, flips / n))
    return found


@dataclass(frozen=True)
class OddsRatio:
    """What a term does to the odds of a flip, all other terms being the same.

    Attributes:
        term: a number's name, or "dimension: category".
        against: what it is compared with: "+1 SD (0.53)", or the reference category.
        odds_ratio: above 1, flips become more frequent. low, high: ends of its 95 % interval (Wald).
        p: that the ratio is 1.
    """

    term: str
    against: str
    odds_ratio: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class FlipRegression:
    """A logistic regression of flips.

    Attributes:
        n, flips: samples with all numbers known, and how many of them flip.
        ratios: one per term.
        covariance: "model" or "cluster-robust"; clusters: how many there are, 0 for "model".
        pseudo_r2: McFadden's. auroc: of the fitted chances for the flips, on the same samples, so a little too good.
        notes: what was left out, taken together or should be known, in words.
        refused: why there is no regression; empty if there is one.
    """

    n: int
    flips: int
    ratios: tuple[OddsRatio, ...] = ()
    covariance: str = "model"
    clusters: int = 0
    pseudo_r2: float = nan
    auroc: float = nan
    notes: tuple[str, ...] = ()
    refused: str = ""


@dataclass
class _Design:
    """Columns of a regression, and what is to be said about them."""

    names: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    columns: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, against: str, column: Any) -> None:
        self.names.append(name)
        self.against.append(against)
        self.columns.append(column)

    def drop(self, place: int) -> None:
        for values in (self.names, self.against, self.columns):
            del values[place]

    def matrix(self) -> Floats:
        """With the intercept as the last column."""
        import numpy as np

        return np.stack([*self.columns, np.ones(len(self.columns[0]))], axis=1)


def regress_flips(
    flipped: ArrayLike,
    numbers: Mapping[str, ArrayLike],
    categories: Mapping[str, ArrayLike] | None = None,
    clusters: ArrayLike | None = None,
) -> FlipRegression:
    """Logistic regression of flips by maximum likelihood (statsmodels' Logit).

    Numbers are scaled to a standard deviation of 1. Of each dimension the most frequent category is the reference;
    categories with fewer than five flips, or five samples without one, are taken together. What cannot be estimated is
    left out by name: constants, terms that are combinations of earlier ones, and terms that part flips from the others
    without exception (separation: their likeliest odds ratio is infinite). Terms that nearly say the same are kept and
    named (variance inflation above 10). With clusters the covariance is the cluster-robust one (Liang and Zeger 1986).

    Args:
        flipped: (n,) bool.
        numbers: name -> (n,) values; nan where unknown, and such samples are left out. A number that is known of no
            sample is left out itself.
        categories: name -> (n,) labels, None where there is none.
        clusters: (n,) labels of what belongs together.
    """
    import numpy as np

    events = np.asarray(flipped, dtype=bool)
    given = {name: np.asarray(values, dtype=float) for name, values in numbers.items()}
    design = _Design()
    for name in [name for name, values in given.items() if not np.isfinite(values).any()]:
        del given[name]
        design.notes.append(f"{name} is not known: left out")
    known = np.ones(len(events), dtype=bool)
    for values in given.values():
        known &= np.isfinite(values)
    y = events[known].astype(float)
    n, flips = len(y), int(y.sum())
    if min(flips, n - flips) < LEAST_EVENTS:
        few = f"{flips} of {n} samples flip: too few" if flips < LEAST_EVENTS else f"all but {n - flips} of {n} flip"
        return FlipRegression(n, flips, refused=f"{few} to tell what makes them flip (least: {LEAST_EVENTS})")
    if not known.all():
        design.notes.append(f"{int((~known).sum())} samples are left out: not all of their numbers are known")
    for name, values in given.items():
        _add_number(design, name, values[known])
    for name, labels in (categories or {}).items():
        _add_categories(design, name, np.asarray(labels, dtype=object)[known], y)
    _drop_combinations(design)
    codes = None if clusters is None else np.unique(np.asarray(clusters)[known], return_inverse=True)[1]
    return _fit(design, y, codes)


def _add_number(design: _Design, name: str, values: Floats) -> None:
    spread = float(values.std())
    if spread <= 1e-9 * max(1.0, abs(float(values.mean()))):
        design.notes.append(f"{name} is the same for all samples: left out")
        return
    design.add(name, f"+1 SD ({spread:.3g})", (values - values.mean()) / spread)


def _add_categories(design: _Design, name: str, labels: NDArray[np.object_], y: Floats) -> None:
    import numpy as np

    texts = np.array(["(none)" if label is None or label != label else str(label) for label in labels], dtype=object)
    names, codes, sizes = np.unique(texts.astype(str), return_inverse=True, return_counts=True)
    events = np.bincount(codes, weights=y, minlength=len(names))
    small = np.minimum(events, sizes - events) < LEAST_IN_CATEGORY
    if small.any():
        texts[small[codes]] = OTHER
        design.notes.append(
            f"{name}: {', '.join(names[small][:5])}{' ...' if small.sum() > 5 else ''} taken together as {OTHER} "
            f"(fewer than {LEAST_IN_CATEGORY} flips, or than {LEAST_IN_CATEGORY} others)"
        )
        names, sizes = np.unique(texts.astype(str), return_counts=True)
    if len(names) < 2:
        design.notes.append(f"{name} has one category that can be estimated: left out")
        return
    reference = str(names[int(np.argmax(sizes))])
    for category in names.tolist():
        if category != reference:
            design.add(f"{name}: {category}", reference, (texts == category).astype(float))


def _drop_combinations(design: _Design) -> None:
    """Leave out each column that the intercept and those before it already say."""
    import numpy as np

    place = 0
    while place < len(design.columns):
        before = np.stack([np.ones(len(design.columns[0])), *design.columns[:place]], axis=1)
        column = design.columns[place]
        rest = column - before @ np.linalg.lstsq(before, column, rcond=None)[0]
        if rest.std() > 1e-6 * column.std():
            place += 1
            continue
        design.notes.append(f"{design.names[place]} follows from the terms before it (collinear): left out")
        design.drop(place)


def _fit(design: _Design, y: Floats, codes: NDArray[np.intp] | None) -> FlipRegression:
    """Fit; where a term separates, leave it out and fit again."""
    n, flips = len(y), int(y.sum())
    fitted = None
    while design.columns:
        fitted = _logit(design.matrix(), y, codes)
        if fitted is not None and abs(fitted.params[:-1]).max() < _SUSPECT:
            break
        separating = _separating(design.matrix(), y)
        if not separating:
            if fitted is not None:
                break
            return FlipRegression(n, flips, notes=tuple(design.notes), refused="the likelihood has no maximum found")
        for place in reversed(separating):
            design.notes.append(
                f"{design.names[place]} parts flips from other samples without exception (separation): left out, its "
                "odds ratio has no end"
            )
            design.drop(place)
        fitted = None
    if fitted is None:
        return FlipRegression(n, flips, notes=tuple(design.notes), refused="no term is left to explain flips by")
    return _described(design, y, codes, fitted)


def _logit(matrix: Floats, y: Floats, codes: NDArray[np.intp] | None) -> Any:
    """statsmodels' result; None where Newton's method finds no maximum."""
    import warnings

    import numpy as np
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    robust = codes is not None and int(codes.max()) + 1 > matrix.shape[1]
    options = {"cov_type": "cluster", "cov_kwds": {"groups": codes}} if robust else {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # separation and failed convergence are looked for below, and named
        try:
            found = Logit(y, matrix).fit(disp=0, maxiter=100, **options)
        except (np.linalg.LinAlgError, PerfectSeparationError):
            return None
    usable = found.mle_retvals["converged"] and np.isfinite(found.params).all() and np.isfinite(found.bse).all()
    return found if usable else None


def _separating(matrix: Floats, y: Floats) -> list[int]:
    """Places of terms without a finite estimate: those that separate alone, or else the one that does most with others.

    Data are separated where some b other than 0 has s x.b >= 0 for every sample, s being 1 for a flip and -1 for none,
    and more than 0 for one of them (Albert and Anderson, Biometrika 71 (1984)); a linear program finds it (Konis 2007).
    """
    import numpy as np

    together = _direction(matrix, y)
    if together is None:
        return []
    terms = range(matrix.shape[1] - 1)
    alone = [place for place in terms if _direction(matrix[:, [place, -1]], y) is not None]
    return alone or [int(np.argmax(np.abs(together[:-1])))]


def _direction(matrix: Floats, y: Floats) -> Floats | None:
    """The b of `_separating`, bounded by 1; None where the data overlap."""
    import numpy as np
    from scipy.optimize import linprog

    signed = (2 * y - 1)[:, None] * matrix
    solved = linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=(-1, 1), method="highs")
    return np.asarray(solved.x, dtype=float) if solved.status == 0 and -solved.fun > 1e-7 else None


def _described(design: _Design, y: Floats, codes: NDArray[np.intp] | None, fitted: Any) -> FlipRegression:
    from .calibration import auroc

    terms, flips = len(design.names), int(y.sum())
    notes = list(design.notes)
    robust = fitted.cov_type == "cluster"
    if codes is not None and not robust:
        notes.append(
            f"{int(codes.max()) + 1} clusters are too few for {terms + 1} coefficients: samples as independent"
        )
    if min(flips, len(y) - flips) < EVENTS_PER_TERM * terms:
        notes.append(f"{min(flips, len(y) - flips)} events for {terms} terms: take the intervals as rough")
    notes += _inflated(design)
    ends = fitted.conf_int()
    ratios = [
        OddsRatio(name, against, _exp(fitted.params[i]), _exp(ends[i][0]), _exp(ends[i][1]), float(fitted.pvalues[i]))
        for i, (name, against) in enumerate(zip(design.names, design.against, strict=True))
    ]
    return FlipRegression(
        n=len(y),
        flips=flips,
        ratios=tuple(ratios),
        covariance="cluster-robust" if robust else "model",
        clusters=int(codes.max()) + 1 if robust and codes is not None else 0,
        pseudo_r2=float(fitted.prsquared),
        auroc=auroc(fitted.predict(), y > 0).value,
        notes=tuple(notes),
    )


def _inflated(design: _Design) -> list[str]:
    """Terms that the others nearly say: the variance of their coefficient is inflated by more than `MOST_VIF`."""
    import numpy as np

    if len(design.columns) < 2:
        return []
    inverse = np.linalg.inv(np.corrcoef(np.stack(design.columns)))
    high = [f"{name} ({vif:.0f})" for name, vif in zip(design.names, np.diag(inverse), strict=True) if vif > MOST_VIF]
    return [f"variance inflated, hardly told apart from other terms: {', '.join(high)}"] if high else []


def _exp(value: float) -> float:
    return exp(value) if isfinite(value) and value < 700 else nan
