"""Methods over a range of budgets: DR and NDR against what they save, with the Pareto frontier."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from .pareto import AXES, FACTOR, pareto_front
from .style import LIGHT, Mark, Theme, empty, finish, label, marks, new_figure, plain_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RATES = {"dr": "DR: answer differs (%)", "ndr": "NDR: right before, wrong after (%)"}
_COLUMNS = 5


def draw_frontier(points: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """One row of panels per rate, one panel per axis of cost that any log says; runs of one method are joined.

    Args:
        points: as for `draw_pareto`, and `method`, which settings of one method share. A run that lacks a cost is left
            out of the panels of that cost.
    """
    costs = [axis for axis in AXES if points[axis].astype(float).notna().any()]
    if not costs:
        return empty("no log says what a run costs", theme)
    look = marks(list(dict.fromkeys(points["method"])), theme)
    figure = new_figure(max(6.0, 3.6 * len(costs)), 6.2 + 0.2 * ceil((1 + len(look)) / _COLUMNS))
    grid = figure.subplots(len(_RATES), len(costs), sharex="col", sharey="row", squeeze=False)
    for line, (rate, words) in zip(grid, _RATES.items(), strict=True):
        line[0].set_ylabel(words)
        for axes, axis in zip(line, costs, strict=True):
            plain_axes(axes, theme)
            _panel(axes, points, axis, rate, look, theme)
            axes.set_ylim(bottom=-1)
    for axes, axis in zip(grid[-1], costs, strict=True):
        axes.set_xlabel(AXES[axis][0] + ("; right is faster" if AXES[axis][1] else "; left is cheaper"), fontsize=8)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=_COLUMNS)
    return finish(figure, theme)


def _panel(axes: Axes, points: pd.DataFrame, axis: str, rate: str, look: dict[str, Mark], theme: Theme) -> None:
    rows = points[points[[axis, rate]].astype(float).notna().all(axis=1)]
    x, y = rows[axis].to_numpy(dtype=float) * FACTOR[axis], 100 * rows[rate].to_numpy(dtype=float)
    front = pareto_front(-x if AXES[axis][1] else x, y)
    order = x[front].argsort()
    axes.plot(
        x[front][order], y[front][order], color=theme.text, linewidth=1.4, linestyle="--", label="Pareto frontier"
    )
    methods = rows["method"].to_numpy()
    for method, mark in look.items():
        own = methods == method
        order = x[own].argsort()
        axes.plot(x[own][order], y[own][order], color=f"{mark.colour}70", linewidth=1, zorder=2)
        for filled in (True, False):
            shown = own & (front == filled)
            axes.plot(
                x[shown], y[shown], mark.marker, color=mark.colour, markerfacecolor=mark.colour if filled else "none",
                markersize=6, linestyle="none", zorder=3,
            )  # fmt: skip
        axes.plot([], [], mark.marker, color=mark.colour, linestyle="none", label=label(method))
