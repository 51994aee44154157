"""Figure 2 of the paper: the score drop beside DR and NDR. A small drop can hide many changed answers."""

from __future__ import annotations

from math import ceil, isnan
from typing import TYPE_CHECKING

from ...divergence import AVERAGE
from .style import LIGHT, Mark, Theme, empty, finish, label, marks, new_figure, plain_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Names beside each other in the legend.
_NAMES = 3
_PANELS = (("dr", "DR: answer differs (%)"), ("ndr", "NDR: right before, wrong after (%)"))


def drawn_rows(records: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a place in the figure: single tasks whose score lies on a scale from 0 to 1."""
    keep = (records["task"] != AVERAGE) & (records["score_unit"] == "fraction")
    numbers = records[["drop", "dr", "ndr"]].astype(float)
    return records[keep & numbers.notna().all(axis=1)]


def draw_score_drop(records: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """One point per run and task: its drop in points against its DR (left) and its NDR (right), 95 % intervals.

    The dotted line is where the rate equals the drop. Of scores of 0 and 1 no NDR lies below it. Spearman's rank
    correlation of rate and drop stands above each panel from five points on.

    Args:
        records: `Comparison.table`, or rows with its columns.
    """
    rows = drawn_rows(records)
    if rows.empty:
        return empty("no task with a score from 0 to 1", theme)
    left_out = int((records["task"] != AVERAGE).sum()) - len(rows)
    runs = list(dict.fromkeys(rows["run"]))
    figure = new_figure(8.4, 4.2 + 0.22 * ceil(len(runs) / _NAMES))
    panels = figure.subplots(1, 2)
    for axes, (rate, words) in zip(panels, _PANELS, strict=True):
        _draw(axes, rows, rate, marks(runs, theme), theme)
        axes.set_ylabel(words)
        axes.set_xlabel("score drop (points)")
        axes.set_title(_correlation(rows, rate), loc="left", fontsize=9)
    if left_out:
        note = f"not drawn: {left_out} without a score from 0 to 1"
        panels[0].annotate(note, (0.02, 0.98), xycoords="axes fraction", va="top", fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=_NAMES)
    return finish(figure, theme)


def _draw(axes: Axes, rows: pd.DataFrame, rate: str, look: dict[str, Mark], theme: Theme) -> None:
    import numpy as np

    plain_axes(axes, theme)
    top = 100 * float(rows[[rate, f"{rate}_high"]].astype(float).max().max())
    axes.plot([0, top], [0, top], color=theme.faint, linestyle=":", linewidth=1)
    axes.axvline(0, color=theme.grid, linewidth=1.2, zorder=0)
    for run, part in rows.groupby("run", sort=False):
        numbers = 100 * part[["drop", rate, f"{rate}_low", f"{rate}_high"]].astype(float)
        drops, values, low, high = numbers.to_numpy().T
        # an end that is not known is drawn as no interval; rounding may leave the value a hair outside
        lengths = np.nan_to_num(np.maximum([values - low, high - values], 0))
        mark = look[str(run)]
        axes.errorbar(
            drops, values, yerr=lengths, fmt=mark.marker, color=mark.colour, ecolor=f"{mark.colour}80",
            markersize=6, elinewidth=1, label=label(str(run)),
        )  # fmt: skip
    axes.set_ylim(0, max(1.0, 1.05 * top))


def _correlation(rows: pd.DataFrame, rate: str) -> str:
    if len(rows) < 5:
        return ""
    # of ranks; pandas' own "spearman" would import scipy.stats
    rank = float(rows["drop"].astype(float).rank().corr(rows[rate].astype(float).rank()))
    return "" if isnan(rank) else f"Spearman's ρ {rank + 0.0:.2f} ({len(rows)} points)"
