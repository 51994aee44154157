"""`compare --ood` in words and cells: grids for every output, lines below them, and `ood.csv`."""

from __future__ import annotations

import csv
import io
from math import isnan

from ..compared import Comparison, RunComparison
from ..detection import DETECTION_SCORES, DetectionScore
from ..detection_study import KindDetection, OodDetection
from ..divergence import Rate
from ..reliability import plain
from ..reliability_scores import SEED
from .sections import Grid
from .values import NOTHING

CSV_COLUMNS = (
    "run", "in_distribution", "out_of_distribution", "confidence", "n_in", "n_out", "metric", "baseline",
    "baseline_low", "baseline_high", "value", "value_low", "value_high", "difference", "difference_low",
    "difference_high",
)  # fmt: skip


def to_csv(comparison: Comparison) -> str:
    """One row per run, pair of tasks, kind of confidence and number; empty for what there is not."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in comparison.runs:
        for pair in run.detection:
            for one in pair.kinds:
                for score in one.scores:
                    rates = (score.baseline, score.run, score.difference)
                    ends = plain([end for rate in rates for end in (rate.value, rate.low, rate.high)])
                    writer.writerow(
                        [run.label, pair.inside, pair.outside, one.kind, one.n_in, one.n_out, score.name, *ends]
                    )
    return out.getvalue()


def detection_grids(run: RunComparison, every: bool = False) -> list[Grid]:
    """A table per pair of tasks.

    Args:
        run: compared with `ood`.
        every: all kinds of confidence; otherwise the first that both logs have.
    """
    return [_scores(pair, one) for pair in run.detection for one in (pair.kinds if every else pair.kinds[:1])]


def detection_lines(run: RunComparison) -> list[str]:
    """What stands below the tables of one run."""
    lines = []
    for pair in run.detection:
        about = f"{pair.inside} against {pair.outside}"
        if pair.missing:
            lines.append(f"reliability: {about}: {pair.missing}")
        for one in pair.kinds[:1]:
            if one.missing_in or one.missing_out:
                lines.append(
                    f"{about}: {one.missing_in} and {one.missing_out} pairs have no confidence in both logs and are "
                    "left out"
                )
    return lines


def _scores(pair: OodDetection, one: KindDetection) -> Grid:
    cells = [
        [DETECTION_SCORES[score.name], *map(_rate, _rates(score)), _chance(one, score.name)] for score in one.scores
    ]
    title = (
        f"{pair.inside} (n {one.n_in}) told from {pair.outside} (OOD, n {one.n_out}) by {one.kind} confidence, in "
        f"percent; intervals of {one.replicates:,} bootstrap replicates over {one.clusters_in} and {one.clusters_out} "
        f"clusters (seed {SEED})"
    )
    return title, ["", "baseline", "run", "difference", "by chance"], cells, 1


def _rates(score: DetectionScore) -> tuple[tuple[Rate, bool], ...]:
    return (score.baseline, False), (score.run, False), (score.difference, True)


def _chance(one: KindDetection, name: str) -> str:
    """What a detector that knows nothing has."""
    n = one.n_in + one.n_out
    known = {"auroc": 0.5, "aupr_in": one.n_in / n, "aupr_out": one.n_out / n, "fpr95": 0.95}
    return f"{100 * known[name]:.1f}" if name in known else NOTHING


def _rate(cell: tuple[Rate, bool]) -> str:
    rate, sign = cell
    value = _percent(rate.value, sign)
    return value if isnan(rate.low) else f"{value} [{_percent(rate.low, sign)}, {_percent(rate.high, sign)}]"


def _percent(value: float, sign: bool) -> str:
    if isnan(value):
        return NOTHING
    shown = round(100 * value, 1) + 0.0  # never -0.0
    return f"{shown:+.1f}" if sign and shown else f"{shown:.1f}"
