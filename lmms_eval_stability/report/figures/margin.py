"""Flips by the baseline's margin: answers that were a close call change first (Dutta et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING

from .style import LIGHT, Theme, empty, finish, label, new_figure, plain_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4


def draw_margin(bins: Mapping[str, pd.DataFrame], theme: Theme = LIGHT) -> Figure:
    """One panel per run: the share of samples that flip, by bins of the baseline's margin, least margin left.

    Bands are 95 % Wilson intervals; the other runs are drawn faintly behind, so that panels compare at a glance.

    Args:
        bins: run -> what `calibration.flip_rate_by_margin` returns (columns low, high, n, rate, rate_low, rate_high).
    """
    tables = {run: table for run, table in bins.items() if len(table)}
    if not tables:
        return empty("no log holds the log-probabilities that margins come from", theme)
    columns = min(_COLUMNS, len(tables))
    lines = ceil(len(tables) / columns)
    figure = new_figure(max(4.6, 2.5 * columns), 0.7 + 1.9 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in grid[len(tables) :]:
        axes.remove()
    for axes, (run, table) in zip(grid, tables.items(), strict=False):
        for other, faint in tables.items():
            if other != run:
                axes.plot(range(len(faint)), 100 * faint["rate"], color=theme.grid, linewidth=1, zorder=1)
        _line(axes, table, theme)
        axes.set_title(label(run, 30), loc="left", fontsize=8)
    top = 100 * max(float(table["rate_high"].max()) for table in tables.values())
    grid[0].set_ylim(0, max(1.0, 1.02 * top))
    first = next(iter(tables.values()))
    bottom = [axes for i, axes in enumerate(grid[: len(tables)]) if i + columns >= len(tables)]
    for axes in bottom:
        axes.tick_params(labelbottom=True)
        _ticks(axes, first)
    figure.supylabel("samples that flip (%)", fontsize=9)
    words = "margin of the baseline's first token (nats)"
    figure.supxlabel(f"{words}: upper end of each of {len(first)} bins of equal size", fontsize=9)
    return finish(figure, theme)


def _line(axes: Axes, table: pd.DataFrame, theme: Theme) -> None:
    plain_axes(axes, theme)
    places, colour = range(len(table)), theme.series[0]
    axes.fill_between(places, 100 * table["rate_low"], 100 * table["rate_high"], color=colour, alpha=0.22, linewidth=0)
    axes.plot(places, 100 * table["rate"], color=colour, marker="o", markersize=3.5, linewidth=1.6, zorder=3)


def _ticks(axes: Axes, table: pd.DataFrame) -> None:
    """Names of every second bin or so: all of them do not fit."""
    step = max(1, ceil(len(table) / 5))
    places = list(range(0, len(table), step))
    axes.set_xticks(places, [f"{table['high'].iloc[i]:.2g}" for i in places], fontsize=8)
