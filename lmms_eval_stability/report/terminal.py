"""The comparison as a table in the terminal."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from ..comparison import Comparison, RunComparison
from ..divergence import AVERAGE
from .values import decimals, floor_lines, footnotes, heading, p_value, rate, score

if TYPE_CHECKING:
    from rich.table import Table

#: Width when the output is no terminal: nothing is ever cut off in a file or a pipe.
_PIPE_WIDTH = 1000


def print_comparison(comparison: Comparison, file: IO[str]) -> None:
    """Print one table per run, each with its footnotes."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    console = Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False, emoji=False)
    for i, run in enumerate(comparison.runs):
        if i:
            console.print()
        # labels, paths and arguments are data: as Text they are never read as markup
        console.print(Text(heading(run, comparison.label, comparison.correct_at), style="bold"))
        table = _table(run)
        # narrower than this, rich would cut the last columns off: let the terminal break the lines instead
        least = Measurement.get(console, console.options.update(max_width=_PIPE_WIDTH), table).minimum
        console.print(table, width=max(console.width, least), crop=False)
        for line in [*floor_lines(run), *footnotes(run)]:
            console.print(Text(line, style="yellow" if line.startswith("warning") else "dim"), soft_wrap=True)


def _table(run: RunComparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    soft = any(row.soft for row in run.rows)
    digits = decimals(run.rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    # in a narrow terminal an interval goes below its rate; nothing else is ever folded or replaced by dots
    table.add_column("task", no_wrap=True)
    for name in ("n", "baseline", "run", "drop"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("DR", "NDR", "PDR"):
        table.add_column(name, overflow="fold", min_width=6)
    for name in ("soft NDR", "soft PDR") if soft else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("McNemar p", no_wrap=True)
    for row in run.rows:
        scores = (score(row, value, digits) for value in (row.score_baseline, row.score_run, row.drop))
        rates = (rate(value, digits) for value in (row.dr, row.ndr, row.pdr))
        softs = (score(row, value, digits) for value in (row.soft_ndr, row.soft_pdr)) if soft else ()
        cells = (row.task, str(row.n), *scores, *rates, *softs, p_value(row.mcnemar_p))
        table.add_row(*map(Text, cells), style="bold" if row.task == AVERAGE else "")
    return table
