"""How far a run's confidence can be relied on beside the baseline's, and which samples flip: `compare --reliability`.

Needs log-probabilities in the logs, as the models of this package write them. What of a task cannot be said, and why,
is part of its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from .calibration import calibrate, flip_rate_by_margin
from .categories import CLUSTER, IMAGE
from .divergence import Rate
from .logits import FirstTokens, compare_first_tokens
from .openanswers import OpenAnswers, compare_open_answers
from .reliability_columns import LogProbabilities
from .reliability_flips import Concentration, FlipRegression, lowest_margins, regress_flips
from .reliability_scores import (
    BINS,
    Curve,
    ScoreDifference,
    flip_auroc,
    replicates_for,
    risk_coverage,
    score_differences,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from .clusters import Clusters
    from .pairing import PairedSamples

    Floats = NDArray[np.float64]

#: What a confidence can be: the probability of the whole answer, of its first token, of its tokens on average.
ANSWER, FIRST_TOKEN, PER_TOKEN = "answer", "first token", "per token"
#: Answers with so many words, on average, are open: where they part is worth saying.
OPEN_WORDS = 2.0
#: Bins of flips by margin.
DECILES = 10
#: A dimension with more categories than this says too little of each to be a term of the regression.
MOST_CATEGORIES = 30


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: its confidences from low to high, and the means over its n samples."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ConfidenceComparison:
    """Confidence of one kind in baseline and run, over the samples for which both logs have it.

    Attributes:
        kind: "answer", "first token" or "per token", see `docs/reliability.md`.
        n: samples. missing: pairs without.
        clusters, replicates: clusters that were drawn for the intervals, and how often.
        bins: bins of ECE that were asked for; ties can make them fewer.
        scores: the numbers of both runs.
        diagram_baseline, diagram_run: bins of equal mass. curve_baseline, curve_run: risk over coverage.
        flip_auroc: of low confidence in the baseline for flips, with the ends of its interval.
    """

    kind: str
    n: int
    missing: int
    clusters: int
    replicates: int
    bins: int
    scores: tuple[ScoreDifference, ...]
    diagram_baseline: tuple[Bin, ...]
    diagram_run: tuple[Bin, ...]
    curve_baseline: Curve
    curve_run: Curve
    flip_auroc: Rate


@dataclass(frozen=True)
class MarginBin:
    """Samples of one bin of the baseline's margins, and the share of them that flip, with its Wilson interval."""

    low: float
    high: float
    n: int
    rate: float
    rate_low: float
    rate_high: float


@dataclass(frozen=True)
class Margins:
    """Flips by the baseline's margin: n samples have one, `missing` have none."""

    n: int
    missing: int
    bins: tuple[MarginBin, ...]
    lowest: tuple[Concentration, ...]
    flip_auroc: Rate


@dataclass(frozen=True)
class TaskReliability:
    """What the log-probabilities of one task of one run, beside the baseline's, say.

    Attributes:
        confidences: one per kind that both logs have.
        margins, first_tokens, regression: None where the logs do not say.
        open_answers: None where answers are single words.
        missing: sentences on what cannot be said, and why.
    """

    task: str
    run: str
    n: int
    confidences: tuple[ConfidenceComparison, ...] = ()
    margins: Margins | None = None
    first_tokens: FirstTokens | None = None
    open_answers: OpenAnswers | None = None
    regression: FlipRegression | None = None
    missing: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether both logs say anything about confidence."""
        return bool(self.confidences)

    def record(self) -> dict[str, Any]:
        """All of it as JSON: dicts, lists, numbers; None for numbers that there are not."""
        found: dict[str, Any] = plain(self)
        return found


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, and numbers that are not finite as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


@dataclass(frozen=True)
class Side:
    """One run of a pair: its label, what its log says, and its decoder layers (None where it does not say)."""

    label: str
    logprobs: LogProbabilities
    layers: int | None = None


@dataclass(frozen=True)
class Flips:
    """The flips of one task of one run, and what may explain them, one value per pair.

    Attributes:
        docs: documents. flipped: bool. codes: of the clusters; None where samples belong to none.
        numbers: margin and confidence of the baseline, kept tokens of the run; nan where not logged.
        categories: labels by dimension.
    """

    docs: NDArray[np.int64]
    flipped: NDArray[np.bool_]
    codes: NDArray[Any] | None
    numbers: dict[str, Floats]
    categories: dict[str, NDArray[np.object_]]


def flips_of(
    pairs: PairedSamples, baseline: Side, run: Side, clusters: Clusters | None, labels: pd.DataFrame | None
) -> Flips:
    """Gather what may explain flips.

    Args:
        pairs: the paired samples of one task.
        baseline, run: what both logs say.
        clusters, labels: of the baseline, see `clusters.find_clusters` and `samples.SampleTable`.
    """
    import numpy as np

    docs = pairs.frame["doc_id"].to_numpy()
    numbers = {
        "margin": baseline.logprobs.top_tokens(docs).margin,
        "confidence": np.exp(baseline.logprobs.answers(docs)),
        "kept tokens": run.logprobs.kept(docs, run.layers),
    }
    categories: dict[str, NDArray[np.object_]] = {}
    if labels is not None:
        for name in labels.columns.difference([CLUSTER, IMAGE], sort=False):
            column = labels[name].reindex(docs)
            if 1 < column.nunique() <= MOST_CATEGORIES:
                categories[name] = column.to_numpy(dtype=object)
    codes = None if clusters is None else clusters.codes.reindex(docs).to_numpy()
    return Flips(docs, (pairs.frame["flip"] != "").to_numpy(dtype=bool), codes, numbers, categories)


def measure_reliability(pairs: PairedSamples, baseline: Side, run: Side, flips: Flips) -> TaskReliability:
    """All that the logs say about one task of one run.

    Args:
        pairs: its paired samples.
        baseline, run: what both logs say.
        flips: what `flips_of` gathers of them.
    """
    frame, codes = pairs.frame, flips.codes
    before, after = (side.logprobs.top_tokens(flips.docs) for side in (baseline, run))
    kinds = confidence_kinds(pairs, baseline, run)
    measured = (_confidence(kind, one, other, frame, codes) for kind, (one, other) in kinds.items())
    confidences = tuple(one for one in measured if one is not None)
    first = compare_first_tokens(before, after)
    return TaskReliability(
        task=pairs.task,
        run=run.label,
        n=len(frame),
        confidences=confidences,
        margins=_margins(flips),
        first_tokens=first if first.n else None,
        open_answers=_open_answers(pairs),
        regression=regress_flips(flips.flipped, flips.numbers, flips.categories, codes)
        if len(baseline.logprobs)
        else None,
        missing=tuple(_missing(pairs.task, len(frame), baseline, run, bool(confidences))),
    )


def confidence_kinds(pairs: PairedSamples, baseline: Side, run: Side) -> dict[str, tuple[Floats, Floats]]:
    """Confidences of both runs, one value per pair, by kind; nan where a log says nothing."""
    import numpy as np

    docs = pairs.frame["doc_id"].to_numpy()
    before, after = (side.logprobs for side in (baseline, run))
    kinds = {
        ANSWER: (np.exp(before.answers(docs)), np.exp(after.answers(docs))),
        FIRST_TOKEN: (before.top_tokens(docs).confidence, after.top_tokens(docs).confidence),
    }
    if _answers_are_open(pairs):
        kinds[PER_TOKEN] = (_per_token(before, docs), _per_token(after, docs))
    return kinds


def _per_token(logprobs: LogProbabilities, docs: NDArray[Any]) -> Floats:
    """Geometric mean of the probabilities of an answer's tokens."""
    import numpy as np

    tokens = logprobs.tokens(docs)
    return np.asarray(np.exp(logprobs.answers(docs) / np.where(tokens > 0, tokens, np.nan)), dtype=float)


def _confidence(
    kind: str, baseline: Floats, run: Floats, frame: pd.DataFrame, codes: NDArray[Any] | None
) -> ConfidenceComparison | None:
    """The comparison over the samples that both have; None without any."""
    import numpy as np

    known = np.isfinite(baseline) & np.isfinite(run)
    n = int(known.sum())
    if not n:
        return None
    part = frame[known]
    groups = None if codes is None else codes[known]
    sides = [
        (values[known], part[f"correct_{name}"].to_numpy(dtype=bool))
        for name, values in (("baseline", baseline), ("run", run))
    ]
    tables = [calibrate(*side, bins=BINS).bins for side in sides]
    diagrams = [tuple(_bin(row) for row in table.to_dict("records")) for table in tables]
    curves = [risk_coverage(*side) for side in sides]
    return ConfidenceComparison(
        kind=kind,
        n=n,
        missing=len(frame) - n,
        clusters=n if groups is None else len(np.unique(groups)),
        replicates=replicates_for(n),
        bins=BINS,
        scores=tuple(score_differences(sides[0], sides[1], groups)),
        diagram_baseline=diagrams[0],
        diagram_run=diagrams[1],
        curve_baseline=curves[0],
        curve_run=curves[1],
        flip_auroc=flip_auroc(-sides[0][0], (part["flip"] != "").to_numpy(), groups),
    )


def _bin(row: Mapping[Any, Any]) -> Bin:
    return Bin(row["low"], row["high"], int(row["n"]), row["confidence"], row["accuracy"])


def _margins(flips: Flips) -> Margins | None:
    import numpy as np

    known = np.isfinite(flips.numbers["margin"])
    if not known.any():
        return None
    margin, flipped = flips.numbers["margin"][known], flips.flipped[known]
    groups = None if flips.codes is None else flips.codes[known]
    table = flip_rate_by_margin(margin, flipped, bins=DECILES)
    bins = [
        MarginBin(row["low"], row["high"], int(row["n"]), row["rate"], row["rate_low"], row["rate_high"])
        for row in table.to_dict("records")
    ]
    return Margins(
        n=int(known.sum()),
        missing=int((~known).sum()),
        bins=tuple(bins),
        lowest=tuple(lowest_margins(margin, flipped, groups)),
        flip_auroc=flip_auroc(-margin, flipped, groups),
    )


def _open_answers(pairs: PairedSamples) -> OpenAnswers | None:
    """None where answers are hardly longer than a word."""
    if not _answers_are_open(pairs):
        return None
    return compare_open_answers(*(pairs.frame[f"prediction_{name}"].tolist() for name in ("baseline", "run")))


def _answers_are_open(pairs: PairedSamples) -> bool:
    texts = pairs.frame["prediction_baseline"].tolist()
    return bool(texts) and sum(len(text.split()) for text in texts) >= OPEN_WORDS * len(texts)


def _missing(task: str, n: int, baseline: Side, run: Side, any_confidence: bool) -> list[str]:
    """What the logs lack, in words."""
    found = []
    for side in (baseline, run):
        logged = side.logprobs
        if logged.malformed:
            found.append(
                f"{task}, {side.label}: {logged.malformed} lines hold no usable log-probabilities (first: document "
                f"{logged.first_malformed}); they count as lines without"
            )
        if not len(logged):
            found.append(f"{task}, {side.label}: the log carries no log-probabilities")
    if not found and not any_confidence:
        found.append(f"{task}: no sample of {n} has log-probabilities in both {baseline.label} and {run.label}")
    return found
