"""UpSet plot: how many samples diverge under exactly which methods (Lex et al., IEEE TVCG 20 (2014), 1983-1992)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .style import LIGHT, Theme, empty, finish, label, new_figure, plain_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def intersections(membership: pd.DataFrame) -> pd.DataFrame:
    """The exclusive intersections: every set of methods under which, and no others, some sample diverges.

    Args:
        membership: one row per sample, one bool column per method; rows without any True do not count.

    Returns:
        One row per intersection, largest first: a bool column per method, and `size`. Ties: fewer methods first, then
        in the order of the columns.
    """
    methods = list(membership.columns)
    any_method = membership[membership.any(axis=1)]
    counts = any_method.groupby(methods, sort=False).size().rename("size").reset_index()
    degree = counts[methods].sum(axis=1)
    order = counts.assign(_degree=degree).sort_values(
        ["size", "_degree", *methods], ascending=[False, True, *[False] * len(methods)], kind="stable"
    )
    return order.drop(columns="_degree").reset_index(drop=True)


def draw_upset(memberships: pd.DataFrame | Mapping[str, pd.DataFrame], most: int = 24, theme: Theme = LIGHT) -> Figure:
    """Bars of the `most` largest intersections, the methods that make each of them, and each method's own size.

    What is not shown is counted above the bars. Several tasks are drawn one below the other, each by itself.

    Args:
        memberships: as for `intersections`, of one task or of each by name.
        most: number of bars of a task.
    """
    named = dict(memberships) if isinstance(memberships, Mapping) else {"": memberships}
    drawn = {task: table for task, table in named.items() if not table.empty and table.to_numpy(dtype=bool).any()}
    if not drawn:
        return empty("no sample diverges under any method", theme)
    bars = max(min(most, len(intersections(table))) for table in drawn.values())
    heights = [height for table in drawn.values() for height in (2.2, 0.27 * len(table.columns))]
    figure = new_figure(max(6.4, 3.4 + 0.3 * bars), sum(heights) + 0.4 * len(drawn))
    # one grid for all tasks: nested ones are laid out a hair differently from time to time
    grid = figure.add_gridspec(2 * len(drawn), 2, width_ratios=[1, max(2.0, 0.16 * bars)], height_ratios=heights)
    for i, (task, table) in enumerate(drawn.items()):
        upper, lower, left = grid[2 * i, 1], grid[2 * i + 1, 1], grid[2 * i + 1, 0]
        axes = tuple(figure.add_subplot(place) for place in (upper, lower, left))
        _upset(axes, task, table, most, bars, theme)
    return finish(figure, theme)


def _upset(panels: tuple[Axes, ...], task: str, membership: pd.DataFrame, most: int, places: int, theme: Theme) -> None:
    """One task in its three panels, with room for `places` bars as in the others."""
    table = intersections(membership)
    shown, rest = table.head(most), table.iloc[most:]
    methods = list(membership.columns)
    sizes = [int(membership[name].sum()) for name in methods]
    bars, dots, totals = panels
    bars.set_title(label(task, 40), loc="left", fontsize=9)
    _bars(bars, shown["size"].tolist(), theme)
    if len(rest):
        note = f"not shown: {len(rest)} more combinations with {int(rest['size'].sum())} samples"
        bars.set_title(note, loc="right", fontsize=8)
    _dots(dots, shown[methods].to_numpy(dtype=bool).tolist(), theme)
    _totals(totals, [label(name, 28) for name in methods], sizes, theme)
    for axes in (bars, dots):
        axes.set_xlim(-0.6, places - 0.4)


def _bars(axes: Axes, sizes: list[int], theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    plain_axes(axes, theme)
    axes.grid(visible=False, axis="x")
    container = axes.bar(range(len(sizes)), sizes, width=0.62, color=theme.series[0])
    axes.bar_label(container, fontsize=7, padding=1)
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.set_ylim(0, 1.14 * max(sizes))
    axes.set_xticks([])
    axes.set_ylabel("samples", fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _dots(axes: Axes, rows: list[list[bool]], theme: Theme) -> None:
    for x, member in enumerate(rows):
        inside = [y for y, is_member in enumerate(member) if is_member]
        axes.plot([x] * len(member), range(len(member)), "o", color=theme.grid, markersize=5, zorder=1)
        axes.plot([x] * len(inside), inside, "o-", color=theme.text, markersize=5.5, linewidth=1.4, zorder=2)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylim(len(rows[0]) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _totals(axes: Axes, names: list[str], sizes: list[int], theme: Theme) -> None:
    axes.barh(range(len(names)), sizes, height=0.62, color=theme.faint)
    for y, size in enumerate(sizes):
        axes.annotate(str(size), (size, y), (-3, 0), textcoords="offset points", ha="right", va="center", fontsize=7)
    axes.set_xlim(1.3 * max(sizes), 0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.set_xlabel("all samples of a method", fontsize=8)
    axes.spines[:].set_visible(False)
