"""Results as LaTeX, in the layout of the tables of Sun et al. 2025 (arXiv 2503.06794). They need booktabs, no more.

Tables 1, 2 and 10 have a block per base model, a column per benchmark, and for every method one row per metric: score,
drop, DR, NDR. Tables 3, 4, 11 and 12 are the same with three columns per benchmark, one per state of the input. With
`metrics="columns"` a method is one row, and each benchmark has a column per metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from ..divergence import AVERAGE
from ..errors import OptionError
from ..verdicts import SCORED

if TYPE_CHECKING:
    import pandas as pd

    from ..comparison import Comparison

#: Columns of the frame; others are ignored.
REQUIRED = ("base_model", "method", "benchmark", "metric", "value")
OPTIONAL = ("perturbation", "low", "high")
#: Order and names of the metrics; others follow under their own names.
METRICS: dict[str, str] = {"score": "Score", "drop": "Drop", "DR": "DR", "NDR": "NDR", "PDR": "PDR"}
NOTHING = "--"

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # after the \\ of the row before, these would be an argument of it
    **{character: f"{{{character}}}" for character in "[]*"},
}
_LABEL = re.compile(r"[A-Za-z0-9:_./+-]+")

Key = tuple[str, ...]


def escape(text: str) -> str:
    """Data as it is: no command, no new cell, row, line or argument, and hyphens that stay hyphens.

    Letters beyond ASCII are left to the engine; pdfLaTeX knows the accented Latin ones.
    """
    plain = "".join(character if character.isprintable() else " " for character in text)
    escaped = "".join(_SPECIAL.get(character, character) for character in " ".join(plain.split()))
    return re.sub(r"-(?=-)", "-{}", escaped)


@dataclass(frozen=True)
class Layout:
    """How a table looks.

    Attributes:
        metrics: a row per metric and method, as in print, or a column per metric and benchmark.
        decimals: digits after the point.
        caption, label: of the `table*` environment around the tabular; without both there is none. A caption is text
            and gets escaped; a label may have letters, digits and `:_./+-`.
    """

    metrics: Literal["rows", "columns"] = "rows"
    decimals: int = 2
    caption: str = ""
    label: str = ""


def to_latex(frame: pd.DataFrame, layout: Layout | None = None) -> str:
    """The frame as LaTeX: base models, methods and benchmarks in the order of their first rows.

    Args:
        frame: one number per row; columns `REQUIRED`, and of `OPTIONAL` `perturbation` (with more than one state,
            columns of their own) and `low`, `high` (an interval, printed behind its value where both are finite).
            Values are printed as they are, in whatever unit; what is missing or not finite becomes a dash.

    Raises:
        OptionError: columns are missing, there is no row, two rows are about the same number, or the label is unusable.
    """
    layout = layout or Layout()
    if layout.label and not _LABEL.fullmatch(layout.label):
        raise OptionError(f"label {layout.label!r}: use letters, digits and : _ . / + -")
    grid = _Grid.of(frame, layout)
    stub = 2 if layout.metrics == "rows" else 1
    lines = [rf"\begin{{tabular}}{{{'l' * stub}{'r' * len(grid.columns)}}}", r"\toprule", *_head(grid, stub)]
    for model in grid.models:
        lines.append(r"\midrule")
        if model or len(grid.models) > 1:
            lines.append(rf"\multicolumn{{{stub + len(grid.columns)}}}{{l}}{{\textit{{{escape(model)}}}}} \\")
        lines += _block(grid, model, layout)
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(["% \\usepackage{booktabs}", *_environment(lines, layout)]) + "\n"


def tidy(records: pd.DataFrame) -> pd.DataFrame:
    """Records of a comparison (`Comparison.table`, or `divergence.csv` read by pandas) as a frame for `to_latex`.

    Rates, and scores that are fractions, in percent; the rates with their intervals. A baseline is a method with a
    score only; where its score is over other pairs for each run (incomplete logs), one per run. Baselines come first.
    """
    import pandas as pd

    baselines: dict[tuple[str, str, str], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    taken = set(records["run"])  # a run may be called "baseline"; then the baseline goes by its label
    scores = records.groupby(["baseline", "task"], sort=False)["score_baseline"].nunique(dropna=False)
    for row in records.to_dict("records"):
        benchmark = "Average" if row["task"] == AVERAGE else row["task"]
        place = {"base_model": row["baseline"], "method": row["run"], "benchmark": benchmark}
        scale = 100 if row["score_unit"] == "fraction" else 1
        same = scores[row["baseline"], row["task"]] == 1
        own = row["baseline"] if "baseline" in taken else "baseline"
        name = own if same else f"{own} (pairs of {row['run']})"
        score = {"method": name, "metric": "score", "value": _times(row["score_baseline"], scale)}
        baselines[row["baseline"], row["task"], name] = {**place, **score}
        rows.append({**place, "metric": "score", "value": _times(row["score_run"], scale)})
        rows.append({**place, "metric": "drop", "value": _times(row["drop"], scale)})
        for metric in ("dr", "ndr", "pdr"):
            low, high = (_times(row[f"{metric}_{end}"], 100) for end in ("low", "high"))
            number = {"metric": metric.upper(), "value": _times(row[metric], 100), "low": low, "high": high}
            rows.append({**place, **number})
    return pd.DataFrame([*baselines.values(), *rows], columns=[*REQUIRED, "low", "high"])


def comparison_latex(comparison: Comparison) -> str:
    """The table of a comparison, ready to be input: `table*`, with a caption that says what was compared and how."""
    rows = [row for run in comparison.runs for row in run.rows]
    at = f" Answers are correct at a score of {comparison.correct_at:g}." if any(row.soft for row in rows) else ""
    compared = "" if comparison.prediction == SCORED else f" Compared are answers as {comparison.prediction}."
    clustered = any(row.clusters for row in rows)
    kind = "cluster bootstrap where samples share an image, Wilson elsewhere" if clustered else "Wilson"
    caption = (
        f"Divergence from {comparison.label}: score, drop, divergence ratio (DR), negative (NDR) and positive (PDR), "
        f"in percent where the score is a fraction, with 95 % intervals ({kind}).{at}{compared}"
    )
    return to_latex(tidy(comparison.table), Layout(caption=caption, label="tab:divergence"))


def _times(value: Any, factor: int) -> float:
    return float("nan") if value is None else float(value) * factor


@dataclass(frozen=True)
class _Grid:
    """Printed cells by base model, method, metric and column.

    Attributes:
        columns: (benchmark[, perturbation][, metric]), sorted by first appearance of each level.
        rows: by model, (method, metrics with a row each).
    """

    cells: dict[tuple[str, str, str, Key], str]
    models: list[str]
    columns: list[Key]
    rows: dict[str, list[tuple[str, list[str]]]]

    @classmethod
    def of(cls, frame: pd.DataFrame, layout: Layout) -> _Grid:
        records = _records(frame)
        states = _distinct(record["perturbation"] for record in records)
        benchmarks = _distinct(record["benchmark"] for record in records)
        found = _distinct(record["metric"] for record in records)
        metrics = [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]
        as_rows = layout.metrics == "rows"
        cells: dict[tuple[str, str, str, Key], str] = {}
        for record in records:
            key: Key = (record["benchmark"],)
            key += (record["perturbation"],) if len(states) > 1 else ()
            key += () if as_rows else (record["metric"],)
            place = (record["base_model"], record["method"], record["metric"] if as_rows else "", key)
            if place in cells:
                words = ", ".join(filter(None, (*place[:2], record["metric"], *key[: 1 + (len(states) > 1)])))
                raise OptionError(f"two rows are about the same number: {words}")
            cells[place] = _number(record, layout.decimals)
        used = {place[3] for place in cells}
        levels: list[Key] = [(benchmark,) for benchmark in benchmarks]
        levels = [(*key, state) for key in levels for state in states] if len(states) > 1 else levels
        levels = levels if as_rows else [(*key, metric) for key in levels for metric in metrics]
        rows: dict[str, list[tuple[str, list[str]]]] = {}
        for model, method in _distinct((record["base_model"], record["method"]) for record in records):
            having = {place[2] for place in cells if place[:2] == (model, method)}
            rows.setdefault(model, []).append((method, [name for name in metrics if name in having] or [""]))
        return cls(cells, list(rows), [key for key in levels if key in used], rows)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with texts for names and "" for what there is not."""
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise OptionError(f"the table lacks the columns {', '.join(missing)}")
    if frame.empty:
        raise OptionError("the table has no rows")
    names = [name for name in (*REQUIRED[:-1], "perturbation") if name in frame.columns]
    texts = frame[names].astype(object).where(frame[names].notna(), "").astype(str)
    numbers = [name for name in ("value", "low", "high") if name in frame.columns]
    whole = texts.join(frame[numbers].astype(float))
    return [{"perturbation": "", **{str(key): value for key, value in row.items()}} for row in whole.to_dict("records")]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order of first appearance."""
    return list(dict.fromkeys(values))


def _number(record: dict[str, Any], decimals: int) -> str:
    """The value, with its interval if it has one."""
    value, low, high = record["value"], record.get("low", float("nan")), record.get("high", float("nan"))
    if not isfinite(value):
        return NOTHING
    text = _signed(value, decimals)
    if isfinite(low) and isfinite(high):
        text += rf" {{\scriptsize [{_signed(low, decimals)}, {_signed(high, decimals)}]}}"
    return text


def _signed(value: float, decimals: int) -> str:
    """With a minus sign, not a hyphen; "-0.0" never."""
    text = f"{round(value, decimals) + 0.0:.{decimals}f}"
    return f"${text}$" if text.startswith("-") else text


def _head(grid: _Grid, stub: int) -> list[str]:
    """One line per level of the columns; upper levels span theirs and are underlined."""
    lines = []
    depth = len(grid.columns[0])
    for level in range(depth - 1):
        cells, rules, column = [""] * stub, [], stub + 1
        for _, group in groupby(grid.columns, key=lambda key, level=level: key[: level + 1]):  # type: ignore[misc]
            keys = list(group)
            cells.append(rf"\multicolumn{{{len(keys)}}}{{c}}{{{escape(keys[0][level])}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + len(keys) - 1}}}")
            column += len(keys)
        lines += [_row(cells), "".join(rules)]
    last = [escape(METRICS.get(key[-1], key[-1]) if stub == 1 else key[-1]) for key in grid.columns]
    return [*lines, _row(["Method", *([""] * (stub - 1)), *last])]


def _block(grid: _Grid, model: str, layout: Layout) -> list[str]:
    """The rows of one base model; methods with several rows keep some distance."""
    lines: list[str] = []
    for method, metrics in grid.rows[model]:
        if lines and layout.metrics == "rows" and len(metrics) > 1:
            lines.append(r"\addlinespace")
        for i, metric in enumerate(metrics):
            names = [escape(method) if i == 0 else ""]
            names += [escape(METRICS.get(metric, metric))] if layout.metrics == "rows" else []
            cells = [grid.cells.get((model, method, metric, key), NOTHING) for key in grid.columns]
            lines.append(_row([*names, *cells]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _environment(lines: list[str], layout: Layout) -> list[str]:
    """The tabular in a `table*` if there is a caption or a label."""
    if not layout.caption and not layout.label:
        return lines
    caption = [rf"\caption{{{escape(layout.caption)}}}"] if layout.caption else []
    label = [rf"\label{{{layout.label}}}"] if layout.label else []
    return [r"\begin{table*}", r"\centering", *lines, *caption, *label, r"\end{table*}"]
