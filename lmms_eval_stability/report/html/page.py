"""The page as one file: template, style, script and data put together, nothing from outside.

Model names, questions and answers are untrusted. Python escapes what it writes into the markup, the data lie in a
script element of a type that no browser runs, and the script only ever creates text nodes from them. Besides, the
page's content security policy allows exactly this style and this script, pictures from data URLs, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from ...averages import AVERAGES
from ...divergence import Divergence, Rate
from ...errors import OutputError
from ..sections import Grid
from ..values import NOTHING, decimals, p_value, percent, printable, score
from .model import PageFigure, PageModel

_COLUMNS = ("run", "task", "", "n", "baseline", "score", "drop", "DR", "NDR", "PDR", "McNemar p", "excess DR")
_HINTS = {
    "drop": "score of the baseline minus score of the run",
    "DR": "share of answers that differ from the baseline's, with its 95 % interval",
    "NDR": "right in the baseline, wrong in the run",
    "PDR": "wrong in the baseline, right in the run",
    "McNemar p": "exact two-sided test of NDR against PDR",
    "excess DR": "DR minus that of the baseline against its own re-run",
}
#: Figures that stand in the section on reliability.
_OF_RELIABILITY = ("reliability", "risk_coverage")
_BAR = 42  # width of an interval's picture, in pixels


def write_html(path: Path, model: PageModel) -> None:
    """Write the page, under a temporary name first. Raises OutputError when it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(render(model), encoding="utf-8", errors="replace", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def render(model: PageModel) -> str:
    """The page as text. The same model gives the same text."""
    style, script = _asset("style.css"), _asset("logic.js") + _asset("app.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": escape(policy),
        "title": _text(model.title),
        "version": _text(model.version),
        "style": style,
        "summary": _summary(model.rows, model.names),
        "notes": "\n".join(_note(name, lines) for name, lines in model.notes),
        "figures": "\n".join(_figure(one) for one in model.figures if one.name not in _OF_RELIABILITY),
        "reliability": _reliability(model),
        "link": '<a href="#reliability">Reliability</a>' if model.reliability else "",
        "shown": _text(model.shown),
        "pictures": _text(model.pictures),
        "data": json_for_script(model.browser),
        "script": script,
    }
    # one pass: what is put in is not searched for places again
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("template.html"))


def json_for_script(value: Any) -> str:
    """JSON that is safe between <script> and </script>: no "<", ">" or "&", and none of JavaScript's line ends."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return printable(text)


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(text: str) -> str:
    """Untrusted text as markup."""
    return escape(printable(text))


def _summary(rows: Sequence[Divergence], names: Mapping[str, str]) -> str:
    """The table of all runs and tasks."""
    tasks = {row.task for row in rows}
    floor = any(isfinite(row.excess_dr) for row in rows)
    columns = [name for name in _COLUMNS if name != "excess DR" or floor]
    top = max((end for row in rows for rate in (row.dr, row.ndr, row.pdr) if isfinite(end := _end(rate))), default=1.0)
    digits = decimals(tuple(rows))
    head = "".join(_header(name) for name in columns)
    body = "\n".join(_row(row, names[row.run], columns, digits, top or 1.0) for row in rows)
    count = (_count(len({row.run for row in rows}), "run"), _count(len(tasks - AVERAGES), "task"))
    caption = f"{', '.join(count)}. Scores and rates in percent."
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _header(name: str) -> str:
    if not name:
        return "<td></td>"
    hint = f' title="{escape(_HINTS[name])}"' if name in _HINTS else ""
    kind = "text" if name in ("run", "task") else "number"
    return f'<th scope="col" class="{kind}"><button type="button"{hint}>{escape(name)}</button></th>'


def _row(row: Divergence, name: str, columns: Sequence[str], digits: int, top: float) -> str:
    cells: Mapping[str, tuple[float, str]] = {
        "n": (row.n, f"{row.n:,}"),
        "baseline": (row.score_baseline, score(row.score_baseline, row.score_unit, digits)),
        "score": (row.score_run, score(row.score_run, row.score_unit, digits)),
        "drop": (row.drop, score(row.drop, row.score_unit, digits)),
        "DR": (row.dr.value, _rate(row.dr, digits, top, "dr")),
        "NDR": (row.ndr.value, _rate(row.ndr, digits, top, "negative")),
        "PDR": (row.pdr.value, _rate(row.pdr, digits, top, "positive")),
        "McNemar p": (row.mcnemar_p, p_value(row.mcnemar_p)),
        "excess DR": (row.excess_dr, percent(row.excess_dr, digits)),
    }
    marked = ' class="average"' if row.task in AVERAGES else ""
    found = [f'<tr{marked}><th scope="row" title="{_text(row.run)}">{_text(name)}</th><td>{_text(row.task)}</td>']
    data = "" if row.task in AVERAGES else f' data-task="{_text(row.task)}"'
    label = f"Answers that {row.run} changed" + ("" if row.task in AVERAGES else f", {row.task}")
    found.append(
        f'<td><button type="button" class="show" data-run="{_text(row.run)}"{data} aria-label="{_text(label)}">'
        "answers</button></td>"
    )
    for column in columns:
        if column in cells:
            value, shown = cells[column]
            found.append(f'<td class="number" data-value="{value if isfinite(value) else ""}">{shown}</td>')
    return "".join(found) + "</tr>"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _end(rate: Rate) -> float:
    return rate.high if isfinite(rate.high) else rate.value


def _rate(rate: Rate, digits: int, top: float, kind: str) -> str:
    """A rate, its interval and a small picture of both, on the scale of the whole table."""
    if not isfinite(rate.value):
        return NOTHING
    place = f"{_BAR * rate.value / top:.1f}"
    line, ends = "", ""
    if isfinite(rate.low):
        low, high = _BAR * rate.low / top, _BAR * rate.high / top
        line = f'<rect class="range" x="{low:.1f}" y="3.5" width="{max(0.5, high - low):.1f}" height="3" rx="1.5"/>'
        ends = f' <span class="ends">[{percent(rate.low, digits)}, {percent(rate.high, digits)}]</span>'
    picture = (
        f'<svg class="bar {kind}" width="{_BAR + 6}" height="10" viewBox="-3 0 {_BAR + 6} 10" aria-hidden="true">'
        f'{line}<circle cx="{place}" cy="5" r="2.6"/></svg>'
    )
    return f'<div class="rate">{picture}<span><b>{percent(rate.value, digits)}</b>{ends}</span></div>'


def _note(name: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    warnings = sum(line.startswith(("warning:", "accepted:")) for line in lines)
    count = f' <span class="count">{warnings} to know</span>' if warnings else ""
    return f"<details><summary>{_text(name)}{count}</summary><ul>{items}</ul></details>"


def _reliability(model: PageModel) -> str:
    """The section on reliability; nothing where nobody asked for it."""
    if not model.reliability:
        return ""
    figures = "\n".join(_figure(one) for one in model.figures if one.name in _OF_RELIABILITY)
    parts = "\n".join(_reliability_part(*part) for part in model.reliability)
    return (
        '<section id="reliability" aria-labelledby="reliability-title">\n<h2 id="reliability-title">Reliability</h2>\n'
        f'<div class="gallery">\n{figures}\n</div>\n{parts}\n</section>'
    )


def _reliability_part(name: str, grids: Sequence[Grid], lines: Sequence[str]) -> str:
    tables = "".join(_grid(*grid) for grid in grids)
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f'<details><summary>{_text(name)}</summary><div class="tables">{tables}</div><ul>{items}</ul></details>'


def _grid(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table with its caption; the first `texts` columns hold text."""

    def kind(place: int) -> str:
        return ' class="number"' if place >= texts else ""

    head = "".join(f'<th scope="col"{kind(i)}>{_text(name)}</th>' for i, name in enumerate(names))
    body = ""
    for row in rows:
        cells = "".join(f"<td{kind(i)}>{_text(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        body += f'<tr><th scope="row">{_text(row[0])}</th>{cells}</tr>\n'
    table = f"<table><caption>{_text(title)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(title)}">{table}</div>'


def _figure(figure: PageFigure) -> str:
    pictures = "".join(
        f'<img class="only-{theme}" alt="{_text(f"{figure.title}. {figure.caption}")}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(content).decode("ascii")}">'
        for theme, content in (("light", figure.light), ("dark", figure.dark))
    )
    return (
        f'<figure id="figure-{_text(figure.name)}"><div class="title"><h3>{_text(figure.title)}</h3>'
        f'<button type="button" class="widen" aria-pressed="false" hidden>wide</button></div>'
        f'<div class="plot">{pictures}</div>'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )
