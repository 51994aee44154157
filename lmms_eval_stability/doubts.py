"""Warnings: what in two runs, or in the numbers of one task, needs a reader's attention without stopping anything."""

from __future__ import annotations

import filecmp
import math

from .divergence import Divergence
from .pairing import PairedSamples
from .runs import Run
from .samples import SampleTable


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


def doubtful_scores(row: Divergence, pairs: PairedSamples, base: Run, run: Run) -> list[str]:
    """Warnings about the numbers of one task."""
    doubts = []
    for one, mean in ((base, pairs.mean_baseline), (run, pairs.mean_run)):
        native = one.task(pairs.task).native.get(pairs.metric, math.nan)
        if math.isfinite(native) and math.isfinite(mean) and not _is_mean(native, mean):
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


def _is_mean(native: float, mean: float) -> bool:
    """Whether a native score is the mean of the samples, as a fraction or in percent."""
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
