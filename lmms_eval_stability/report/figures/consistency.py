"""Change of the spectrum of the visual tokens against unchanged answers: one labelled point per run."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING

from ...consistency import RunConsistency, TaskConsistency
from .style import LIGHT, Mark, Theme, empty, finish, label, marks, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Where a label may stand beside its point, in points: the first place that is free is taken.
_PLACES = ((5, -2), (5, 6), (5, -10), (-5, -2), (-5, 6), (-5, -10), (5, 13), (5, -17), (-5, 13), (-5, -17))
_FONT = 6.5
_COLUMNS = 5


def draw_consistency(found: TaskConsistency, methods: Mapping[str, str], theme: Theme = LIGHT) -> Figure:
    """Mean |ΔIPR| of each run against 1 - DR with its 95 % interval.

    Args:
        found: of one task. methods: run -> method; runs of one method share a colour and a shape.
    """
    if not found.runs:
        return empty("no log says how the spectrum of the visual tokens changed", theme)
    figure = new_figure(8, 5.4)
    axes = figure.subplots()
    plain_axes(axes, theme)
    look = marks(list(dict.fromkeys(methods[run.run] for run in found.runs)), theme)
    for run in found.runs:
        mark, same = look[methods[run.run]], run.consistency
        ends = [100 * same.low, 100 * same.high]
        axes.plot([run.change] * 2, ends, color=f"{mark.colour}60", linewidth=1, zorder=2)
        axes.plot([run.change], [100 * same.value], mark.marker, color=mark.colour, markersize=6, zorder=3)
    for method, mark in look.items():
        axes.plot([], [], mark.marker, color=mark.colour, linestyle="none", label=label(method))
    axes.margins(x=0.12)
    figure.legend(frameon=False, fontsize=7, loc="outside lower center", ncols=_COLUMNS)
    axes.set_xlabel("mean |ΔIPR| of the visual tokens; right: their spectrum changed more")
    axes.set_ylabel("1 − DR: answers that stayed (%)")
    rho = found.across
    if not isnan(rho.rho):
        axes.set_title(f"Spearman ρ {rho.rho:+.2f}, p {rho.p:.2g}, {rho.n} runs", loc="left", fontsize=9)
    figure.draw_without_rendering()  # places of points are known only then
    _label(axes, found.runs, methods, look)
    return finish(figure, theme)


def _label(axes: Axes, runs: tuple[RunConsistency, ...], methods: Mapping[str, str], look: Mapping[str, Mark]) -> None:
    """Write each run beside its point, where no other label or point is."""
    scale = 72 / axes.figure.dpi  # pixels to points
    centres = [axes.transData.transform((run.change, 100 * run.consistency.value)) * scale for run in runs]
    taken = [(x - 3, x + 3, y - 3, y + 3) for x, y in centres]
    for run, (x, y) in zip(runs, centres, strict=True):
        text = label(_setting(run.run), 24)
        width = 0.62 * _FONT * len(text)
        boxes = [
            (x + dx if dx > 0 else x + dx - width, x + dx + width if dx > 0 else x + dx, y + dy, y + dy + _FONT)
            for dx, dy in _PLACES
        ]
        place = next((i for i, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)), 0)
        taken.append(boxes[place])
        axes.annotate(
            text, (run.change, 100 * run.consistency.value), _PLACES[place], textcoords="offset points",
            fontsize=_FONT, color=look[methods[run.run]].colour, ha="left" if _PLACES[place][0] > 0 else "right",
        )  # fmt: skip


def _setting(run: str) -> str:
    """What tells a run from others of its method, which the legend names: the arguments in its label, if it has any."""
    inner = run.partition(" (")[2].removesuffix(")")
    said = [part for part in inner.split(", ") if part and not part.startswith(("pretrained=", "quantization="))]
    return ", ".join(said) or run


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
