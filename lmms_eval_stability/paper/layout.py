"""Published tables, and ours beside them, as grids of text with footnotes: for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import IO

from ..report.latex import escape as tex
from ..report.markdown import escape as md
from ..report.values import NOTHING
from .beside import CellPair, PaperComparison
from .corrections import TABLE_NOTES, PublishedCell, Remark, published_cells
from .published import TABLES, table_path, table_rows

#: Width of what must not be cut off: tables, and everything when the output is no terminal.
_PIPE_WIDTH = 2000
_CITED = "Sun et al., EMNLP 2025 (arXiv 2503.06794)"
_STATES = {"none": "", "vision": "vision", "text": "text"}
_COMPARED = ("benchmark", "metric", "n", "ours", "95 % interval", "published", "difference", "within")


@dataclass(frozen=True)
class Grid:
    """A table of texts. The first `texts` columns are names, all others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int


@dataclass(frozen=True)
class Document:
    """A title, grids, and lines below them."""

    title: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]


class _Footnotes:
    """Numbers remarks in the order in which they are first met."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def mark(self, remarks: Iterable[Remark]) -> str:
        """The numbers of the remarks as a suffix of a cell."""
        numbers = []
        for remark in remarks:
            self.found.setdefault(remark.why, remark.kind)
            numbers.append(list(self.found).index(remark.why) + 1)
        return "".join(f" [{number}]" for number in numbers)

    def lines(self) -> list[str]:
        return [f"[{i}] {kind}: {why}" for i, (why, kind) in enumerate(self.found.items(), 1)]


def published_document(number: int) -> Document:
    """A table as printed, mistakes included and marked, in the paper's layout."""
    title = f"Table {number}: {TABLES[number]}. {_CITED}"
    if number in (7, 8, 9):
        return Document(title, (_listing(number),), ())
    notes = _Footnotes()
    cells = published_cells(number)
    models = dict.fromkeys(cell.base_model for cell in cells)
    grids = tuple(_block(number, model, [c for c in cells if c.base_model == model], notes) for model in models)
    return Document(title, grids, (*_capital(TABLE_NOTES.get(number, ())), *notes.lines()))


def published_csv(number: int) -> str:
    """The table as it is shipped: one number per row."""
    return table_path(number).read_text(encoding="utf-8")


def _listing(number: int) -> Grid:
    """Tables 7 to 9: names with one number each."""
    rows = table_rows(number)
    if number == 7:
        listed = tuple((row["benchmark"], row["metric"], row["value"]) for row in rows)
        return Grid("", ("benchmark", "split", "samples"), listed, 2)
    return Grid("", ("perturbation", "severity levels"), tuple((row["benchmark"], row["value"]) for row in rows), 1)


def _block(number: int, model: str, cells: Sequence[PublishedCell], notes: _Footnotes) -> Grid:
    """One base model: a row per method and metric, a column per benchmark and state of the input.

    Table 6 has a row per method, since each of its columns has metrics of its own, and table 5 one metric only.
    """
    one_row = number in (5, 6)

    def column(cell: PublishedCell) -> str:
        return f"{_place(cell)} {cell.metric}" if number == 6 else _place(cell)

    columns = list(dict.fromkeys(column(cell) for cell in cells))
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        row = texts.setdefault((cell.method, "" if one_row else cell.metric), {})
        row[column(cell)] = cell.printed + notes.mark(cell.remarks)
    last = ""
    rows = []
    for (method, metric), row in texts.items():
        names = [method] if one_row else ["" if method == last else method, metric]
        rows.append((*names, *(row.get(name, NOTHING) for name in columns)))
        last = method
    stub = ("method",) if one_row else ("method", "metric")
    return Grid(model, (*stub, *columns), tuple(rows), len(stub))


def compared_document(comparison: PaperComparison) -> Document:
    """Ours beside a table: a grid per base model and method, footnotes, settings, what is missing."""
    notes = _Footnotes()
    groups: dict[tuple[str, str], list[CellPair]] = {}
    for pair in comparison.pairs:
        groups.setdefault((pair.published.base_model, pair.published.method), []).append(pair)
    grids = tuple(_compared_block(model, method, pairs, notes) for (model, method), pairs in groups.items())
    lines = [*_capital(TABLE_NOTES.get(comparison.table, ())), *notes.lines(), *_summary(comparison)]
    lines += [f"Setting: {line}" for line in comparison.settings]
    lines += [f"Missing: {line}" for line in missing_lines(comparison)]
    lines += [f"Not in this table: {', '.join(comparison.others)}"] if comparison.others else []
    title = f"Ours beside table {comparison.table}: {TABLES[comparison.table]}. {_CITED}"
    return Document(title, grids, tuple(lines))


def _compared_block(model: str, method: str, pairs: Sequence[CellPair], notes: _Footnotes) -> Grid:
    rows = []
    for pair in pairs:
        cell, ours = pair.published, pair.ours
        interval = NOTHING if isnan(ours.rate.low) else f"[{ours.rate.low:.2f}, {ours.rate.high:.2f}]"
        within = {True: "yes", False: "no", None: NOTHING}[pair.within]
        published = (cell.text or NOTHING) + notes.mark(cell.remarks)
        difference = NOTHING if isnan(pair.difference) else f"{pair.difference + 0.0:+.2f}"
        value = f"{round(ours.rate.value, 2) + 0.0:.2f}"
        rows.append((_place(cell), cell.metric, str(ours.n), value, interval, published, difference, within))
    return Grid(f"{model} · {method}", _COMPARED, tuple(rows), 2)


def _summary(comparison: PaperComparison) -> list[str]:
    """How many cells agree, by metric."""
    lines = []
    metrics = dict.fromkeys(pair.published.metric for pair in comparison.pairs)
    for metric in metrics:
        pairs = [p for p in comparison.pairs if p.published.metric == metric and not isnan(p.difference)]
        judged = [pair for pair in pairs if pair.within is not None]
        if pairs:
            mean = sum(abs(pair.difference) for pair in pairs) / len(pairs)
            inside = sum(pair.within is True for pair in judged)
            cells = "1 cell" if len(pairs) == 1 else f"{len(pairs)} cells"
            lines.append(
                f"{metric}: {cells} compared, mean absolute difference {mean:.2f}; the published number "
                f"lies in our interval in {inside} of {len(judged)} that have one"
            )
    return lines


def missing_lines(comparison: PaperComparison) -> list[str]:
    """The missing cells by model, method and metric: "LLaVA-1.5 FastV DR, NDR: GQA, Average"."""
    missing, lines = set(comparison.missing), []
    models = _grouped(comparison.cells, lambda cell: cell.base_model)
    for model, of_model in models.items():
        if missing.issuperset(of_model):
            lines.append(f"{model}: all {len(of_model)} cells")
            continue
        for method, of_method in _grouped(of_model, lambda cell: cell.method).items():
            if missing.issuperset(of_method):
                lines.append(f"{model} {method}: all {len(of_method)} cells")
                continue
            metrics = _grouped((cell for cell in of_method if cell in missing), lambda cell: cell.metric)
            by_names: dict[str, list[str]] = {}
            for metric, cells in metrics.items():
                by_names.setdefault(", ".join(map(_place, cells)), []).append(metric)
            lines += [f"{model} {method} {', '.join(found)}: {names}" for names, found in by_names.items()]
    return lines


def _grouped(cells: Iterable[PublishedCell], key: Callable[[PublishedCell], str]) -> dict[str, list[PublishedCell]]:
    groups: dict[str, list[PublishedCell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def _place(cell: PublishedCell) -> str:
    """Benchmark and state of the input."""
    return " ".join(filter(None, (cell.benchmark, _STATES.get(cell.perturbation, cell.perturbation))))


def comparison_csv(comparison: PaperComparison) -> str:
    """One row per cell of the published table; empty for what there is not."""
    records = comparison.records()
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def print_document(document: Document, file: IO[str]) -> None:
    """For a terminal; in a pipe or a file nothing is cut off.

    A table that is wider than the terminal is printed whole: numbers broken over two lines cannot be read.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    wide = Console(file=file, width=_PIPE_WIDTH, highlight=False, emoji=False)
    console = Console(file=file, highlight=False, emoji=False) if file.isatty() else wide
    console.print(Text(document.title, style="bold"))
    for grid in document.grids:
        console.print()
        if grid.title:
            console.print(Text(grid.title, style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        for i, name in enumerate(grid.columns):
            table.add_column(Text(name), justify="left" if i < grid.texts else "right", no_wrap=True)
        for row in grid.rows:
            # names are data: as Text they are never read as markup
            table.add_row(*map(Text, row))
        wide.print(table)
    if document.notes:
        console.print()
    for line in document.notes:
        console.print(Text(line))


def document_markdown(document: Document) -> str:
    """A heading, a pipe table per grid, and a list."""
    lines = [f"### {md(document.title)}", ""]
    for grid in document.grids:
        lines += [f"**{md(grid.title)}**", ""] if grid.title else []
        lines.append(f"| {' | '.join(map(md, grid.columns))} |")
        lines.append(f"|{'---|' * grid.texts}{'---:|' * (len(grid.columns) - grid.texts)}")
        lines += [f"| {' | '.join(map(md, row))} |" for row in grid.rows]
        lines.append("")
    lines += [f"- {md(line)}" for line in document.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def document_latex(document: Document) -> str:
    """A tabular per grid, with booktabs; the lines below follow as a list."""
    lines = [r"% \usepackage{booktabs}", rf"\noindent\textbf{{{tex(document.title)}}}", ""]
    for grid in document.grids:
        stub = "l" * grid.texts + "r" * (len(grid.columns) - grid.texts)
        lines += [rf"\medskip\noindent\textit{{{tex(grid.title)}}}\par"] if grid.title else []
        lines += [rf"\noindent\begin{{tabular}}{{{stub}}}", r"\toprule", _tex_row(grid.columns), r"\midrule"]
        lines += [*map(_tex_row, grid.rows), r"\bottomrule", r"\end{tabular}", ""]
    if document.notes:
        lines += [r"\begin{itemize}", *(rf"\item {tex(line)}" for line in document.notes), r"\end{itemize}"]
    return "\n".join(lines) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join('--' if cell == NOTHING else _minus(cell) for cell in cells)} \\\\"


def _minus(cell: str) -> str:
    """Escaped, and the signs of numbers as signs, not as hyphens."""
    return re.sub(r"(?<![A-Za-z0-9-])([-+])(?=\d)", r"$\1$", tex(cell))


def _capital(lines: Iterable[str]) -> list[str]:
    return [f"Note: {line}" for line in lines]
