"""`lmms-eval-stability paper`: the published tables, ours beside them, and what is wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import OptionError, OutputError

if TYPE_CHECKING:
    from ..paper.beside import PaperComparison
    from ..paper.layout import Document

_NUMBERS = click.IntRange(1, 12)


@click.group(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability paper tables 1\n"
    "  lmms-eval-stability paper compare table1-runs --table 1\n"
    "  lmms-eval-stability paper check\n"
)
def paper() -> None:
    """The published tables of Sun et al. (EMNLP 2025, arXiv 2503.06794), and our numbers beside them."""


@paper.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability paper tables\n"
    "  lmms-eval-stability paper tables 1 --format markdown\n"
    "  lmms-eval-stability paper tables 3 --format latex\n"
)
@click.argument("number", metavar="[N]", type=_NUMBERS, required=False)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "markdown", "csv", "latex"]),
    default="table",
    show_default=True,
    help="What to print; csv is the file as it is shipped, one number per row.",
)
def tables(number: int | None, layout: str) -> None:
    """Print published table N as it stands in print; without N, list the tables.

    Cells known to be wrong or doubtful have a footnote.
    """
    from ..paper.layout import document_latex, document_markdown, print_document, published_csv, published_document

    if number is None:
        _print_list(layout)
    elif layout == "table":
        print_document(published_document(number), sys.stdout)
    elif layout == "csv":
        click.echo(published_csv(number), nl=False)
    else:
        writer = {"markdown": document_markdown, "latex": document_latex}[layout]
        click.echo(writer(published_document(number)), nl=False)


@paper.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability paper compare table1-runs --table 1\n"
    "  lmms-eval-stability paper compare table1-runs table3_4-runs --table 3 -o beside\n"
    "  lmms-eval-stability paper compare report --table 1 --as my_llava=LLaVA-1.5 --as zip192=VisionZip\n"
)
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--table", "number", type=int, metavar="N", help="Table to compare with; by default the study says it.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "markdown", "csv", "latex"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option(
    "--as",
    "named",
    multiple=True,
    metavar="FOLDER=NAME",
    help="The folder of a base model or run stands for this base model or method of the paper; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write paper_table<N>.md, .csv and .tex into DIR.",
)
def compare(
    folders: tuple[Path, ...], number: int | None, layout: str, named: tuple[str, ...], output: Path | None
) -> None:
    """Put our runs beside a published table, cell by cell.

    DIR is the folder of a study, of compare -o, or a summary.json; several are read together, so that clean and
    perturbed runs may come from two studies.
    """
    from ..paper.beside import compare_table
    from ..paper.layout import compared_document, comparison_csv, document_latex, document_markdown, print_document
    from ..paper.reports import read_reports, stated_table

    reports = read_reports(folders, _names(named))
    number = stated_table(folders) if number is None else number
    comparison = compare_table(number, reports)
    document = compared_document(comparison)
    if output is not None:
        _write(output, comparison, document)
    if layout == "table":
        print_document(document, sys.stdout)
    elif layout == "csv":
        click.echo(comparison_csv(comparison), nl=False)
    else:
        writer = {"markdown": document_markdown, "latex": document_latex}[layout]
        click.echo(writer(document), nl=False)


@paper.command(
    epilog="\b\nExit codes: 0 no errors, 1 the tables hold errors (they do), 2 an option is wrong.\n\n\b\nExamples:\n"
    "  lmms-eval-stability paper check\n"
    "  lmms-eval-stability paper check 2 --format markdown\n"
)
@click.argument("number", metavar="[N]", type=_NUMBERS, required=False)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.pass_context
def check(ctx: click.Context, number: int | None, layout: str) -> None:
    """Find numbers of the published tables that cannot go together: check-table on all of them, or on table N."""
    from .check_table import check_table

    ctx.invoke(check_table, file=f"paper:{number}" if number else "paper", layout=layout)


def _print_list(layout: str) -> None:
    from ..paper import TABLES
    from ..paper.layout import Document, Grid, document_latex, document_markdown, print_document

    rows = tuple((str(number), about) for number, about in TABLES.items())
    document = Document("The published tables", (Grid("", ("table", "about"), rows, 2),), ())
    if layout == "table":
        print_document(document, sys.stdout)
    elif layout == "csv":
        raise OptionError("--format csv prints one table: name it, as in: lmms-eval-stability paper tables 1")
    else:
        click.echo({"markdown": document_markdown, "latex": document_latex}[layout](document), nl=False)


def _names(values: tuple[str, ...]) -> dict[str, str]:
    """FOLDER=NAME, as given to `--as`."""
    names = {}
    for value in values:
        folder, equals, name = value.partition("=")
        if not equals or not folder or not name:
            raise OptionError(f"--as {value!r} is not FOLDER=NAME, such as my_llava=LLaVA-1.5")
        names[folder] = name
    return names


def _write(folder: Path, comparison: PaperComparison, document: Document) -> None:
    """The three files of `-o`."""
    from ..paper.layout import comparison_csv, document_latex, document_markdown

    stem = f"paper_table{comparison.table}"
    texts = {
        f"{stem}.md": document_markdown(document),
        f"{stem}.csv": comparison_csv(comparison),
        f"{stem}.tex": document_latex(document),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from error
    click.echo(f"written: {', '.join(str(folder / name) for name in texts)}", err=True)
