"""Warnings: what in two runs, or in the numbers of one task, needs a reader's attention without stopping anything."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Sequence

from .divergence import Divergence
from .pairing import PairedSamples
from .runs import Run
from .samples import SampleTable
from .verdicts import PairMetric


def short_log(run: Run, table: SampleTable) -> list[str]:
    """A warning when the log holds another number of documents than the run evaluated.

    Two logs that lost the same lines pair without any gap: only lmms-eval's own count can tell.
    """
    evaluated, logged = run.task(table.task).n_samples, table.frame["doc_id"].nunique()
    # with --offset, lmms-eval's count is that of a run without one
    if evaluated in (None, logged) or run.config.get("offset"):
        return []
    return [f"task {table.task}, {run.name}: lmms-eval evaluated {evaluated} documents, the log holds {logged}"]


def doubtful_logs(base: Run, base_table: SampleTable, run: Run, table: SampleTable) -> list[str]:
    """Warnings about two logs beside each other: copies, and rows without the measurements that the other log has."""
    found = []
    if filecmp.cmp(base_table.path, table.path, shallow=False):  # reads them only when their sizes are equal
        found.append(f"task {table.task}: the samples files of {base.name} and {run.name} are byte-identical: a copy?")
    for one, own, other, theirs in ((run, table, base, base_table), (base, base_table, run, table)):
        lacking = len(own.frame) - own.n_measured
        if lacking and theirs.n_measured == len(theirs.frame):
            found.append(
                f"task {table.task}, {one.name}: {lacking} of {len(own.frame)} rows carry no measurements, all of "
                f"{other.name} do (answers from a response cache, or another model?)"
            )
    return found


def doubtful_metrics(metrics: Sequence[PairMetric], pairs: PairedSamples, base: Run, run: Run) -> list[str]:
    """Warnings about a benchmark's own metrics that differ from lmms-eval's, where both are over the same samples."""
    doubts = []
    for metric in metrics if pairs.complete else ():
        for side, (one, ours) in enumerate(((base, metric.baseline), (run, metric.run))):
            native, same = one.task(pairs.task).native.get(metric.native, math.nan), metric.scale * ours
            if math.isfinite(native) and not math.isclose(native, same, rel_tol=1e-6, abs_tol=1e-6):
                drawn = pairs.unparsable[side] if pairs.unparsable else 0
                guess = (
                    f"{drawn} unparsable answers, wrong here, got a letter there, by a language model or by chance"
                    if drawn
                    else "is the log whole?"
                )
                doubts.append(
                    f"task {pairs.task}, {one.name}: the results JSON says {metric.native} {native:.6g}, the log gives "
                    f"{same:.6g} ({guess})"
                )
    return doubts


def doubtful_scores(row: Divergence, pairs: PairedSamples, base: Run, run: Run, by_rule: bool = False) -> list[str]:
    """Warnings about the numbers of one task.

    Args:
        by_rule: its score is no mean over the samples, and `doubtful_metrics` has looked at it.
    """
    doubts = []
    for side, (one, mean) in enumerate(((base, pairs.mean_baseline), (run, pairs.mean_run))):
        native = math.nan if by_rule else one.task(pairs.task).native.get(pairs.metric, math.nan)
        chance = pairs.unparsable[side] / row.n if pairs.unparsable and row.n else None
        if math.isfinite(native) and math.isfinite(mean) and not _is_mean(native, mean, chance):
            doubts.append(
                f"task {row.task}, {one.name}: the results JSON says {pairs.metric} {native:.6g}, the samples average "
                f"{mean:.6g}: the log is not whole, or the score is no plain mean (then drop is not NDR - PDR)"
            )
    if row.same_prediction_flips:
        doubts.append(
            f"task {row.task}: {row.same_prediction_flips} verdicts changed although the prediction did not: the "
            "benchmark compares something that DR does not see"
        )
    if row.soft_unit == "native":
        doubts.append(
            f"task {row.task}: scores are not within 0 to 1; is --correct-at {row.correct_at:g} what you mean?"
        )
    return doubts + _one_sided_threshold(row, pairs)


def _is_mean(native: float, mean: float, chance: float | None = None) -> bool:
    """Whether a native score is the mean of the samples, as a fraction or in percent.

    Args:
        chance: share of unparsable answers, wrong here, of which lmms-eval may have drawn the right letter. It rounds
            such a score to five places.
    """
    if chance is not None:
        return mean - 1e-5 <= native <= mean + chance + 1e-5
    return any(math.isclose(native, scale * mean, rel_tol=1e-6, abs_tol=1e-6) for scale in (1, 100))


def _one_sided_threshold(row: Divergence, pairs: PairedSamples) -> list[str]:
    """A threshold that no score reaches, or every one, makes NDR and PDR 0 whatever happens."""
    correct = pairs.frame[["correct_baseline", "correct_run"]].to_numpy()
    scores = pairs.frame[["score_baseline", "score_run"]].to_numpy()
    if scores.min() == scores.max() or (correct.any() and not correct.all()):
        return []
    return [
        f"task {row.task}: {'every' if correct.any() else 'no'} answer of both runs is correct at --correct-at "
        f"{row.correct_at:g}, although scores go from {scores.min():g} to {scores.max():g}: NDR and PDR say nothing"
    ]
