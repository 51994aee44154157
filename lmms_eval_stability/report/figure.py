"""The figure that makes the point: DR and NDR against the score drop. A small drop can hide a large divergence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from ..comparison import Comparison
from ..divergence import AVERAGE, Divergence, Rate
from .values import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that people with colour-blindness can tell apart (Okabe and Ito).
_SERIES = {"dr": ("DR: answer differs", "#0072B2", "o"), "ndr": ("NDR: right before, wrong after", "#D55E00", "v")}
_NAMED = 16
#: Between a point and its name, and of a letter, as shares of the axes' width.
_GAP, _LETTER = 0.016, 0.0105


def save_figure(comparison: Comparison, path: Path, kind: str) -> None:
    """Draw one pair of marks (DR above NDR) per task and run, with 95 % intervals, and save it.

    Tasks whose score is not on a scale from 0 to 1 have no drop in points and are left out; a note says so.

    Args:
        comparison: what to draw.
        path: the file, whatever its name ends with.
        kind: "png" or "svg".
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for run in comparison.runs for row in run.rows if row.task != AVERAGE]
    drawn = [row for row in rows if row.score_unit == "fraction" and isfinite(row.drop) and isfinite(row.dr.value)]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no window
    axes = figure.add_subplot()
    _draw(axes, drawn)
    _name(axes, drawn, several_runs=len(comparison.runs) > 1)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    axes.set_title(printable(f"Divergence from {comparison.label}"), loc="left", parse_math=False)
    if len(drawn) < len(rows):
        axes.annotate(f"not drawn: {len(rows) - len(drawn)} tasks without a score from 0 to 1", (0.02, 0.02),
                      xycoords="axes fraction", fontsize=8)  # fmt: skip
    # a fixed salt and no date: the same comparison gives the same file
    with matplotlib.rc_context({"svg.hashsalt": "lmms-eval-stability"}):
        figure.savefig(path, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def _draw(axes: Axes, rows: list[Divergence]) -> None:
    from matplotlib.transforms import ScaledTranslation

    drops = [100 * row.drop for row in rows]
    for drop, row in zip(drops, rows, strict=True):
        axes.plot([drop, drop], [100 * row.ndr.value, 100 * row.dr.value], color="0.8", linewidth=1, zorder=1)
    for (name, (label, colour, marker)), side in zip(_SERIES.items(), (-1, 1), strict=True):
        rates: list[Rate] = [getattr(row, name) for row in rows]
        values = [100 * rate.value for rate in rates]
        lows = [100 * max(0.0, rate.value - rate.low) for rate in rates]
        highs = [100 * max(0.0, rate.high - rate.value) for rate in rates]
        # both rates of a task share one drop: a few points of print apart, the intervals do not cover each other
        shift = ScaledTranslation(side * 2 / 72, 0, axes.figure.dpi_scale_trans)
        axes.errorbar(
            drops, values, yerr=[lows, highs], fmt=marker, color=colour, label=label, capsize=2, elinewidth=1,
            transform=axes.transData + shift,
        )  # fmt: skip
    # the end of an interval may be nan (samples of a single image): the rate then is the greatest there is
    top = max([100 * max(row.dr.value, row.dr.high) for row in rows], default=1.0) * 1.05
    # the score can only drop by what was lost: on scores of 0 and 1, NDR lies on or above this line
    axes.plot([0, top], [0, top], color="0.5", linestyle=":", linewidth=1, label="score drop")
    axes.set_xlabel("score drop (points)")
    axes.set_ylabel("share of samples (%)")
    least, most = min([*drops, 0.0]), max([*drops, 0.0])
    margin = max(0.5, 0.15 * (most - least))
    axes.set_xlim(least - margin, most + margin)
    axes.set_ylim(0, max(top, 1.0))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(axes: Axes, rows: list[Divergence], several_runs: bool) -> None:
    """Name the points, as long as there are few enough to read. Names that would cover each other are stacked."""
    if len(rows) > _NAMED:
        return
    several_tasks = len({row.task for row in rows}) > 1
    short = short_names(list(dict.fromkeys(row.run for row in rows)))
    (left, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []  # begin, end and height of names so far, as shares of the axes
    for row in sorted(rows, key=lambda row: row.dr.value):
        name = " · ".join([row.task] * (several_tasks or not several_runs) + [short[row.run]] * several_runs)
        x, place = (100 * row.drop - left) / (right - left), 100 * row.dr.value / top
        inward, wide, y = x > 0.6, _GAP + _LETTER * len(name), place
        begin, end = (x - wide, x) if inward else (x, x + wide)
        while any(begin < end0 and begin0 < end and abs(y - y0) < 0.055 for begin0, end0, y0 in taken):
            y += 0.01
        taken.append((begin, end, y))
        axes.annotate(
            printable(name),
            (x, place),
            xycoords="axes fraction",
            xytext=(x - _GAP if inward else x + _GAP, y),
            textcoords="axes fraction",
            ha="right" if inward else "left",
            va="center",
            fontsize=8,
            parse_math=False,
            # a line to the point of a name that had to move away from it
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if y - place > 0.03 else None,
        )


def short_names(labels: Sequence[str]) -> dict[str, str]:
    """Return a name for each label with no more arguments than it takes to tell the runs apart.

    "m (k=3, r=0.5)" becomes "m" when no other run is of model m, and "m (r=0.5)" beside "m (k=3, r=0.75)".
    """
    parts = {label: re.fullmatch(r"(\S+) \((.*)\)(.*)", label) for label in labels}
    names = {}
    for label, found in parts.items():
        if found is None:
            names[label] = label
            continue
        model, arguments, more = found.group(1), found.group(2).split(", "), found.group(3)
        twins = [other.group(2).split(", ") for other in parts.values() if other and other.group(1) == model]
        telling = [one for one in arguments if not all(one in twin for twin in twins)]
        names[label] = model + (f" ({', '.join(telling)})" if telling else "") + more
    return names if len(set(names.values())) == len(labels) else {label: label for label in labels}
