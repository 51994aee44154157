"""What is bought with divergence: a rate of divergence against measured speed or the visual tokens that are kept."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from .style import LIGHT, Theme, empty, finish, label, marks, new_figure, plain_axes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

#: What the horizontal axis can be: words, and whether more of it is better.
AXES = {
    "speedup": ("measured speed-up (× baseline)", True),
    "tokens": ("visual tokens kept (%)", False),
    "flops": ("theoretical prefill cost (% of unpruned)", False),
}
#: Names beside each other in the legend.
_NAMES = 3
FACTOR = {"speedup": 1.0, "tokens": 100.0, "flops": 100.0}


def pareto_front(cost: NDArray[np.float64], divergence: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool: whether no other point has less or equal of both, and less of one. nan is never on the front."""
    import numpy as np

    known = np.isfinite(cost) & np.isfinite(divergence)
    front: NDArray[np.bool_] = known.copy()
    for i in known.nonzero()[0]:
        no_worse = known & (cost <= cost[i]) & (divergence <= divergence[i])
        front[i] = not (no_worse & ((cost < cost[i]) | (divergence < divergence[i]))).any()
    return front


def draw_pareto(points: pd.DataFrame, axis: str = "tokens", rate: str = "ndr", theme: Theme = LIGHT) -> Figure:
    """One point per run; filled where no other run is better on both axes, with the front as a line between them.

    Args:
        points: columns run, the axis, the rate, and its 95 % interval as `RATE_low`, `RATE_high` (fractions; nan for
            none). Runs without a value on one of both axes are left out and counted.
        axis: one of `AXES`.
        rate: "dr" or "ndr".
    """
    if axis not in AXES:
        raise ValueError(f"axis {axis!r}: expected {', '.join(AXES)}")
    words, more_is_better = AXES[axis]
    rows = points[points[[axis, rate]].astype(float).notna().all(axis=1)].reset_index(drop=True)
    if rows.empty:
        return empty(f"no log says: {words}", theme)
    x = rows[axis].to_numpy(dtype=float) * FACTOR[axis]
    y = 100 * rows[rate].to_numpy(dtype=float)
    front = pareto_front(-x if more_is_better else x, y)
    figure = new_figure(8, 4.2 + 0.22 * ceil((1 + len(rows)) / _NAMES))
    axes = figure.subplots()
    plain_axes(axes, theme)
    order = x[front].argsort()
    axes.plot(x[front][order], y[front][order], color=theme.faint, linewidth=1.2, linestyle="--", label="Pareto front")
    _points(axes, rows, x, y, front, rate, theme)
    axes.set_xlabel(words + ("; right is faster" if more_is_better else "; left is cheaper"))
    axes.set_ylabel({"dr": "DR: answer differs (%)", "ndr": "NDR: right before, wrong after (%)"}.get(rate, rate))
    axes.set_ylim(bottom=0)
    if len(rows) < len(points):
        note = f"not drawn: {len(points) - len(rows)} runs whose logs do not say"
        axes.annotate(note, (0.01, 0.99), xycoords="axes fraction", va="top", fontsize=8)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=_NAMES)
    return finish(figure, theme)


def _points(
    axes: Axes, rows: pd.DataFrame, x: NDArray[np.float64], y: NDArray[np.float64], front: NDArray[np.bool_], rate: str,
    theme: Theme,
) -> None:  # fmt: skip
    look = marks(rows["run"].tolist(), theme)
    for i, row in enumerate(rows.to_dict("records")):
        mark = look[row["run"]]
        low, high = (100 * float(row.get(f"{rate}_{end}", float("nan"))) for end in ("low", "high"))
        if low == low and high == high:
            axes.plot([x[i], x[i]], [low, high], color=f"{mark.colour}60", linewidth=1.2, zorder=2)
        axes.plot(
            [x[i]], [y[i]], mark.marker, color=mark.colour, markerfacecolor=mark.colour if front[i] else "none",
            markersize=8, zorder=3, label=label(str(row["run"])),
        )  # fmt: skip
