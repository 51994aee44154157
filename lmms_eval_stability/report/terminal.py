"""The comparison as a table in the terminal."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from ..averages import AVERAGES
from ..comparison import Comparison, RunComparison
from .consistency import consistency_lines
from .reliability import pooled_grids, pooled_lines, reliability_grids, reliability_lines
from .sections import Grid, changes_lines, overlap_lines
from .values import (
    METRIC_COLUMNS,
    NOTHING,
    decimals,
    floor_lines,
    footnotes,
    heading,
    mcnemar_line,
    metric_cells,
    p_value,
    rate,
    score,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Width when the output is no terminal: nothing is ever cut off in a file or a pipe.
_PIPE_WIDTH = 1000


def print_comparison(comparison: Comparison, file: IO[str]) -> None:
    """Print one table per run, each with its footnotes."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False, emoji=False)
    terminal = console.width
    for i, run in enumerate(comparison.runs):
        if i:
            console.print()
        # labels, paths and arguments are data: as Text they are never read as markup
        console.print(Text(heading(run, comparison.label, comparison.correct_at), style="bold"), soft_wrap=True)
        for make in (_table, _metrics) if run.metrics else (_table,):
            table = make(run)
            if _width(console, table) > terminal:
                table = make(run, below=True)
            # a table that is still too wide keeps its width: the terminal breaks lines, rich would leave columns out
            console.width = max(terminal, _width(console, table))
            console.print(table)
        for line in [*floor_lines(run, comparison), *footnotes(run), *changes_lines(run)]:
            console.print(Text(line, style="yellow" if line.startswith("warning") else "dim"), soft_wrap=True)
        _print_grids(console, reliability_grids(run), reliability_lines(run))
    for line in filter(None, [mcnemar_line(comparison), *overlap_lines(comparison), *consistency_lines(comparison)]):
        console.print(Text(line, style="dim"), soft_wrap=True)
    _print_grids(console, pooled_grids(comparison), pooled_lines(comparison))


def _print_grids(console: Console, grids: list[Grid], lines: list[str]) -> None:
    """Tables with their titles, and what stands below them."""
    from rich.table import Table
    from rich.text import Text

    for title, names, rows, texts in grids:
        console.print()
        console.print(Text(title, style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        for place, name in enumerate(names):
            table.add_column(Text(name), justify="left" if place < texts else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        console.width = max(console.width, _width(console, table))
        console.print(table)
    for line in lines:
        console.print(Text(line, style="yellow" if line.startswith("reliability:") else "dim"), soft_wrap=True)


def _width(console: Console, table: Table) -> int:
    """Characters that the table needs if nothing in it is folded."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=_PIPE_WIDTH), table).maximum


def _table(run: RunComparison, below: bool = False) -> Table:
    """The table of one run; `below` puts each interval under its rate, for narrow terminals."""
    from rich.table import Table
    from rich.text import Text

    soft = any(row.soft for row in run.rows)
    digits = decimals(run.rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    numbers = ("n", "baseline", "run", "drop")
    for name in ("task", *numbers, "DR", "NDR", "PDR", *(("soft NDR", "soft PDR") if soft else ()), "McNemar p"):
        table.add_column(name, justify="right" if name in numbers or name.startswith("soft") else "left", no_wrap=True)
    for row in run.shown_rows:
        scores = (score(value, row.score_unit, digits) for value in (row.score_baseline, row.score_run, row.drop))
        rates = (rate(value, digits).replace(" ", "\n" if below else " ", 1) for value in (row.dr, row.ndr, row.pdr))
        softs = (score(value, row.soft_unit, digits) for value in (row.soft_ndr, row.soft_pdr)) if soft else ()
        cells = (row.task, str(row.n), *scores, *rates, *softs, p_value(row.mcnemar_p))
        table.add_row(*map(Text, cells), style="bold" if row.task in AVERAGES else "")
    return table


def _metrics(run: RunComparison, below: bool = False) -> Table:
    """The table of the benchmarks' own metrics; columns that no metric fills are left out."""
    from rich.table import Table
    from rich.text import Text

    rows = [metric_cells(metric, run) for metric in run.metrics]
    shown = [i for i in range(len(METRIC_COLUMNS)) if any(row[i] != NOTHING for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for i in shown:
        table.add_column(METRIC_COLUMNS[i], justify="right" if 1 <= i <= 4 else "left", no_wrap=True)
    for row in rows:
        cells = (row[i].replace(" [", "\n[" if below else " [", 1) for i in shown)
        table.add_row(*map(Text, cells))
    return table
