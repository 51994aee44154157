"""Numbers that can go together but rarely do: copied cells, rows in another order, cells apart from the rest.

These are reasons to look at the runs again, not proofs. Each test says what it takes for unusual; none was tuned to a
false-alarm rate over many tables.
"""

from __future__ import annotations

from itertools import chain
from math import exp
from typing import TYPE_CHECKING

from .arithmetic import cell_dr_below_flips, cell_dr_below_ndr, cell_no_count
from .finding import Compared, Finding
from .table import Cell, ResultsTable, grouped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Robust z-score beyond which a cell is apart (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993).
_FAR = 3.5
#: Least methods and benchmarks of a grid in which a cell can be apart.
_LEAST_GRID = 3
#: Least methods of each part when methods fall into two.
_LEAST_PART = 2


def mixed_units(table: ResultsTable) -> Compared:
    """One unit per table: some scores above 1 and others not."""
    if table.mixed_units:
        return
    for name, cells in grouped(table.cells, lambda cell: cell.table).items():
        having = [cell for cell in cells if "score" in cell.values and cell.values["score"].low > 0]
        small = [cell for cell in having if cell.values["score"].high <= 1]
        large = [cell for cell in having if cell.values["score"].high > 1]
        if not small or not large:
            yield from (None for _ in having)
            continue
        states, models = (
            ", ".join(dict.fromkeys(x)) for x in ((c.perturbation for c in small), (c.base_model for c in small))
        )
        why = f"{len(small)} scores are at most 1, {len(large)} are above: fractions beside percent?"
        numbers = {f"{c.method} {c.perturbation} {c.benchmark}": c.values["score"].text for c in (small[0], large[0])}
        yield _suspicious("mixed-units", (name, models, "", states, ""), numbers, why, small, ("score",))


def identical_scores(table: ResultsTable) -> Compared:
    """A score differs between clean and perturbed inputs: an equal one was probably copied or wrongly paired."""
    key = grouped(table.benchmarks, lambda cell: (cell.table, cell.base_model, cell.method, cell.benchmark))
    for cells in key.values():
        having = [cell for cell in cells if "score" in cell.values]
        same = grouped(having, lambda cell: cell.values["score"].text)
        for score, equal in same.items():
            if len(having) < 2:
                continue
            if len(equal) < 2:
                yield None
                continue
            first, states = equal[0], ", ".join(cell.perturbation for cell in equal)
            why = "the same score, to the last digit, on different inputs: one run may have been taken for another"
            places = (first.table, first.base_model, first.method, states, first.benchmark)
            yield _suspicious("identical-scores", places, {"score": score}, why, equal, ("score",))


def identical_methods(table: ResultsTable) -> Compared:
    """Two methods differ in score, DR or NDR: cells equal in all three were probably copied, or are one run."""
    metrics = ("score", "DR", "NDR")
    having = [cell for cell in table.accelerated if set(metrics) <= cell.values.keys() and cell.values["DR"].high > 0]
    key = grouped(having, lambda cell: (cell.table, cell.base_model, cell.perturbation, cell.benchmark))
    for cells in key.values():
        same = grouped(cells, lambda cell: tuple(cell.values[name].text for name in metrics))
        for numbers, equal in same.items():
            if len(cells) < 2:
                continue
            if len(equal) < 2 or equal[0].values["DR"].low <= 0:
                yield None
                continue
            first, methods = equal[0], ", ".join(cell.method for cell in equal)
            why = "score, DR and NDR of different methods agree to the last digit: one run may be taken for another"
            places = (first.table, first.base_model, methods, first.perturbation, first.benchmark)
            given = dict(zip(metrics, numbers, strict=True))
            yield _suspicious("identical-methods", places, given, why, equal, metrics)


def row_permuted(table: ResultsTable) -> Compared:
    """A row of rates with impossible cells, all of which become possible in alphabetical order of the benchmarks."""
    key = grouped(table.accelerated, lambda cell: (cell.table, cell.base_model, cell.method, cell.perturbation))
    for cells in key.values():
        for metric in ("DR", "NDR"):
            row = [cell for cell in cells if metric in cell.values]
            order = sorted(row, key=lambda cell: cell.benchmark.lower())
            if len(row) < 3 or order == row:
                continue
            wrong = _violations(row, metric)
            # the values, in the order in which they are printed, belong to the benchmarks in alphabetical order
            read = [cell.with_value(metric, printed.values[metric]) for cell, printed in zip(order, row, strict=True)]
            if not wrong or _violations(read, metric):
                yield None
                continue
            why = f"{wrong} of its numbers are impossible as printed, none in alphabetical order of the benchmarks: "
            why += ", ".join(f"{cell.benchmark} {cell.values[metric].text}" for cell in read)
            first = row[0]
            places = (first.table, first.base_model, first.method, first.perturbation, "")
            printed = {f"{metric} of {cell.benchmark}": cell.values[metric].text for cell in row[:3]}
            yield _suspicious("row-permuted", places, printed, why, row, (metric,))


def _violations(row: list[Cell], metric: str) -> int:
    """How many cells of the row cannot be because of this metric."""

    def impossible(cell: Cell) -> bool:
        found = chain(cell_no_count(cell), cell_dr_below_ndr(cell), cell_dr_below_flips(cell))
        return any(finding is not None and metric in finding.numbers for finding in found)

    return sum(impossible(cell) for cell in row)


def cell_apart(table: ResultsTable) -> Compared:
    """log DR is about a term of the method plus a term of the benchmark; a cell far from that sum is apart.

    Terms by median polish (Tukey, "Exploratory Data Analysis", 1977), so that the odd cell does not hide itself. Scale:
    the normalised median of the absolute residuals, less as many of the smallest as there are terms, since that many
    are 0 by construction (after Maronna, Martin and Yohai, "Robust Statistics", on L1 regression).
    """
    import numpy as np

    for cells in _by_model(table).values():
        methods = list(dict.fromkeys(cell.method for cell in cells))
        benchmarks = list(dict.fromkeys(cell.benchmark for cell in cells))
        by_place = {(cell.method, cell.benchmark): cell for cell in reversed(cells)}
        if min(len(methods), len(benchmarks)) < _LEAST_GRID or len(by_place) < len(methods) * len(benchmarks):
            continue
        logs = np.array([[np.log(_rate(by_place[m, b])) for b in benchmarks] for m in methods])
        residuals = _polish(logs)
        sizes = np.sort(np.abs(residuals), axis=None)[len(methods) + len(benchmarks) - 1 :]
        scale = float(np.median(sizes)) / 0.6745
        for i, method in enumerate(methods):
            for j, benchmark in enumerate(benchmarks):
                z = float(residuals[i, j]) / scale if scale > 0 else 0.0
                if abs(z) <= _FAR:
                    yield None
                    continue
                cell = by_place[method, benchmark]
                why = (
                    f"{exp(residuals[i, j]):.2g} times what method and benchmark lead one to expect (robust z {z:.1f})"
                )
                places = (cell.table, cell.base_model, method, cell.perturbation, benchmark)
                yield _suspicious("cell-apart", places, {"DR": cell.values["DR"].text}, why, [cell], ("DR",))


def methods_apart(table: ResultsTable) -> Compared:
    """On one benchmark the methods fall into the same two parts by DR and by score.

    Parts: the gap between them is wider than either of them is itself (Dunn's index above 1; Dunn, 1974), and each has
    at least two methods. Then the runs of one part probably share something besides the acceleration, such as another
    code path than the baseline's.
    """
    having = [cell for cell in table.accelerated if {"score", "DR"} <= cell.values.keys()]
    for cells in grouped(having, lambda cell: (cell.base_model, cell.perturbation, cell.benchmark)).values():
        cells = list({cell.method: cell for cell in reversed(cells)}.values())
        if len(cells) < 2 * _LEAST_PART:
            continue
        by_dr, by_score = _two_parts(cells, "DR"), _two_parts(cells, "score")
        if by_dr is None or by_score is None or {frozenset(p) for p in by_dr} != {frozenset(p) for p in by_score}:
            yield None
            continue
        members = {cell.method: cell for cell in cells}
        upper = [members[name] for name in by_dr[1]]
        rest = ", ".join(f"{members[name].values['DR'].text}" for name in by_dr[0])
        why = f"DR and score set these methods apart from all others (DR {rest}) on this benchmark: another code path?"
        first = upper[0]
        tables, methods = (", ".join(dict.fromkeys(x)) for x in ((c.table for c in upper), by_dr[1]))
        numbers = {f"DR of {cell.method}": cell.values["DR"].text for cell in upper}
        places = (tables, first.base_model, methods, first.perturbation, first.benchmark)
        yield _suspicious("methods-apart", places, numbers, why, upper, ("DR", "score"))


def _by_model(table: ResultsTable) -> dict[tuple[str, str], list[Cell]]:
    """Cells with a positive DR by base model and perturbation, over all tables."""
    having = [cell for cell in table.accelerated if "DR" in cell.values and cell.values["DR"].low > 0]
    return grouped(having, lambda cell: (cell.base_model, cell.perturbation))


def _rate(cell: Cell) -> float:
    number = cell.values["DR"]
    return float(number.low + number.high) / 2


def _polish(values: NDArray[np.float64], rounds: int = 100) -> NDArray[np.float64]:
    """Residuals of rows and columns swept by their medians until nothing moves."""
    import numpy as np

    left = values.copy()
    for _ in range(rounds):
        rows = np.median(left, axis=1, keepdims=True)
        left = left - rows
        columns = np.median(left, axis=0, keepdims=True)
        left = left - columns
        if max(float(np.abs(rows).max()), float(np.abs(columns).max())) < 1e-12:
            break
    return left


def _two_parts(cells: list[Cell], metric: str) -> tuple[list[str], list[str]] | None:
    """Methods below and above a gap that is wider than both parts; None without such a gap."""
    ranked = sorted(cells, key=lambda cell: cell.values[metric].low)
    values = [cell.values[metric] for cell in ranked]
    for k in range(_LEAST_PART, len(ranked) - _LEAST_PART + 1):
        gap = values[k].low - values[k - 1].high
        if gap > values[k - 1].high - values[0].low and gap > values[-1].high - values[k].low:
            return [cell.method for cell in ranked[:k]], [cell.method for cell in ranked[k:]]
    return None


def _suspicious(
    check: str,
    places: tuple[str, str, str, str, str],
    numbers: dict[str, str],
    why: str,
    cells: list[Cell],
    metrics: tuple[str, ...],
) -> Finding:
    """A finding about `cells`; `places` are table, base model, method, perturbation and benchmark."""
    lines = sorted({cell.lines[name] for cell in cells for name in metrics if name in cell.lines})
    return Finding(check, "suspicious", *places, numbers, why, count=len(cells), lines=tuple(lines))
