"""Figure 3 of the paper: whether methods break the same samples, as a matrix of methods by methods."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isnan
from textwrap import fill
from typing import TYPE_CHECKING

from .style import LIGHT, Theme, empty, finish, label, new_figure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

#: Inches of a figure with several matrices side by side, at most.
_WIDTH = 14
#: What a cell can show: column of `overlap.overlap_table`, words, whether it is a share.
MEASURES = {
    "containment": ("share of the row's diverged samples that diverge in the column, too (%)", True),
    "jaccard": ("diverged in both / diverged in either (%)", True),
    "lift": ("overlap / overlap expected by chance", False),
}


def overlap_matrix(table: pd.DataFrame, measure: str = "containment") -> pd.DataFrame:
    """One row and column per method; nan on the diagonal, and for what `overlap.overlap_table` has no number."""
    names = list(dict.fromkeys([*table["method"], *table["other"]]))
    return table.pivot(index="method", columns="other", values=measure).reindex(index=names, columns=names)


def draw_overlap(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame], measure: str = "containment", theme: Theme = LIGHT
) -> Figure:
    """The matrix, one per task; each cell has the number and, below shares, the lift over chance (×1 is chance).

    The diagonal has the size of each method's set. The paper does not state its formula: `measure` chooses. Tasks are
    not taken together: methods that both break one task more than another would seem to break the same samples.

    Args:
        tables: what `overlap.overlap_table` returns, of one task or of each by name.
        measure: "containment" (not symmetric), "jaccard" or "lift".
    """
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r}: expected {', '.join(MEASURES)}")
    words, is_share = MEASURES[measure]
    named = dict(tables) if isinstance(tables, Mapping) else {"": tables}
    drawn = {task: table for task, table in named.items() if len(table)}
    if not drawn:
        return empty("overlap needs at least two methods", theme)
    side = max(3.6, 0.5 * max(table["method"].nunique() for table in drawn.values()) + 1.6)
    columns = min(len(drawn), max(1, int(_WIDTH // (side + 0.8))))
    lines = ceil(len(drawn) / columns)
    width = (side + 0.8) * columns
    figure = new_figure(width, side * lines + 0.5)
    title = words + ("\nbelow: times as many as by chance" if is_share else "")
    figure.suptitle("\n".join(fill(line, int(12 * width)) for line in title.split("\n")), fontsize=9)
    # one scale for all, so that panels compare at a glance
    top = 100.0 if is_share else max(2.0, *(_largest(table[measure].to_numpy(dtype=float)) for table in drawn.values()))
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(drawn) :]:
        axes.remove()
    for axes, (task, table) in zip(panels, drawn.items(), strict=False):
        _matrix(axes, task, table, measure, top, theme)
    return finish(figure, theme)


def _matrix(axes: Axes, task: str, table: pd.DataFrame, measure: str, top: float, theme: Theme) -> None:
    is_share = MEASURES[measure][1]
    matrix, lifts = overlap_matrix(table, measure), overlap_matrix(table, "lift")
    names = list(matrix.index)
    sizes = table.drop_duplicates("method").set_index("method")["n_method"].to_dict()
    values: NDArray[np.float64] = matrix.to_numpy(dtype=float) * (100 if is_share else 1)
    image = axes.imshow(values, cmap=theme.ramp, vmin=0, vmax=top)
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            if i == j:
                axes.text(j, i, f"n={sizes.get(row, 0)}", ha="center", va="center", fontsize=7)
                continue
            text = _cell(values[i, j], float(lifts.loc[row, column]), is_share)
            shade = _ink(tuple(image.to_rgba(values[i, j]))) if not isnan(values[i, j]) else theme.text
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=shade)
    ticks = [label(name, 28) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), ticks, fontsize=8)
    axes.set_xticks([x - 0.5 for x in range(1, len(names))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(names))], minor=True)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(label(task, 40), loc="left", fontsize=9)


def _cell(value: float, lift: float, is_share: bool) -> str:
    if isnan(value):
        return "–"
    if not is_share:
        return f"×{value:.1f}"
    return f"{value:.0f}" + ("" if isnan(lift) else f"\n×{lift:.1f}")


def _largest(values: NDArray[np.float64]) -> float:
    import numpy as np

    return float(np.nanmax(values)) if np.isfinite(values).any() else 0.0


def _ink(colour: tuple[float, ...]) -> str:
    """Black or white, whichever has the greater contrast (WCAG's relative luminance) on a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"
