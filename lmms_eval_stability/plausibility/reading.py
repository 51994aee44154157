"""CSV files as tables of results: one number per row, or the `divergence.csv` of `compare`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..divergence import AVERAGE
from .numbers import Number
from .table import BINARY, METRICS, Cell, ResultsTable, TableFormatError, with_baselines

REQUIRED = ("method", "benchmark", "metric", "value")
OPTIONAL = ("table", "base_model", "perturbation", "n", "scoring", "note")
#: What the column `scoring` may say.
SCORING = {"binary": True, "soft": False}
#: Columns by which the layout of `divergence.csv` is known.
_OWN = {"task", "baseline", "run", "n", "score_baseline", "score_run", "drop", "dr", "ndr", "pdr"}


@dataclass(frozen=True)
class Options:
    """What a file does not say about itself.

    Attributes:
        sizes: rows by benchmark. binary: benchmarks with scores of 0 or 1, besides those that are known.
        scale: 100 when numbers are in percent, 1 when they are fractions.
        baseline: name of the baseline among the methods.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    binary: frozenset[str] = frozenset()
    scale: int = 100
    baseline: str = "baseline"

    def is_binary(self, benchmark: str) -> bool:
        return benchmark.lower() in BINARY or benchmark in self.binary


@dataclass(frozen=True)
class _Row:
    """One record of the file with its place, for messages."""

    path: Path
    line: int
    values: dict[str, str]

    def text(self, column: str) -> str:
        return self.values.get(column, "").strip()

    def number(self, column: str, exact: bool = False) -> Number:
        try:
            return Number.parse(self.text(column), exact)
        except ValueError as error:
            raise self.error(f"column {column!r}: {error}") from None

    def count(self, column: str) -> int | None:
        """A number of samples; None when the column is empty or not there."""
        text = self.text(column)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or not 0 < len(text) <= 12 or int(text) == 0:
            raise self.error(f"column {column!r}: {text!r} is no number of samples")
        return int(text)

    def error(self, problem: str) -> TableFormatError:
        return TableFormatError(f"{self.path}:{self.line}: {problem}")


def read_results(paths: Iterable[Path], name: str, options: Options | None = None) -> ResultsTable:
    """The table in the files, which have one layout or the other each.

    Args:
        paths: UTF-8 CSV files with a header: columns `REQUIRED` and any of `OPTIONAL` (others are ignored), or a
            `divergence.csv`.
        name: what to call the table.
        options: what the files do not say; None for the defaults.

    Raises:
        TableFormatError: a file cannot be understood; names the line.
    """
    options = options or Options()
    cells: list[Cell] = []
    unknown: dict[str, int] = {}
    own = False
    for path in paths:
        rows = _rows(path)
        if rows[0].values.keys() >= _OWN:
            cells += [_own_cell(row) for row in rows]
            own = True
        else:
            cells += _tidy_cells(rows, options, unknown)
    return ResultsTable(name, with_baselines(cells, options.baseline), options.baseline, unknown, mixed_units=own)


def _rows(path: Path) -> list[_Row]:
    """All records, with the lines they end in."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise TableFormatError(
                        f"{path}:{reader.line_num}: {len(fields)} fields where the header has {len(header)}; "
                        "quote fields that hold commas"
                    )
                rows.append(_Row(path, reader.line_num, dict(zip(header, fields, strict=True))))
    except OSError as error:
        raise TableFormatError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TableFormatError(f"{path}: is not UTF-8 text: byte {error.start} of a block is no character") from error
    except csv.Error as error:
        raise TableFormatError(f"{path}:{reader.line_num}: is not CSV: {error}") from error
    if not rows:
        raise TableFormatError(f"{path}: has no rows below its header")
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TableFormatError(f"{path}:1: the header names {', '.join(map(repr, twice))} twice")
    names = set(header)
    if not names.issuperset(_OWN) and not names.issuperset(REQUIRED):
        missing = [name for name in REQUIRED if name not in header]
        raise TableFormatError(
            f"{path}:1: the header lacks {', '.join(missing)}; a table of results has one number per row and the "
            f"columns {', '.join(REQUIRED)} (optional: {', '.join(OPTIONAL)}), or is the divergence.csv of `compare`"
        )


def _tidy_cells(rows: list[_Row], options: Options, unknown: dict[str, int]) -> list[Cell]:
    """One cell per place; `unknown` counts metrics that no check knows."""
    cells: dict[tuple[str, ...], Cell] = {}
    for row in rows:
        metric = METRICS.get(row.text("metric").lower(), row.text("metric"))
        if not row.text("value"):
            continue  # a dash in print
        if metric not in METRICS.values():
            unknown[metric] = unknown.get(metric, 0) + 1
        if not row.text("benchmark"):
            raise row.error("column 'benchmark' is empty")
        place = {name: row.text(name) for name in ("table", "base_model", "method", "perturbation", "benchmark")}
        key = tuple(place.values())
        number = row.number("value")
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = Cell(
                table=place["table"],
                base_model=place["base_model"],
                method=place["method"],
                perturbation=place["perturbation"],
                benchmark=place["benchmark"],
                values={},
                n=row.count("n") or options.sizes.get(row.text("benchmark")),
                binary=_scoring(row, options),
                scale=options.scale,
            )
        elif row.count("n") not in (None, cell.n):
            raise row.error(f"{row.text('n')} samples, but {cell.n} in an earlier row of the same method and benchmark")
        if metric in cell.values:
            raise row.error(f"{metric} of this method and benchmark is in line {cell.lines[metric]} already")
        cell.values[metric] = number
        cell.lines[metric] = row.line
    return list(cells.values())


def _scoring(row: _Row, options: Options) -> bool:
    said = row.text("scoring").lower()
    if not said:
        return options.is_binary(row.text("benchmark"))
    if said not in SCORING:
        raise row.error(f"column 'scoring': {said!r} is neither of {', '.join(SCORING)}")
    return SCORING[said]


def _own_cell(row: _Row) -> Cell:
    """One record of `divergence.csv`: fractions in full precision, with their n."""
    columns = {"score": "score_run", "drop": "drop", "DR": "dr", "NDR": "ndr", "PDR": "pdr"}
    values = {metric: row.number(name, exact=True) for metric, name in columns.items() if row.text(name)}
    n, flips = row.count("n"), row.text("same_prediction_flips") or "0"
    task = row.text("task")
    if not flips.isdigit():
        raise row.error(f"column 'same_prediction_flips': {flips!r} is no number of samples")
    same = Number.parse(str(int(flips) / n), exact=True) if n and int(flips) else None
    return Cell(
        table="",
        base_model=row.text("baseline"),
        method=row.text("run"),
        perturbation="",
        benchmark=task,
        values=values,
        baseline=row.number("score_baseline", exact=True) if row.text("score_baseline") else None,
        # an average over tasks is a share of nothing
        n=None if task == AVERAGE else n,
        binary=row.text("soft") == "False" and row.text("score_unit") == "fraction" and _in_unit(row),
        scale=1,
        same=same,
        lines=dict.fromkeys(values, row.line),
    )


def _in_unit(row: _Row) -> bool:
    """Whether the threshold separates 0 from 1, and scores are means over the very pairs that the rates are about."""
    return row.text("score_source") == "pairs" and 0 < float(row.number("correct_at").low) <= 1
