"""What stands beside the table of divergences, in words, cells and records: categories, overlap between runs."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

from ..categories import CategoryRow
from ..comparison import Comparison, RunComparison
from ..overlap import TaskOverlap
from .values import NOTHING, decimals, percent, rate, score

#: What the diverged samples of an overlap have in common.
_KINDS = {"negative": "NDR", "changed": "DR"}
#: Keys of a record that a category has, too.
_CATEGORY_KEYS = (
    "task", "dimension", "category", "n", "score_unit", "score_baseline", "score_run", "drop",
    *(f"{rate}{end}" for rate in ("dr", "ndr", "pdr", "conditional_ndr") for end in ("", "_low", "_high")),
    "soft_unit", "soft_ndr", "soft_pdr", "mcnemar_p",
)  # fmt: skip
#: A table in Markdown has no more categories; JSON has them all.
_SHOWN = 40

#: Title of a table, names of its columns, its cells, and how many columns hold text.
Grid = tuple[str, list[str], list[list[str]], int]


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with None for numbers that there are not."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in record.items()}


def category_record(part: CategoryRow) -> dict[str, Any]:
    """A category for JSON; intervals are Wilson's."""
    record = part.record()
    return {key: record[key] for key in _CATEGORY_KEYS}


def category_grids(run: RunComparison) -> list[Grid]:
    """A table per task and dimension with a row per category."""
    grids = []
    digits = decimals(run.rows)
    names = ["", "n", "baseline", "run", "drop", "DR", "NDR", "PDR", "NDR of correct"]
    for task, dimension in dict.fromkeys((part.row.task, part.dimension) for part in run.categories):
        parts = [part for part in run.categories if (part.row.task, part.dimension) == (task, dimension)]
        if len(parts) > _SHOWN:
            continue
        cells = []
        for part in parts:
            row = part.row
            scores = [score(value, row.score_unit, digits) for value in (row.score_baseline, row.score_run, row.drop)]
            rates = [rate(value, digits) for value in (row.dr, row.ndr, row.pdr, row.conditional_ndr)]
            cells.append([part.category, str(row.n), *scores, *rates])
        grids.append((f"{task} by {dimension} (Wilson intervals)", [dimension, *names[1:]], cells, 1))
    return grids


_GROUPS = {
    "same": "same",
    "right_to_wrong": "right → wrong",
    "wrong_to_right": "wrong → right",
    "wrong_to_other_wrong": "wrong → other wrong",
    "right_to_other_right": "right → other right",
}


def changes_lines(run: RunComparison) -> list[str]:
    """Per task, what its changed answers became, in percent of all."""
    digits, several = decimals(run.rows), len(run.changes) > 1
    lines = []
    for one in run.changes:
        values = [f"{words} {percent(getattr(one.changes, name).value, digits)}" for name, words in _GROUPS.items()]
        lines.append(f"changed answers{f' ({one.task})' if several else ''}: {', '.join(values[1:])} (% of all)")
    return lines


def changes_grid(run: RunComparison) -> Grid:
    """A table with a row per task."""
    digits = decimals(run.rows)
    rows = [
        [one.task, str(one.changes.n), *(rate(getattr(one.changes, name), digits) for name in _GROUPS)]
        for one in run.changes
    ]
    return "What changed answers became (Wilson intervals)", ["task", "n", *_GROUPS.values()], rows, 1


def overlap_record(overlap: TaskOverlap) -> dict[str, Any]:
    """An overlap for JSON: the shared samples, and one record per ordered pair of runs."""
    shared = overlap.shared
    pairs = [
        finite({{"method": "run", "n_method": "n_run"}.get(str(key), str(key)): value for key, value in row.items()})
        for row in overlap.table.to_dict("records")
    ]
    whole = {
        "task": overlap.task,
        "of": overlap.of,
        "runs": shared.methods,
        "n": shared.n,
        "left_out": shared.left_out,
        "every": len(shared.every),
        "expected_every": shared.expected_every,
        "any": len(shared.any),
        "counts": list(shared.counts),
        "every_doc_id": list(shared.every),
    }
    return {**finite(whole), "pairs": pairs}


def overlap_lines(comparison: Comparison) -> list[str]:
    """One line per task: how many samples break under all runs, under any, and by chance."""
    lines = []
    for overlap in comparison.overlaps:
        if overlap.of != "negative":
            continue
        shared, lifts = overlap.shared, [lift for lift in overlap.table["lift"].tolist() if not isnan(lift)]
        between = f"; lift of two runs {min(lifts):.1f} to {max(lifts):.1f}" if lifts else ""
        lines.append(
            f"right to wrong under all {shared.methods} runs ({overlap.task}): {len(shared.every)} of {shared.n} "
            f"samples that the baseline has right, {_number(shared.expected_every)} by chance; "
            f"under any: {len(shared.any)}{between}"
        )
    return lines


def overlap_grid(overlap: TaskOverlap) -> Grid:
    """A table with a row per pair of runs."""
    names = ["run A", "run B", "A", "B", "both", "of A", "of B", "Jaccard", "by chance", "lift"]
    rows, seen = [], {}
    for row in overlap.table.to_dict("records"):
        seen[row["method"], row["other"]] = row
        if (twin := seen.get((row["other"], row["method"]))) is None:
            continue
        shares = [percent(value, 1) for value in (twin["containment"], row["containment"], row["jaccard"])]
        counts = [str(twin[name]) for name in ("n_method", "n_other", "both")]
        names_of = [str(twin[name]) for name in ("method", "other")]
        rows.append([*names_of, *counts, *shares, _number(row["expected"]), _number(row["lift"])])
    n = overlap.shared.n
    title = f"Overlap of {_KINDS[overlap.of]}, {overlap.task}: {n} samples that could diverge"
    return title, names, rows, 2


def _number(value: float) -> str:
    return NOTHING if isnan(value) else f"{value:.1f}"
