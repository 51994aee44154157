"""`compare --reliability` in words and cells: grids for every output, lines below them, and `reliability.csv`."""

from __future__ import annotations

import csv
import io
from math import isfinite, isnan

from ..compared import Comparison, RunComparison
from ..divergence import Rate
from ..reliability import ConfidenceComparison, Margins, TaskReliability, plain
from ..reliability_flips import FlipRegression
from ..reliability_scores import SCORES, SEED, ScoreDifference
from .corruption import corruption_grids, corruption_lines
from .detection import detection_grids, detection_lines
from .sections import Grid
from .values import NOTHING, p_value, percent, rate

#: Shown in percent; the others as numbers.
_SHARES = {
    "accuracy", "confidence", "gap", "ece_mass", "ece_width", "over_confidence", "under_confidence", "ece_calibrated",
    "selective_accuracy",
}  # fmt: skip
CSV_COLUMNS = (
    "run", "task", "confidence", "n", "clusters", "metric", "baseline", "value", "difference", "difference_low",
    "difference_high", "p", "difference_corrected",
)  # fmt: skip


def to_csv(comparison: Comparison) -> str:
    """One row per run, task, kind of confidence and number; empty for what there is not."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in comparison.runs:
        for task in run.reliability:
            for one in task.confidences:
                for score in one.scores:
                    values = (score.baseline, score.run, score.difference, score.low, score.high, score.p)
                    where = run.label, task.task, one.kind, one.n, one.clusters, score.name
                    writer.writerow([*where, *plain((*values, score.corrected))])
    return out.getvalue()


def reliability_grids(run: RunComparison, every: bool = False) -> list[Grid]:
    """The tables of one run.

    Args:
        run: compared with `reliability`.
        every: all kinds of confidence; otherwise the first that both logs have.
    """
    grids = []
    for task in run.reliability:
        for one in task.confidences if every else task.confidences[:1]:
            grids.append(_scores(task.task, one))
        if task.margins is not None and task.margins.lowest:  # without flips there is nothing to see
            grids += _margins(task.task, task.margins)
        if task.regression is not None and task.regression.ratios:
            grids.append(odds_grid(f"Odds of a flip, {task.task}", task.regression))
    return [*grids, *detection_grids(run, every), *corruption_grids(run, every)]


def pooled_grids(comparison: Comparison) -> list[Grid]:
    """The tables of the regressions over all runs."""
    return [
        odds_grid(f"Odds of a flip, {one.task}, all {one.runs} runs together", one.regression)
        for one in comparison.flip_regressions
        if one.regression.ratios
    ]


def pooled_lines(comparison: Comparison) -> list[str]:
    """What is to be known about the regressions over all runs."""
    return [
        line
        for one in comparison.flip_regressions
        for line in _regression_lines(f"odds of a flip ({one.task}, all runs)", one.regression)
    ]


def reliability_lines(run: RunComparison) -> list[str]:
    """What stands below the tables of one run."""
    lines, several = [], len(run.reliability) > 1
    for task in run.reliability:
        about = f" ({task.task})" if several else ""
        lines += _confidence_lines(task, about)
        if (first := task.first_tokens) is not None:
            lines.append(
                f"first token{about}: the same most probable one in {rate(first.same_top, 1)} % of {first.n}; KL from "
                f"the baseline, at least: mean {first.mean_kl:.3g}, median {first.median_kl:.3g}, 99th percentile "
                f"{first.p99_kl:.3g} nats"
            )
        if (answers := task.open_answers) is not None:
            place = NOTHING if isnan(answers.first_divergent) else f"{answers.first_divergent:g}"
            lines.append(
                f"open answers{about}: {rate(answers.same, 1)} % word for word the same; first other word at place "
                f"{place} (median, from 0); {percent(answers.kept, 1)} % of the baseline's answer stands before it; "
                f"token F1 {answers.token_f1:.3f}, of those that differ {_number(answers.token_f1_changed)}"
            )
        if task.regression is not None:
            lines += _regression_lines(f"odds of a flip{about}", task.regression)
        lines += [f"reliability: {sentence}" for sentence in task.missing]
    return [*lines, *detection_lines(run), *corruption_lines(run)]


def _confidence_lines(task: TaskReliability, about: str) -> list[str]:
    if not task.confidences:
        return []
    lines = []
    one = task.confidences[0]
    if any(not isnan(score.corrected) for score in one.scores):
        lines.append(
            f"corrected{about}: the difference without the noise of the bins, which makes any ECE too large; the "
            "interval is around it, and need not hold the plain difference"
        )
    if one.missing:
        lines.append(f"confidence{about}: {one.missing} of {task.n} pairs have none in both logs and are left out")
    words = [f"of low {one.kind} confidence {_area(one.flip_auroc)}"]
    if task.margins is not None:
        words.insert(0, f"of a low margin {_area(task.margins.flip_auroc)}")
    lines.append(f"AUROC for flips, in the baseline{about}: {'; '.join(words)} (0.5: tells nothing)")
    return lines


def _scores(task: str, one: ConfidenceComparison) -> Grid:
    cells = []
    for score in one.scores:
        kind = score.name in _SHARES
        values = [_value(value, kind) for value in (score.baseline, score.run)]
        p = NOTHING if score.name == "ece_calibrated" else p_value(score.p)
        cells.append([SCORES[score.name], *values, _difference(score, kind), p])
    drawn = "samples" if one.clusters == one.n else "clusters"
    title = (
        f"Reliability of {one.kind} confidence, {task}: n {one.n}; intervals of {one.replicates:,} bootstrap "
        f"replicates over {one.clusters} {drawn} (seed {SEED}); shares in percent"
    )
    return title, ["", "baseline", "run", "difference", "p"], cells, 1


def _difference(score: ScoreDifference, kind: bool) -> str:
    value = _value(score.difference, kind, sign=True)
    if isnan(score.low):
        return value
    if not isnan(score.corrected):
        value += f", corrected {_value(score.corrected, kind, sign=True)}"
    return f"{value} [{_value(score.low, kind, sign=True)}, {_value(score.high, kind, sign=True)}]"


def _value(value: float, share: bool, sign: bool = False) -> str:
    if isnan(value):
        return NOTHING
    digits, shown = (1, 100 * value) if share else (3, value)
    shown = round(shown, digits) + 0.0  # never -0.0
    return f"{shown:+.{digits}f}" if sign and shown else f"{shown:.{digits}f}"


def _margins(task: str, margins: Margins) -> list[Grid]:
    rows = [
        [f"{one.low:.2f} to {one.high:.2f}", str(one.n), rate(Rate(one.rate, one.rate_low, one.rate_high), 1)]
        for one in margins.bins
    ]
    names = ["margin of the baseline (nats)", "n", "flips (%)"]
    found: list[Grid] = [(f"Flips by margin, {task}", names, rows, 1)]
    held = [
        [f"lowest {one.share:.0%}", f"{one.margin:.2f}", rate(one.flips, 1), percent(one.rate, 1)]
        for one in margins.lowest
    ]
    if held:
        names = ["samples by margin", "up to (nats)", "hold of all flips (%)", "flip (%)"]
        found.append((f"Where the flips are, {task}", names, held, 1))
    return found


def odds_grid(title: str, regression: FlipRegression) -> Grid:
    """A table with a row per term."""
    cells = [
        [one.term, one.against, f"{one.odds_ratio:.3g}", _ends(one.low, one.high), p_value(one.p)]
        for one in regression.ratios
    ]
    how = f"robust to {regression.clusters} clusters" if regression.clusters else "samples as independent"
    whole = f"{title}: {regression.flips} flips of {regression.n}, {how}"
    return whole, ["term", "against", "odds ratio", "95 %", "p"], cells, 2


def _regression_lines(about: str, regression: FlipRegression) -> list[str]:
    if regression.refused:
        return [f"{about}: {line}" for line in (regression.refused, *regression.notes)]
    fit = f"pseudo-R² (McFadden) {regression.pseudo_r2:.2f}, AUROC {regression.auroc:.2f} on the same samples"
    return [f"{about}: {line}" for line in (fit, *regression.notes)]


def _ends(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]" if isfinite(low) or isfinite(high) else NOTHING


def _area(area: Rate) -> str:
    return _number(area.value, 2) + ("" if isnan(area.low) else f" [{area.low:.2f}, {area.high:.2f}]")


def _number(value: float, digits: int = 3) -> str:
    return NOTHING if isnan(value) else f"{value:.{digits}g}"
