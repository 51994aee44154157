"""Numbers that cannot go together. Definitions: Sun et al. 2025 (arXiv 2503.06794), section 3; docs/numbers.md.

Every number is the interval of values that round to it, and a finding means that no values in these intervals fit.
"""

from __future__ import annotations

from itertools import chain
from math import floor

from .finding import Compared, Finding
from .numbers import Number, common, mean, total
from .table import RATES, Cell, ResultsTable, grouped


def _finding(check: str, cell: Cell, metrics: dict[str, Number], why: str, benchmark: str | None = None) -> Finding:
    return Finding(
        check=check,
        severity="error",
        table=cell.table,
        base_model=cell.base_model,
        method=cell.method,
        perturbation=cell.perturbation,
        benchmark=cell.benchmark if benchmark is None else benchmark,
        numbers={name: number.text for name, number in metrics.items()},
        why=why,
        lines=tuple(sorted({cell.lines[name] for name in metrics if name in cell.lines})),
    )


def rate_range(table: ResultsTable) -> Compared:
    """0 <= rate <= 100 %."""
    for cell in table.cells:
        for name in RATES:
            if name in cell.values and not cell.is_total:
                rate = cell.values[name]
                inside = rate.high >= 0 and rate.low <= cell.scale
                why = f"a share of the samples lies between 0 and {cell.scale}"
                yield None if inside else _finding("rate-range", cell, {name: rate}, why)


def no_count(table: ResultsTable) -> Compared:
    """A rate is k of N samples for a whole k; so is the score where scores are 0 or 1.

    Not the drop: it may be the difference of rounded scores.
    """
    for cell in table.benchmarks:
        yield from cell_no_count(cell)


def cell_no_count(cell: Cell) -> Compared:
    if cell.n is None:
        return
    for name in (*RATES, *(("score",) if cell.binary else ())):
        number = cell.values.get(name)
        if number is None or (name == "score" and cell.scale != 1 and number.high <= 1):
            continue  # a score of less than 1 % is more often one in another unit: `mixed_units`
        if number.is_share_of(cell.n, cell.scale):
            yield None
            continue
        k = floor(number.low * cell.n / cell.scale)
        below, above = (f"{cell.scale * count / cell.n:.6g}" for count in (k, k + 1))
        why = f"of {cell.n} samples, {k} are {below} and {k + 1} are {above}"
        yield _finding("no-count", cell, {name: number}, why)


def dr_below_ndr(table: ResultsTable) -> Compared:
    """DR >= NDR: an answer that became wrong has changed."""
    for cell in table.cells:
        yield from cell_dr_below_ndr(cell)


def cell_dr_below_ndr(cell: Cell) -> Compared:
    dr, ndr = _dr(cell), cell.values.get("NDR")
    if dr is None or ndr is None:
        return
    why = "every answer that became wrong is an answer that changed"
    numbers = {"DR": cell.values["DR"], "NDR": ndr}
    yield None if ndr.low <= dr.high else _finding("dr-below-ndr", cell, numbers, why)


def dr_below_flips(table: ResultsTable) -> Compared:
    """DR >= NDR + PDR, PDR being NDR - drop where it is not given and scores are 0 or 1."""
    for cell in table.benchmarks:
        yield from cell_dr_below_flips(cell)


def cell_dr_below_flips(cell: Cell) -> Compared:
    dr, ndr, pdr, drop = _dr(cell), cell.values.get("NDR"), cell.values.get("PDR"), cell.drop
    if dr is None or ndr is None:
        return
    numbers = {"DR": cell.values["DR"], "NDR": ndr}
    if pdr is not None:
        flips, said = ndr + pdr, "NDR + PDR"
        numbers["PDR"] = pdr
    elif drop is not None and cell.binary:
        flips, said = ndr + (ndr - drop), "NDR + PDR = 2 NDR - drop"
        numbers["drop"] = drop
    else:
        return
    why = f"{said} = {flips.text} of the answers went from right to wrong or back, and so changed"
    yield None if flips.low <= dr.high else _finding("dr-below-flips", cell, numbers, why)


def drop_not_flips(table: ResultsTable) -> Compared:
    """Drop = NDR - PDR where scores are 0 or 1; without PDR, drop <= NDR."""
    for cell in table.benchmarks:
        ndr, pdr, drop = cell.values.get("NDR"), cell.values.get("PDR"), cell.drop
        if not cell.binary or ndr is None or drop is None:
            continue
        if pdr is not None:
            difference = ndr - pdr
            why = f"NDR - PDR = {difference.text}, and the score falls by exactly that"
            numbers = {"drop": drop, "NDR": ndr, "PDR": pdr}
            yield None if drop.meets(difference) else _finding("drop-not-flips", cell, numbers, why)
        else:
            why = "the score cannot fall by more than the answers that became wrong"
            yield None if drop.low <= ndr.high else _finding("drop-not-flips", cell, {"drop": drop, "NDR": ndr}, why)


def drop_not_difference(table: ResultsTable) -> Compared:
    """Drop = baseline score - score; without the baseline's score, score + drop is the same for all methods."""
    for cell in table.cells:
        score, drop = cell.values.get("score"), cell.values.get("drop")
        if cell.baseline is None or score is None or drop is None:
            continue
        difference = cell.baseline - score
        if drop.meets(difference):
            yield None
        elif not drop.times(100).meets(difference):  # else the unit is wrong: `units`
            numbers = {"baseline": cell.baseline, "score": score, "drop": drop}
            yield _finding("drop-not-difference", cell, numbers, f"baseline - score = {difference.text}")
    for cells in _without_baseline(table):
        if common([_implied(cell) for cell in cells]):
            yield None
        elif not common([_implied(cell, 100) for cell in cells]):
            numbers = {cell.method: _implied(cell) for cell in cells}
            why = "score + drop is the baseline's score, but differs between the methods (given here)"
            yield _finding("drop-not-difference", _joined(cells), numbers, why)


def units(table: ResultsTable) -> Compared:
    """One unit per table: drops that fit as fractions only, beside scores in percent."""
    if table.mixed_units:
        return
    for name, cells in grouped(table.cells, lambda cell: cell.table).items():
        part = ResultsTable(table.name, tuple(cells), table.baseline)
        wrong: list[Cell] = []
        for cell in part.cells:
            score, drop = cell.values.get("score"), cell.values.get("drop")
            if cell.baseline is not None and score is not None and drop is not None:
                difference = cell.baseline - score
                misfit = not drop.meets(difference) and drop.times(100).meets(difference)
                wrong += [cell] if misfit else []
                yield from () if misfit else (None,)
        for group in _without_baseline(part):
            misfit = not common([_implied(cell) for cell in group])
            misfit = misfit and common([_implied(cell, 100) for cell in group])
            wrong += group if misfit else []
            yield from () if misfit else (None,)
        if wrong:
            why = f"in {len(wrong)} cells scores and drops fit together only if the drops are read as fractions"
            yield Finding("units", "error", name, *_places(wrong), _few(wrong, "drop"), why, count=len(wrong))


def average_not_mean(table: ResultsTable) -> Compared:
    """An average is the unweighted mean of its row."""
    rows = grouped(table.cells, lambda cell: (cell.table, cell.base_model, cell.method, cell.perturbation))
    for row in rows.values():
        columns = [cell for cell in row if not cell.is_average and not cell.is_total]
        for cell in (cell for cell in row if cell.is_average):
            for name, printed in cell.values.items():
                having = [other for other in columns if name in other.values]
                if not having:
                    continue
                numbers = [other.values[name] for other in having]
                expected = mean(numbers)
                if printed.meets(expected):
                    yield None
                    continue
                left_out = [
                    having[i].benchmark
                    for i in range(len(having))
                    if len(having) > 1 and printed.meets(mean(numbers[:i] + numbers[i + 1 :]))
                ]
                why = f"the mean of the {len(having)} benchmarks is {expected.text}"
                why += f"; without {' or without '.join(left_out)} it is as printed" if left_out else ""
                yield _finding("average-not-mean", cell, {name: printed}, why)


def total_not_sum(table: ResultsTable) -> Compared:
    """A total is the sum of its rows."""
    rows = grouped(table.cells, lambda cell: (cell.table, cell.base_model, cell.method, cell.perturbation))
    for row in rows.values():
        for cell in (cell for cell in row if cell.is_total):
            for name, printed in cell.values.items():
                parts = [other for other in row if not other.is_total and not other.is_average]
                # a total of rows with metrics of their own (splits, say) names none
                found = [[number for key, number in other.values.items() if name in ("", key)] for other in parts]
                numbers = list(chain.from_iterable(found))
                expected = total(numbers)
                if numbers:
                    why = f"the {len(numbers)} rows sum to {expected.text}"
                    fits = printed.meets(expected)
                    yield None if fits else _finding("total-not-sum", cell, {name or "sum": printed}, why)


def tables_disagree(table: ResultsTable) -> Compared:
    """The same cell in two tables has the same value."""
    places = grouped(table.cells, lambda cell: (cell.base_model, cell.method, cell.perturbation, cell.benchmark))
    for cells in places.values():
        for i, first in enumerate(cells):
            for second in cells[i + 1 :]:
                for name in first.values.keys() & second.values.keys():
                    one, other = first.values[name], second.values[name]
                    if one.meets(other.times(100)) or other.meets(one.times(100)) or one.meets(other):
                        yield None  # a wrong unit is another finding
                        continue
                    numbers = {f"{name} in table {cell.table}": cell.values[name] for cell in (first, second)}
                    why = f"the same model, method, input and benchmark in tables {first.table} and {second.table}"
                    yield _finding("tables-disagree", _joined([first, second]), numbers, why)


def _dr(cell: Cell) -> Number | None:
    """DR with the verdicts that changed although the prediction did not."""
    dr = cell.values.get("DR")
    return dr + cell.same if dr is not None and cell.same is not None else dr


def _without_baseline(table: ResultsTable) -> list[list[Cell]]:
    """Cells with score and drop but no baseline, by model, perturbation and benchmark; groups of several methods."""
    having = [cell for cell in table.cells if cell.baseline is None and {"score", "drop"} <= cell.values.keys()]
    groups = grouped(having, lambda cell: (cell.table, cell.base_model, cell.perturbation, cell.benchmark))
    return [cells for cells in groups.values() if len(cells) > 1]


def _implied(cell: Cell, factor: int = 1) -> Number:
    """The baseline's score that score and drop stand for, the drop being in units of `factor`."""
    return cell.values["score"] + cell.values["drop"].times(factor)


def _joined(cells: list[Cell]) -> Cell:
    """A place that stands for several cells."""
    return Cell(", ".join(dict.fromkeys(cell.table for cell in cells)), *_places(cells), values={})


def _places(cells: list[Cell]) -> tuple[str, str, str, str]:
    """Base models, methods, perturbations and benchmarks of the cells."""

    def names(values: list[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    return (
        names([cell.base_model for cell in cells]),
        names([cell.method for cell in cells]),
        names([cell.perturbation for cell in cells]),
        names([cell.benchmark for cell in cells]),
    )


def _few(cells: list[Cell], metric: str) -> dict[str, str]:
    """The numbers of the first three cells."""
    return {
        f"{metric} of {' '.join(filter(None, (cell.method, cell.perturbation, cell.benchmark)))}": cell.values[
            metric
        ].text
        for cell in cells[:3]
    }
