"""The sample-weighted average over tasks, beside the unweighted one of `divergence.average`.

The unweighted mean asks how a benchmark fares, each counting the same; the weighted one how a question fares, whatever
its benchmark, and is nearly VQAv2's own value where VQAv2 (214,354 of 262,927 questions) is among the tasks. Neither is
the right one; a claim that holds under one of both only is a claim about the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isnan, nan

from .divergence import AVERAGE, NO_RATE, Divergence, Rate, average, mcnemar_exact, wilson

#: Name of the row that averages over all samples of one run.
WEIGHTED_AVERAGE = "average over samples"
#: Names of rows that are no task.
AVERAGES = frozenset({AVERAGE, WEIGHTED_AVERAGE})


def weighted_average(rows: Sequence[Divergence], correct_baseline: Sequence[int] | None = None) -> Divergence:
    """The mean over the tasks of one run, each weighted by its number of pairs: the rate over all their samples.

    DR, NDR and PDR get the Wilson interval of the pooled counts, which is a little wide for tasks that differ (the
    variance between tasks is not an error, since the tasks are not drawn), and the pooled flips an exact McNemar p.
    Everything that is no mean over samples follows `divergence.average`.

    Args:
        rows: one per task.
        correct_baseline: of each task, the pairs that the baseline has right; without them conditional NDR, which is
            the pooled negative flips over their sum, is nan.

    Raises ValueError for no rows, and for another number of counts than rows.
    """
    if not rows:
        raise ValueError("no tasks to average")
    if correct_baseline is not None and len(correct_baseline) != len(rows):
        raise ValueError(f"{len(correct_baseline)} counts for {len(rows)} tasks")
    plain = average(rows)
    sizes = [row.n for row in rows]
    n = sum(sizes)

    def mean(values: Iterable[float]) -> float:
        # a task without pairs has no values, and no weight
        terms = [size * value for size, value in zip(sizes, values, strict=True) if size]
        return sum(terms) / n if n else nan

    def count(name: str) -> int:
        return sum(round(row.n * getattr(row, name).value) for row in rows if row.n)

    negative, positive = count("ndr"), count("pdr")
    fractions, soft_fractions = plain.score_unit == "fraction", plain.soft_unit == "fraction"
    conditional = NO_RATE if correct_baseline is None else wilson(negative, sum(correct_baseline))
    floor = _pooled_floor(rows)
    return replace(
        plain,
        task=WEIGHTED_AVERAGE,
        score_baseline=mean(row.score_baseline for row in rows) if fractions else nan,
        score_run=mean(row.score_run for row in rows) if fractions else nan,
        drop=mean(row.drop for row in rows) if fractions else nan,
        dr=wilson(count("dr"), n),
        ndr=wilson(negative, n),
        pdr=wilson(positive, n),
        conditional_ndr=conditional,
        soft_ndr=mean(row.soft_ndr for row in rows) if soft_fractions else nan,
        soft_pdr=mean(row.soft_pdr for row in rows) if soft_fractions else nan,
        mcnemar_p=mcnemar_exact(negative, positive) if n else nan,
        intervals="wilson",
        rerun_dr=floor,
        excess_dr=mean(row.excess_dr for row in rows),
    )


def _pooled_floor(rows: Sequence[Divergence]) -> Rate:
    """DR of the re-runs over all their samples; nan where a task has no re-run, as it then is another set of tasks."""
    if any(isnan(row.rerun_dr.value) for row in rows):
        return NO_RATE
    return wilson(sum(round(row.rerun_n * row.rerun_dr.value) for row in rows), sum(row.rerun_n for row in rows))
