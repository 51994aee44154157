"""DR, NDR, PDR and what belongs to them, from paired samples. Plain functions on arrays; every rate is a fraction.

Nothing to count gives nan, never 0: a rate of 0 is a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from .cost import NO_COST, Cost, mean_cost

if TYPE_CHECKING:
    from .pairing import PairedSamples

#: Name of the row that averages the tasks of one run.
AVERAGE = "average"


@dataclass(frozen=True)
class Rate:
    """A share of samples with its 95 % interval (Wilson's, or as it says); all nan when there was nothing to count."""

    value: float
    low: float
    high: float


NO_RATE = Rate(nan, nan, nan)


@dataclass(frozen=True)
class Divergence:
    """One run against the baseline on one task, or averaged over tasks. Field names are the keys of every output.

    Averages have neither intervals nor a McNemar p: see docs/numbers.md.

    Attributes:
        n: pairs (their sum, for the average).
        metric: the logged number that is the score. `correct_at`: least score that counts as correct.
        adapter: name of the rules by which answers are compared, "text" where the benchmark's are not known; "mixed"
            for an average over several.
        score_unit: "fraction" when both scores and all samples lie in [0, 1] (shown in percent), else "native" (shown
            as they are); "mixed" for an average over both. An average has scores only if every task's are fractions.
        soft_unit: the same for the samples alone, and so for soft_ndr and soft_pdr.
        score_source: "results" for lmms-eval's own scores, "pairs" for what follows from the pairs (their mean, or the
            benchmark's rule), when those are not over exactly the paired documents or the results JSON has none.
        drop: score_baseline - score_run; positive when the run is worse.
        dr: predictions that differ. ndr: right in the baseline, wrong in the run. pdr: the other way round.
        conditional_ndr: ndr as a share of the samples that the baseline has right.
        soft_ndr, soft_pdr: mean loss and mean gain of score; soft_ndr - soft_pdr is the drop over the pairs, exactly.
        mcnemar_p: exact two-sided McNemar test of ndr against pdr.
        mcnemar_p_holm, mcnemar_p_fdr: the same, adjusted for all tests of a comparison; see `multiplicity`.
        minimum_detectable_effect: least true difference of accuracies that such a test finds among so many pairs and
            flips in 80 % of cases, at a level of 5 % for a single test.
        reruns: re-runs of the baseline that have this task (of the task with the fewest, for the average).
        rerun_n, rerun_dr: the baseline against its own re-runs, over the samples that all of them have.
        excess_dr: dr - rerun_dr over the samples that the run has, too, with the ends of its interval.
        tasks: number of tasks in this row.
        same_prediction_flips: verdicts that changed although the prediction did not.
        prediction: which text of an answer was compared: "scored", "filtered" or "raw".
        unparsable_baseline, unparsable_run: answers in which the benchmark finds no choice; None where it looks for
            none, or where the text was compared.
        intervals: how those of dr, ndr, pdr and conditional_ndr were made: "wilson", which takes all samples as
            independent, or "cluster bootstrap"; empty for an average, which has none.
        clusters: clusters among the pairs; 0 where there are none. clustered_by: what names them, see `clusters`.
        design_effect: of dr, see `bootstrap.ClusterRate`.
        cost: theoretical cost of the run's prompts, the mean over those whose tokens its log counts; see `cost`.
        accepted: rows by kind of problem that `--accept` let pass; kinds of the re-run's pairing begin with "rerun_".
    """

    task: str
    baseline: str
    run: str
    n: int
    metric: str
    correct_at: float
    score_unit: str
    score_source: str
    score_baseline: float
    score_run: float
    drop: float
    dr: Rate
    ndr: Rate
    pdr: Rate
    conditional_ndr: Rate
    soft_ndr: float
    soft_pdr: float
    mcnemar_p: float
    mcnemar_p_holm: float = nan
    mcnemar_p_fdr: float = nan
    minimum_detectable_effect: float = nan
    rerun_n: int = 0
    rerun_dr: Rate = NO_RATE
    excess_dr: float = nan
    excess_dr_low: float = nan
    excess_dr_high: float = nan
    reruns: int = 0
    tasks: int = 1
    soft: bool = False
    same_prediction_flips: int = 0
    fingerprints_compared: int = 0
    fingerprints_equal: int = 0
    adapter: str = ""
    soft_unit: str = "fraction"
    prediction: str = "scored"
    unparsable_baseline: int | None = None
    unparsable_run: int | None = None
    intervals: str = "wilson"
    clusters: int = 0
    clustered_by: str = ""
    design_effect: float = nan
    cost: Cost = NO_COST
    accepted: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The row as one flat dict for JSON and tables: `dr`, `dr_low`, `dr_high`, ...; nan and infinity are None."""
        flat: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Rate):
                flat |= {item.name: value.value, f"{item.name}_low": value.low, f"{item.name}_high": value.high}
            elif isinstance(value, Cost):
                flat |= value.record()
            else:
                flat[item.name] = value
        return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in flat.items()}


def wilson(successes: int, n: int, level: float = 0.95) -> Rate:
    """`successes / n` with its Wilson score interval, which stays in [0, 1] and is not empty at 0 or n."""
    if n == 0:
        return NO_RATE
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # at 0 and n the end is exactly 0 or 1; rounding must not leave it a hair inside or outside
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Rate(p, low, high)


def mcnemar_exact(negative: int, positive: int) -> float:
    """Two-sided exact p that flips are equally likely in both directions; 1 without any flip.

    Args:
        negative: samples right before and wrong after. positive: samples wrong before and right after.
    """
    flips = negative + positive
    if flips == 0:
        return 1.0
    from scipy.special import bdtr  # the binomial distribution alone: scipy.stats takes half a second to import

    return min(1.0, 2 * float(bdtr(min(negative, positive), flips, 0.5)))


def diverge(
    pairs: PairedSamples,
    baseline: str,
    run: str,
    correct_at: float = 0.9,
    native: tuple[float, float] | None = None,
    own: tuple[float, float] | None = None,
) -> Divergence:
    """All numbers of one task of one run.

    Args:
        pairs: the joined samples.
        baseline, run: labels of the runs.
        correct_at: the threshold the pairs were judged with, for the record.
        native: lmms-eval's own scores of both runs where it reported both; used only when all rows are paired.
        own: the benchmark's scores of the pairs where these are no means; used instead of `native`.
    """
    import numpy as np

    frame = pairs.frame
    n = len(frame)
    before, after = frame["score_baseline"].to_numpy(dtype=float), frame["score_run"].to_numpy(dtype=float)
    flip, changed = frame["flip"].to_numpy(), frame["changed"].to_numpy(dtype=bool)
    negative, positive = int((flip == "negative").sum()), int((flip == "positive").sum())
    dr, ndr, pdr = wilson(int(changed.sum()), n), wilson(negative, n), wilson(positive, n)
    conditional = wilson(negative, int(frame["correct_baseline"].sum()))
    scores = np.concatenate([before, after])
    means = own or ((float(before.mean()), float(after.mean())) if n else (nan, nan))
    soft_in_unit = bool(((scores >= 0) & (scores <= 1)).all())
    if own or not pairs.complete or (native and soft_in_unit and (native[0] > 1) != (native[1] > 1)):
        native = None  # not of these pairs, or one in percent and one a fraction
    score_baseline, score_run = native or means
    in_unit = soft_in_unit and all(0 <= score <= 1 for score in (score_baseline, score_run))
    return Divergence(
        task=pairs.task,
        baseline=baseline,
        run=run,
        n=n,
        metric=pairs.metric,
        correct_at=correct_at,
        score_unit="fraction" if in_unit or not n else "native",
        score_source="results" if native else "pairs",
        score_baseline=score_baseline,
        score_run=score_run,
        drop=score_baseline - score_run,
        dr=dr,
        ndr=ndr,
        pdr=pdr,
        conditional_ndr=conditional,
        soft_ndr=float(np.maximum(0, before - after).mean()) if n else nan,
        soft_pdr=float(np.maximum(0, after - before).mean()) if n else nan,
        mcnemar_p=mcnemar_exact(negative, positive) if n else nan,
        soft=bool(((scores != 0) & (scores != 1)).any()),
        same_prediction_flips=int(((flip != "") & ~changed).sum()),
        fingerprints_compared=pairs.fingerprints_compared,
        fingerprints_equal=pairs.fingerprints_equal,
        adapter=pairs.adapter,
        soft_unit="fraction" if soft_in_unit or not n else "native",
        unparsable_baseline=pairs.unparsable and pairs.unparsable[0],
        unparsable_run=pairs.unparsable and pairs.unparsable[1],
        accepted=accepted_counts(pairs),
    )


def accepted_counts(pairs: PairedSamples) -> dict[str, int]:
    """Rows by kind of problem that was accepted while pairing."""
    counts: dict[str, int] = {}
    for problem in pairs.problems:
        counts[problem.kind] = counts.get(problem.kind, 0) + problem.count
    return counts


def average(rows: Sequence[Divergence]) -> Divergence:
    """The unweighted mean over the tasks of one run; nan where a task has no value.

    Scores have a mean only if all of them are fractions: native scales have nothing in common, even if all are native.

    Interval ends and p-values are not averaged: a mean of them would mean nothing.
    """

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    def mean_rate(name: str) -> Rate:
        return Rate(mean(getattr(row, name).value for row in rows), nan, nan)

    def total(name: str) -> int | None:
        counts = [count for row in rows if (count := getattr(row, name)) is not None]
        return sum(counts) if counts else None

    def unit(units: set[str]) -> str:
        return units.pop() if len(units) == 1 else "mixed"

    score_unit, soft_unit = unit({row.score_unit for row in rows}), unit({row.soft_unit for row in rows})
    fractions, soft_fractions = score_unit == "fraction", soft_unit == "fraction"
    sources = {row.score_source for row in rows}
    accepted: dict[str, int] = {}
    for row in rows:
        for kind, count in row.accepted.items():
            accepted[kind] = accepted.get(kind, 0) + count
    return replace(
        rows[0],
        task=AVERAGE,
        n=sum(row.n for row in rows),
        metric="",
        score_unit=score_unit,
        soft_unit=soft_unit,
        score_source=sources.pop() if len(sources) == 1 else "mixed",
        score_baseline=mean(row.score_baseline for row in rows) if fractions else nan,
        score_run=mean(row.score_run for row in rows) if fractions else nan,
        drop=mean(row.drop for row in rows) if fractions else nan,
        dr=mean_rate("dr"),
        ndr=mean_rate("ndr"),
        pdr=mean_rate("pdr"),
        conditional_ndr=mean_rate("conditional_ndr"),
        soft_ndr=mean(row.soft_ndr for row in rows) if soft_fractions else nan,
        soft_pdr=mean(row.soft_pdr for row in rows) if soft_fractions else nan,
        mcnemar_p=nan,
        mcnemar_p_holm=nan,
        mcnemar_p_fdr=nan,
        minimum_detectable_effect=nan,
        rerun_n=sum(row.rerun_n for row in rows),
        rerun_dr=mean_rate("rerun_dr"),
        excess_dr=mean(row.excess_dr for row in rows),
        excess_dr_low=nan,
        excess_dr_high=nan,
        reruns=min(row.reruns for row in rows),
        tasks=len(rows),
        soft=any(row.soft for row in rows),
        same_prediction_flips=sum(row.same_prediction_flips for row in rows),
        fingerprints_compared=sum(row.fingerprints_compared for row in rows),
        fingerprints_equal=sum(row.fingerprints_equal for row in rows),
        unparsable_baseline=total("unparsable_baseline"),
        unparsable_run=total("unparsable_run"),
        intervals="",
        clusters=0,
        clustered_by="",
        design_effect=nan,
        cost=mean_cost([row.cost for row in rows]),
        adapter=rows[0].adapter if len({row.adapter for row in rows}) == 1 else "mixed",
        accepted=accepted,
    )
