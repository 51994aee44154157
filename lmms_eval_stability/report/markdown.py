"""The comparison as Markdown, for pull requests, model cards and notes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..comparison import Comparison, RunComparison
from .consistency import consistency_grids, consistency_lines
from .reliability import pooled_grids, pooled_lines, reliability_grids, reliability_lines
from .sections import category_grids, changes_grid, overlap_grid, overlap_lines
from .values import (
    METRIC_COLUMNS,
    decimals,
    floor_lines,
    footnotes,
    heading,
    mcnemar_line,
    metric_cells,
    p_value,
    percent,
    rate,
    score,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&])")


def to_markdown(comparison: Comparison) -> str:
    """One section with a table per run; rates and scores of benchmarks with a scale from 0 to 1 in percent."""
    sections = [_section(run, comparison) for run in comparison.runs]
    lines = [*filter(None, [mcnemar_line(comparison)]), *overlap_lines(comparison), *pooled_lines(comparison)]
    lines += consistency_lines(comparison)
    if lines:
        sections.append("\n".join(["## All runs together", "", *(f"- {escape(line)}" for line in lines), ""]))
    sections += [_grid(*overlap_grid(overlap)) for overlap in comparison.overlaps]
    sections += [_grid(*grid) for grid in (*pooled_grids(comparison), *consistency_grids(comparison))]
    return "\n".join(sections)


def _grid(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table below its title; the first `texts` columns are on the left."""
    lines = [f"**{escape(title)}**", "", f"| {' | '.join(map(escape, names))} |"]
    lines.append(f"|{'---|' * texts}{'---:|' * (len(names) - texts)}")
    lines += [f"| {' | '.join([*map(escape, row[:texts]), *row[texts:]])} |" for row in rows]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Data as it is: no mark-up, no HTML, no new table cell, no new line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _section(run: RunComparison, comparison: Comparison) -> str:
    digits = decimals(run.rows)
    names = ["task", "n", "baseline", "run", "drop", "DR", "NDR", "PDR", "NDR of correct", "soft NDR", "soft PDR"]
    names += ["McNemar p", "p (Holm)", "p (FDR)", "detectable drop"]
    lines = [f"### {escape(heading(run, comparison.label, comparison.correct_at))}", ""]
    lines.append(f"| {' | '.join(names)} |")
    lines.append(f"|---|{'---:|' * (len(names) - 1)}")
    for row in run.shown_rows:
        scores = [score(value, row.score_unit, digits) for value in (row.score_baseline, row.score_run, row.drop)]
        rates = [rate(value, digits) for value in (row.dr, row.ndr, row.pdr, row.conditional_ndr)]
        softs = [score(value, row.soft_unit, digits) for value in (row.soft_ndr, row.soft_pdr)]
        tests = [p_value(p) for p in (row.mcnemar_p, row.mcnemar_p_holm, row.mcnemar_p_fdr)]
        tests.append(percent(row.minimum_detectable_effect, digits))
        cells = [escape(row.task), str(row.n), *scores, *rates, *softs, *tests]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if run.metrics:
        lines.append(f"| {' | '.join(METRIC_COLUMNS)} |")
        lines.append(f"|---|{'---:|' * (len(METRIC_COLUMNS) - 1)}")
        for metric in run.metrics:
            name, *cells = metric_cells(metric, run)
            lines.append(f"| {' | '.join([escape(name), *cells])} |")
        lines.append("")
    notes = [*floor_lines(run, comparison), *footnotes(run), *reliability_lines(run)]
    lines += [f"- {escape(line)}" for line in notes]
    grids = [changes_grid(run), *category_grids(run), *reliability_grids(run, every=True)]
    return "\n".join([*lines, "", *(_grid(*grid) for grid in grids)])
