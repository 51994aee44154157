"""What the plausibility checks found: in the terminal, as Markdown and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING

from .markdown import escape

if TYPE_CHECKING:
    from ..plausibility import Check, Finding, Outcome, ResultsTable

#: Raised when a key changes its meaning or goes; new keys do not raise it.
SCHEMA_VERSION = 1
#: Width when the output is no terminal: nothing is ever cut off in a file or a pipe.
_PIPE_WIDTH = 2000


def print_outcomes(
    table: ResultsTable, outcomes: Sequence[Outcome], checks: Mapping[str, Check], file: IO[str]
) -> None:
    """Findings, then how much each check compared."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False, emoji=False)
    found = findings(outcomes)
    if found:
        listing = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        for name in ("severity", "check", "where", "numbers", "why"):
            listing.add_column(name, no_wrap=name in ("severity", "check"), overflow="fold")
        for finding in found:
            style = "red" if finding.severity == "error" else "yellow"
            cells = (finding.check, _place(finding), _numbers(finding), finding.why)
            # names are data: as Text they are never read as markup
            listing.add_row(Text(finding.severity, style=style), *map(Text, cells))
        console.print(listing)
        console.print()
    counts = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("check", "rule", "compared", "found"):
        counts.add_column(name, justify="right" if name in ("compared", "found") else "left", no_wrap=True)
    for outcome in outcomes:
        row = (outcome.check, checks[outcome.check].rule, str(outcome.compared), str(len(outcome.findings)))
        counts.add_row(*map(Text, row), style="" if outcome.compared else "dim")
    console.print(counts)
    console.print()
    for line in footer(table, outcomes):
        console.print(Text(line), soft_wrap=True)


def to_markdown(table: ResultsTable, outcomes: Sequence[Outcome], checks: Mapping[str, Check]) -> str:
    """A table of findings and one of checks."""
    lines = [f"### {escape(table.name)}", ""]
    found = findings(outcomes)
    if found:
        lines += ["| severity | check | where | numbers | why |", "|---|---|---|---|---|"]
        for finding in found:
            cells = (finding.severity, finding.check, _place(finding), _numbers(finding), finding.why)
            lines.append(f"| {' | '.join(map(escape, cells))} |")
        lines.append("")
    lines += ["| check | rule | compared | found |", "|---|---|---:|---:|"]
    for outcome in outcomes:
        rule = escape(checks[outcome.check].rule)
        lines.append(f"| {outcome.check} | {rule} | {outcome.compared} | {len(outcome.findings)} |")
    lines += ["", *(f"- {escape(line)}" for line in footer(table, outcomes))]
    return "\n".join(lines) + "\n"


def to_json(table: ResultsTable, outcomes: Sequence[Outcome], checks: Mapping[str, Check]) -> str:
    """Findings with their lines, and how much each check compared."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "file": table.name,
        "errors": sum(finding.severity == "error" for finding in findings(outcomes)),
        "suspicious": sum(finding.severity == "suspicious" for finding in findings(outcomes)),
        "unknown_metrics": table.unknown,
        "checks": [
            {
                "check": outcome.check,
                "rule": checks[outcome.check].rule,
                "severity": checks[outcome.check].severity,
                "compared": outcome.compared,
                "found": len(outcome.findings),
            }
            for outcome in outcomes
        ],
        "findings": [asdict(finding) for finding in findings(outcomes)],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def findings(outcomes: Sequence[Outcome]) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [finding for outcome in outcomes for finding in outcome.findings]


def footer(table: ResultsTable, outcomes: Sequence[Outcome]) -> list[str]:
    """Counts, and what no check looked at."""
    found = findings(outcomes)
    errors = sum(finding.severity == "error" for finding in found)
    compared = sum(outcome.compared for outcome in outcomes)
    lines = [f"{table.name}: {compared} comparisons, {errors} errors, {len(found) - errors} suspicious"]
    if table.unknown:
        rows = sum(table.unknown.values())
        names = ", ".join(name or "(none)" for name in table.unknown)
        lines.append(f"{rows} rows have metrics that no check knows ({names}); they are only added up")
    return lines


def _place(finding: Finding) -> str:
    """Where, with the lines of the file if they are few."""
    if not 0 < len(finding.lines) <= 4:
        return finding.where
    return f"{finding.where} (line {', '.join(map(str, finding.lines))})"


def _numbers(finding: Finding) -> str:
    return ", ".join(f"{name} {value}" for name, value in finding.numbers.items())
