"""`lmms-eval-stability check-table`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import OptionError

if TYPE_CHECKING:
    from ..plausibility import Options, ResultsTable

#: Names of the published tables in place of a file.
_PAPER = re.compile(r"paper(?::(?:table)?(\d{1,3}))?", re.IGNORECASE)


@click.command(
    name="check-table",
    epilog="\b\n"
    "Exit codes: 0 no errors, 1 the table holds errors, 2 the file or an option is wrong.\n\n\b\n"
    "Examples:\n"
    "  lmms-eval-stability check-table results.csv --size gqa=12578 --binary my_task\n"
    "  lmms-eval-stability check-table report/divergence.csv --format markdown\n"
    "  lmms-eval-stability check-table paper:2\n",
)
@click.argument("file", metavar="FILE")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option("--size", "sizes", multiple=True, metavar="BENCHMARK=N", help="Rows of a benchmark; repeatable.")
@click.option(
    "--binary",
    multiple=True,
    metavar="BENCHMARK",
    help="The score of this benchmark is the share of rows that are correct; repeatable.",
)
@click.option(
    "--unit",
    type=click.Choice(["percent", "fraction"]),
    default="percent",
    show_default=True,
    help="Unit of the numbers; a divergence.csv says it itself.",
)
@click.option("--baseline", default="baseline", show_default=True, metavar="NAME", help="Method that is the baseline.")
@click.pass_context
def check_table(
    ctx: click.Context,
    file: str,
    layout: str,
    sizes: tuple[str, ...],
    binary: tuple[str, ...],
    unit: str,
    baseline: str,
) -> None:
    """Find numbers in a table of results that cannot go together.

    FILE is a CSV file with one number per row and the columns method, benchmark, metric and value (optional: table,
    base_model, perturbation, n, scoring, note), or the divergence.csv of compare. "paper" stands for all published
    tables, "paper:2" for one of them.
    """
    from ..plausibility import CHECKS, Options
    from ..plausibility import check_table as check
    from ..report import plausibility as report

    given = _sizes(sizes)
    options = Options(given, frozenset(binary), 100 if unit == "percent" else 1, baseline)
    table = _read(file, options)
    outcomes = check(table)
    if layout == "table":
        report.print_outcomes(table, outcomes, CHECKS, sys.stdout)
    else:
        writer = {"json": report.to_json, "markdown": report.to_markdown}[layout]
        click.echo(writer(table, outcomes, CHECKS), nl=False)
    if any(finding.severity == "error" for outcome in outcomes for finding in outcome.findings):
        ctx.exit(1)


def _read(file: str, options: Options) -> ResultsTable:
    """The published tables or the user's."""
    from dataclasses import replace

    from ..paper import SIZES, TABLES, table_path
    from ..plausibility import read_results

    published = _PAPER.fullmatch(file)
    if not published:
        return read_results([Path(file)], file, options)
    numbers = [int(published[1])] if published[1] else list(TABLES)
    options = replace(options, sizes={**SIZES, **options.sizes})
    return read_results([table_path(number) for number in numbers], file, options)


def _sizes(values: tuple[str, ...]) -> dict[str, int]:
    """BENCHMARK=N, as given to `--size`."""
    sizes = {}
    for value in values:
        name, equals, count = value.rpartition("=")
        if not equals or not name or not re.fullmatch(r"[1-9][0-9]{0,11}", count):
            raise OptionError(f"--size {value!r} is not BENCHMARK=N with N rows, at least 1")
        sizes[name] = int(count)
    return sizes
