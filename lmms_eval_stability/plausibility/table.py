"""A table of results as the checks see it: one cell per model, method, perturbation and benchmark."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..errors import StabilityError
from .numbers import Number

#: Names under which a benchmark column may hold the mean, or the sum, of the others.
AVERAGES = frozenset({"average", "avg", "avg.", "mean"})
TOTALS = frozenset({"total", "sum"})
#: Spellings of the metrics that checks know. Anything else is only added up.
METRICS: dict[str, str] = {
    "score": "score",
    "accuracy": "score",
    "acc": "score",
    "recall": "score",
    "drop": "drop",
    "dr": "DR",
    "ndr": "NDR",
    "pdr": "PDR",
}
RATES = ("DR", "NDR", "PDR")
#: Benchmarks whose score is the share of rows answered correctly, over the same rows as DR and NDR. Not so: soft VQA
#: scores, POPE (F1), MMBench (scores count groups of rows).
BINARY = frozenset({"ai2d", "gqa", "mmmu", "scienceqa"})

T = TypeVar("T", bound=Hashable)


class TableFormatError(StabilityError):
    """A file is no table of results that can be checked."""


@dataclass(frozen=True)
class Cell:
    """The numbers of one method on one benchmark.

    Attributes:
        values: numbers by metric ("score", "drop", "DR", "NDR", "PDR" or an unknown one).
        baseline: the baseline's score on the same input, where the table has it.
        n: rows that the rates are shares of; None where unknown.
        binary: whether the score is the share of these rows that are correct.
        scale: 100 for percent, 1 for fractions.
        same: rate of verdicts that changed although the prediction did not; they are no part of DR.
        lines: line of the file by metric.
    """

    table: str
    base_model: str
    method: str
    perturbation: str
    benchmark: str
    values: dict[str, Number]
    baseline: Number | None = None
    n: int | None = None
    binary: bool = False
    scale: int = 100
    same: Number | None = None
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def is_average(self) -> bool:
        return self.benchmark.lower() in AVERAGES

    @property
    def is_total(self) -> bool:
        return self.benchmark.lower() in TOTALS

    @property
    def drop(self) -> Number | None:
        """The drop, as printed or from the scores; None where there is neither."""
        printed, score = self.values.get("drop"), self.values.get("score")
        if printed is None and self.baseline is not None and score is not None:
            return self.baseline - score
        return printed

    def with_value(self, metric: str, number: Number) -> Cell:
        """The same cell with another number."""
        return replace(self, values={**self.values, metric: number})


@dataclass(frozen=True)
class ResultsTable:
    """All cells, in the order of the file.

    Attributes:
        name: the file, as the user named it.
        baseline: name of the method that is the baseline.
        unknown: metrics that no check knows, with their numbers of rows.
        mixed_units: whether some scores may be percent and others not (the file says so for each), so that checks of
            units have nothing to say.
    """

    name: str
    cells: tuple[Cell, ...]
    baseline: str = "baseline"
    unknown: dict[str, int] = field(default_factory=dict)
    mixed_units: bool = False

    @property
    def benchmarks(self) -> list[Cell]:
        """Cells of benchmarks, without averages and totals."""
        return [cell for cell in self.cells if not cell.is_average and not cell.is_total]

    @property
    def accelerated(self) -> list[Cell]:
        """Cells of benchmarks whose method is not the baseline."""
        return [cell for cell in self.benchmarks if cell.method != self.baseline]


def grouped(cells: Iterable[Cell], key: Callable[[Cell], T]) -> dict[T, list[Cell]]:
    """Cells by key, in order of first appearance."""
    groups: dict[T, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def with_baselines(cells: Iterable[Cell], baseline: str) -> tuple[Cell, ...]:
    """Cells that know the baseline's score of the same table, model, perturbation and benchmark."""
    cells = list(cells)

    def place(cell: Cell) -> tuple[str, str, str, str]:
        return cell.table, cell.base_model, cell.perturbation, cell.benchmark

    scores = {place(cell): cell.values.get("score") for cell in cells if cell.method == baseline}
    return tuple(
        cell if cell.method == baseline or cell.baseline else replace(cell, baseline=scores.get(place(cell)))
        for cell in cells
    )
