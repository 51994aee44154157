"""What stands beside the table of divergences, in words, cells and records: overlap between runs."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

from ..comparison import Comparison
from ..overlap import TaskOverlap
from .values import NOTHING, percent

#: What the diverged samples of an overlap have in common.
_KINDS = {"negative": "NDR", "changed": "DR"}


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with None for numbers that there are not."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in record.items()}


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
            f"samples that the baseline has right, {_number(shared.expected_every)} by chance; under any: {len(shared.any)}"
            f"{between}"
        )
    return lines


def overlap_grid(overlap: TaskOverlap) -> tuple[str, list[str], list[list[str]], int]:
    """A table with a row per pair of runs: its title, the names of its columns, its cells, and its columns of text."""
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
