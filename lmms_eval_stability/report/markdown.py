"""The comparison as Markdown, for pull requests, model cards and notes."""

from __future__ import annotations

import re

from ..comparison import Comparison, RunComparison
from .values import METRIC_COLUMNS, decimals, floor_lines, footnotes, heading, metric_cells, p_value, rate, score

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&])")


def to_markdown(comparison: Comparison) -> str:
    """One section with a table per run; rates and scores of benchmarks with a scale from 0 to 1 in percent."""
    return "\n".join(_section(run, comparison) for run in comparison.runs)


def escape(text: str) -> str:
    """Data as it is: no mark-up, no HTML, no new table cell, no new line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _section(run: RunComparison, comparison: Comparison) -> str:
    digits = decimals(run.rows)
    names = ["task", "n", "baseline", "run", "drop", "DR", "NDR", "PDR", "NDR of correct", "soft NDR", "soft PDR"]
    names.append("McNemar p")
    lines = [f"### {escape(heading(run, comparison.label, comparison.correct_at))}", ""]
    lines.append(f"| {' | '.join(names)} |")
    lines.append(f"|---|{'---:|' * (len(names) - 1)}")
    for row in run.rows:
        scores = [score(value, row.score_unit, digits) for value in (row.score_baseline, row.score_run, row.drop)]
        rates = [rate(value, digits) for value in (row.dr, row.ndr, row.pdr, row.conditional_ndr)]
        softs = [score(value, row.soft_unit, digits) for value in (row.soft_ndr, row.soft_pdr)]
        cells = [escape(row.task), str(row.n), *scores, *rates, *softs, p_value(row.mcnemar_p)]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if run.metrics:
        lines.append(f"| {' | '.join(METRIC_COLUMNS)} |")
        lines.append(f"|---|{'---:|' * (len(METRIC_COLUMNS) - 1)}")
        for metric in run.metrics:
            name, *cells = metric_cells(metric, run)
            lines.append(f"| {' | '.join([escape(name), *cells])} |")
        lines.append("")
    lines += [f"- {escape(line)}" for line in [*floor_lines(run, comparison), *footnotes(run)]]
    return "\n".join(lines) + "\n"
