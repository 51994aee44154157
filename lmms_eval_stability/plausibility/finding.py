"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from .table import ResultsTable

#: "error": cannot be, whatever the model did. "suspicious": can be, but usually something went wrong.
Severity = Literal["error", "suspicious"]


@dataclass(frozen=True)
class Finding:
    """Numbers of a table that do not go together.

    Attributes:
        check: a key of `CHECKS`.
        severity: see `Severity`.
        table, base_model, method, perturbation, benchmark: where; "" for all or for what the table does not say,
            several joined by ", ".
        numbers: the numbers in question, as printed; of a long list the first few.
        why: why they cannot go together, or why that would be a coincidence.
        count: cells that this finding is about.
        lines: lines of the file with these numbers, where it is about single cells.
    """

    check: str
    severity: Severity
    table: str
    base_model: str
    method: str
    perturbation: str
    benchmark: str
    numbers: dict[str, str]
    why: str
    count: int = 1
    lines: tuple[int, ...] = field(default=())

    @property
    def where(self) -> str:
        """The place in one line, e.g. "table 2 · LLaVA-Next · GPTQ · OKVQA"."""
        table = f"table {self.table}" if self.table else ""
        return " · ".join(filter(None, (table, self.base_model, self.method, self.perturbation, self.benchmark)))


#: A check compares numbers and yields a finding, or None for every comparison that holds: so "nothing found" and
#: "nothing to compare" can be told apart.
Compared = Iterator[Finding | None]


@dataclass(frozen=True)
class Check:
    """One plausibility check: the rule, what it says when broken, and the function that looks for it."""

    rule: str
    severity: str
    function: Callable[[ResultsTable], Compared]


@dataclass(frozen=True)
class Outcome:
    """What one check did with one table."""

    check: str
    compared: int
    findings: tuple[Finding, ...]
