"""Plausibility checks of published tables: which numbers cannot go together, and which seldom do."""

from __future__ import annotations

from . import arithmetic, patterns
from .finding import Check, Finding, Outcome
from .reading import Options, read_results
from .table import ResultsTable, TableFormatError

#: All checks in the order of the report.
CHECKS: dict[str, Check] = {
    "rate-range": Check("0 <= rate <= 100 %", "error", arithmetic.rate_range),
    "dr-below-ndr": Check("DR >= NDR", "error", arithmetic.dr_below_ndr),
    "dr-below-flips": Check("DR >= NDR + PDR", "error", arithmetic.dr_below_flips),
    "drop-not-flips": Check("drop = NDR - PDR where scores are 0 or 1", "error", arithmetic.drop_not_flips),
    "no-count": Check("a rate is k of N samples", "error", arithmetic.no_count),
    "drop-not-difference": Check("drop = baseline - score", "error", arithmetic.drop_not_difference),
    "average-not-mean": Check("average = mean of the benchmarks", "error", arithmetic.average_not_mean),
    "total-not-sum": Check("total = sum of the rows", "error", arithmetic.total_not_sum),
    "units": Check("drops in the unit of the scores", "error", arithmetic.units),
    "tables-disagree": Check("one value per cell in all tables", "error", arithmetic.tables_disagree),
    "mixed-units": Check("scores all above 1 or all at most 1", "suspicious", patterns.mixed_units),
    "identical-scores": Check("scores differ between inputs", "suspicious", patterns.identical_scores),
    "identical-methods": Check("cells differ between methods", "suspicious", patterns.identical_methods),
    "row-permuted": Check("rates stand under their benchmark", "suspicious", patterns.row_permuted),
    "cell-apart": Check("DR follows from method and benchmark", "suspicious", patterns.cell_apart),
    "methods-apart": Check("methods are not in two groups", "suspicious", patterns.methods_apart),
}


def check_table(table: ResultsTable) -> tuple[Outcome, ...]:
    """What each check of `CHECKS` finds in the table, in that order."""
    outcomes = []
    for name, check in CHECKS.items():
        compared = list(check.function(table))
        outcomes.append(Outcome(name, len(compared), tuple(found for found in compared if found is not None)))
    return tuple(outcomes)


__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Options",
    "Outcome",
    "ResultsTable",
    "TableFormatError",
    "check_table",
    "read_results",
]
