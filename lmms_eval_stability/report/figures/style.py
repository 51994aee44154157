"""What all figures share: colours for light and dark, text that is never read as markup, and saving without a date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..values import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. Its background is always transparent.

    `series` are seven that people with colour-blindness can tell apart (after Okabe and Ito), with a contrast of at
    least 3 against the background that the theme is for; `text` has at least 4.4.
    """

    name: str
    text: str
    faint: str
    grid: str
    series: tuple[str, ...]
    ramp: str


#: For white pages, and papers.
LIGHT = Theme(
    "light", "#1f2328", "#59636e", "#e3e6ea",
    ("#0072B2", "#C44E00", "#00835F", "#AD4C80", "#946200", "#3587BA", "#59636e"), "Blues",
)  # fmt: skip
#: For pages with a dark background.
DARK = Theme(
    "dark", "#e6e9ed", "#9ba5b0", "#363c45",
    ("#56B4E9", "#F0803C", "#2FC08F", "#E29BC4", "#E6B020", "#8FA8FF", "#9ba5b0"), "Blues_r",
)  # fmt: skip
#: For files that may end up on either: readable on white and on black.
NEUTRAL = Theme(
    "neutral", "#767676", "#767676", "#7676763a",
    ("#2484C6", "#D55E00", "#0C9A72", "#C4679A", "#A87800", "#5B7FD6", "#767676"), "Blues",
)  # fmt: skip

_MARKERS = "ovs^DPX<>"
_LABEL = 40


@dataclass(frozen=True)
class Mark:
    """How one run is drawn: colour and shape, so that neither alone has to tell runs apart."""

    colour: str
    marker: str


def marks(names: list[str], theme: Theme) -> dict[str, Mark]:
    """A mark for each name, in order. 63 are different."""
    series = theme.series
    return {name: Mark(series[i % len(series)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}


def label(text: str, limit: int = _LABEL) -> str:
    """Untrusted text for one line of a figure: no line breaks, no control characters, cut in its middle."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(printable(text).split()))
    if len(line) <= limit:
        return line
    head = (limit - 1) * 2 // 3
    return f"{line[:head]}…{line[-(limit - 1 - head) :]}"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, without pyplot: no global state, no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, theme: Theme) -> Figure:
    """Give everything drawn the theme's colours where it has none of its own, and take text for text."""
    from matplotlib.text import Text

    figure.patch.set_alpha(0)
    for axes in figure.axes:
        _dress(axes, theme)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        if text.get_color() in ("black", "k"):
            text.set_color(theme.text)
    return figure


def _dress(axes: Axes, theme: Theme) -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(colors=theme.faint, labelcolor=theme.text)
    for spine in axes.spines.values():
        spine.set_edgecolor(theme.faint)


def plain_axes(axes: Axes, theme: Theme) -> None:
    """Axes of a plot of points or lines: a faint grid behind, no box."""
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def empty(reason: str, theme: Theme) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(6, 1.2)
    figure.text(0.5, 0.5, reason, ha="center", va="center", fontsize=9)
    return finish(figure, theme)


def save_figure(figure: Figure, path: Path | IO[bytes], kind: str) -> None:
    """Save as "svg" or "png"; the same figure gives the same bytes.

    Args:
        figure: what to save.
        path: the file, whatever its name ends with, or a stream.
        kind: "svg" or "png".
    """
    import matplotlib

    # a fixed salt and no date; letters as outlines look the same without the font
    with matplotlib.rc_context({"svg.hashsalt": "lmms-eval-stability", "svg.fonttype": "path"}):
        figure.savefig(path, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
