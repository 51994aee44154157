"""Confidence against accuracy, and risk against coverage, of baseline and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from ...reliability import Bin, ConfidenceComparison
from .style import LIGHT, Theme, empty, finish, label, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: More panels than this are no figure any more.
MOST_PANELS = 24
_COLUMNS = 4


def draw_reliability(found: Mapping[str, ConfidenceComparison], theme: Theme = LIGHT) -> Figure:
    """Reliability diagrams: accuracy against mean confidence in bins of equal mass; dotted, where both are equal.

    One panel for each run, the baseline's diagram in it, too, over the same samples. Below the dotted line a model is
    surer than right. Points are as large as their bins hold samples.

    Args:
        found: title of the panel -> confidences, of at most `MOST_PANELS` runs and tasks.
    """
    if not found:
        return empty("no log holds log-probabilities", theme)
    figure, panels = _panels(len(found), theme)
    for axes, (title, one) in zip(panels, found.items(), strict=True):
        axes.plot([0, 100], [0, 100], color=theme.faint, linestyle=":", linewidth=1)
        _diagram(axes, one.diagram_baseline, theme.series[-1], "s", "baseline", one.n)
        _diagram(axes, one.diagram_run, theme.series[0], "o", "run", one.n)
        axes.set_title(label(title, 34), loc="left", fontsize=8)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
    _legend(panels[0], theme)
    figure.supylabel("right answers (%)", fontsize=9)
    figure.supxlabel("mean confidence of the bin (%)", fontsize=9)
    return finish(figure, theme)


def _diagram(axes: Axes, bins: Sequence[Bin], colour: str, marker: str, name: str, n: int) -> None:
    x, y = [100 * one.confidence for one in bins], [100 * one.accuracy for one in bins]
    axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.8)
    sizes = [8 + 240 * one.n / n for one in bins]
    axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.8, linewidth=0, zorder=3, label=name)


def draw_risk_coverage(found: Mapping[str, ConfidenceComparison], theme: Theme = LIGHT) -> Figure:
    """Share of errors among the most confident samples, against how many of all these are; one panel per run.

    Args:
        found: as for `draw_reliability`.
    """
    if not found:
        return empty("no log holds log-probabilities", theme)
    figure, panels = _panels(len(found), theme)
    for axes, (title, one) in zip(panels, found.items(), strict=True):
        curves = (
            (one.curve_baseline, theme.series[-1], "--", "baseline"),
            (one.curve_run, theme.series[0], "-", "run"),
        )
        for curve, colour, line, name in curves:
            x, y = [100 * value for value in curve.coverage], [100 * value for value in curve.risk]
            axes.plot(x, y, color=colour, linestyle=line, linewidth=1.6, label=name)
        axes.set_title(label(title, 34), loc="left", fontsize=8)
        axes.set_xlim(0, 100)
    top = max(max(one.curve_baseline.risk + one.curve_run.risk) for one in found.values())
    panels[0].set_ylim(0, max(1.0, 105 * top))
    _legend(panels[0], theme)
    figure.supylabel("errors among them (%)", fontsize=9)
    figure.supxlabel("coverage: most confident share of the samples (%)", fontsize=9)
    return finish(figure, theme)


def _panels(count: int, theme: Theme) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    lines = ceil(count / columns)
    figure = new_figure(max(4.6, 2.5 * columns), 0.8 + 2.2 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.remove()
    panels = list(grid[:count])
    for place, axes in enumerate(panels):
        plain_axes(axes, theme)
        if place + columns >= count:
            axes.tick_params(labelbottom=True)
    return figure, panels


def _legend(axes: Axes, theme: Theme) -> None:
    legend = axes.legend(fontsize=7, frameon=False, loc="best", markerscale=0.6)
    for text in legend.get_texts():
        text.set_color(theme.text)
