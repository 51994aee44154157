"""The verdicts of `gate`: in the terminal, as GitHub-flavoured Markdown and for programs."""

from __future__ import annotations

import json
from math import isnan
from typing import IO, Any

from ..gate import Check, GateResult, Verdict
from .markdown import escape
from .values import NOTHING

#: Raised when a key changes its meaning or goes; new keys do not raise it.
SCHEMA_VERSION = 1
_PIPE_WIDTH = 2000
_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
_SIGNS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.INCONCLUSIVE: "❔"}
_COLUMNS = ("verdict", "run", "task", "limit", "n", "found", "why")


def headline(result: GateResult) -> str:
    """The verdict over all checks, with their counts."""
    counts = {verdict: sum(check.verdict is verdict for check in result.checks) for verdict in Verdict}
    parts = ", ".join(f"{count} {verdict.name}" for verdict, count in counts.items() if count)
    return f"{result.verdict.name}: {parts or 'nothing was checked'}"


def footer(result: GateResult) -> list[str]:
    """What was judged by what, and what was not judged."""
    report = result.report
    basis = [f"answers as {report.prediction}"] if report.prediction else []
    basis += [] if isnan(report.correct_at) else [f"correct at {report.correct_at:g}"]
    lines = [f"policy {result.policy}, report {report.name}, baseline {report.baseline}: {', '.join(basis)}"]
    lines += [f"{run.label}: {', '.join(run.notes)}; the report has them" for run in report.runs if run.notes]
    if result.unjudged:
        lines.append(f"without any limit: {', '.join(result.unjudged)}")
    return lines


def print_gate(result: GateResult, file: IO[str]) -> None:
    """The verdict, then one line per check."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, no_wrap=name in ("verdict", "n"), overflow="fold")
    for check in result.checks:
        # names are data: as Text they are never read as markup
        table.add_row(Text(check.verdict.name, style=_STYLES[check.verdict]), *map(Text, _cells(check)))
    console.print(table)
    console.print()
    for line in footer(result):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(headline(result), style=f"bold {_STYLES[result.verdict]}"), soft_wrap=True)


def to_markdown(result: GateResult) -> str:
    """For a job summary or a comment on a pull request."""
    lines = [f"### {_SIGNS[result.verdict]} {escape(headline(result))}", ""]
    lines += [f"| {' | '.join(_COLUMNS)} |", "|---|---|---|---|---:|---|---|"]
    for check in result.checks:
        cells = [f"{_SIGNS[check.verdict]} {check.verdict.name}", *map(escape, _cells(check))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {escape(line)}" for line in footer(result))]
    return "\n".join(lines) + "\n"


def to_json(result: GateResult) -> str:
    """Verdict, exit code and every check. Rates and limits are in percent, what there is not is null."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "verdict": result.verdict.name,
        "exit_code": result.verdict.value,
        "policy": result.policy,
        "report": result.report.name,
        "checks": [_record(check) for check in result.checks],
        "unjudged": list(result.unjudged),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _record(check: Check) -> dict[str, Any]:
    numbers = {"found": check.rate.value, "low": check.rate.low, "high": check.rate.high}
    limit = check.limit
    return {
        "run": check.run,
        "task": check.task,
        "metric": limit.metric,
        "max": limit.maximum,
        "judge": None if limit.is_end else limit.judge,
        "line": limit.line,
        "verdict": check.verdict.name,
        "reason": check.reason,
        "n": check.n,
        **{key: None if isnan(value) else value for key, value in numbers.items()},
    }


def _cells(check: Check) -> tuple[str, ...]:
    return check.run, check.task, str(check.limit), str(check.n), found(check), check.reason


def found(check: Check) -> str:
    """The rate with its interval, two digits after the point."""
    rate = check.rate
    if isnan(rate.value):
        return NOTHING
    value = f"{rate.value + 0.0:.2f}"
    return value if isnan(rate.low) else f"{value} [{rate.low:.2f}, {rate.high:.2f}]"
