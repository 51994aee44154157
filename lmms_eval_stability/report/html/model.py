"""Everything that a page says, as plain data: gathered from a comparison, its pairs and its logs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import __version__
from ...comparison import Comparison, RunComparison
from ...cost import Geometry
from ...divergence import Divergence
from ...runs import Run
from ..figure import short_names
from ..reliability import pooled_grids, pooled_lines, reliability_grids, reliability_lines
from ..sections import Grid, changes_lines
from ..values import floor_lines, footnotes, heading
from .browser import MOST_ROWS, Choice, browser_data, choose, wanted_documents
from .collect import PageCollector
from .details import LogDetails, read_details
from .drawings import FigureData, figures_of, gather
from .images import MOST_BYTES, ImageSource, Thumbnails, thumbnails


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page, as SVG for light and for dark."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class PageModel:
    """What `write_html` writes.

    Attributes:
        title: of the page.
        names: short names of the runs by their labels.
        rows: the numbers of each run and task.
        notes: per run, its heading and what to know before believing its numbers.
        figures: the pictures.
        reliability: title, tables and sentences of each run, and of all together; empty unless asked for.
        browser: the JSON object of the flip browser, see `browser.browser_data`.
        shown: sentences on which answers the browser shows. pictures: one on where its images come from.
    """

    title: str
    names: Mapping[str, str]
    rows: tuple[Divergence, ...]
    notes: tuple[tuple[str, tuple[str, ...]], ...]
    figures: tuple[PageFigure, ...]
    browser: Mapping[str, Any]
    shown: str
    pictures: str
    reliability: tuple[tuple[str, tuple[Grid, ...], tuple[str, ...]], ...] = ()
    version: str = __version__
    data: FigureData | None = field(default=None, compare=False)


def html_model(
    comparison: Comparison,
    pairs: PageCollector,
    *,
    images: ImageSource | None = None,
    most_rows: int = MOST_ROWS,
    most_image_bytes: int = MOST_BYTES,
) -> PageModel:
    """Gather what a page says. Reads the logs once more: pairs hold neither questions nor margins.

    Args:
        comparison: its numbers.
        pairs: a collector that was its `on_pairs`.
        images: where pictures come from, see `images.image_source`; none by default.
        most_rows: most answers in the browser.
        most_image_bytes: most bytes of all pictures.
    """
    choice = choose(pairs.parts, most_rows)
    documents = wanted_documents(pairs.parts, choice)
    baseline, answers = _read_logs(comparison, pairs, documents, choice)
    # what several runs change is looked at first, and gets its picture first
    urgent = sorted(documents, key=lambda key: -documents[key])
    pictures = Thumbnails() if images is None else thumbnails(images, urgent, most_image_bytes)
    names = short_names([run.label for run in comparison.runs])
    data = gather(comparison, pairs, baseline, answers, names)
    return PageModel(
        title=f"Divergence from {comparison.label}",
        names=names,
        rows=tuple(row for run in comparison.runs for row in run.shown_rows),
        notes=tuple((run.label, _notes(run, comparison)) for run in comparison.runs),
        figures=tuple(_page_figures(data)),
        browser=browser_data(pairs.parts, choice, documents, baseline, answers, pictures)
        | {"names": [names[run] for run in pairs.runs]},
        shown=_shown(choice),
        pictures=_pictures(pictures, images, len(documents)),
        reliability=tuple(_reliability(comparison)),
        data=data,
    )


def _read_logs(
    comparison: Comparison, pairs: PageCollector, documents: Mapping[tuple[str, int], int], choice: Choice
) -> tuple[dict[str, LogDetails], dict[tuple[str, str], LogDetails]]:
    runs = {run.label: run.run for run in comparison.runs}
    baseline = {
        task: _read(comparison.baseline, task, {doc for other, doc in documents if other == task})
        for task in pairs.tasks
    }
    answers = {}
    for part, chosen in zip(pairs.parts, choice.rows, strict=True):
        wanted = set(part.diverged["doc_id"].take(chosen).tolist())
        answers[part.task, part.run] = _read(runs[part.run], part.task, wanted)
    return baseline, answers


def _read(run: Run, task: str, wanted: set[int]) -> LogDetails:
    return read_details(run.sample_files[task], task, wanted, Geometry.from_facts(run.facts))


def _page_figures(data: FigureData) -> list[PageFigure]:
    from ..figures import DARK, LIGHT, save_figure

    found = []
    for name, drawing in figures_of(data).items():
        svgs = []
        for theme in (LIGHT, DARK):
            stream = io.BytesIO()
            save_figure(drawing.draw(theme), stream, "svg")
            svgs.append(stream.getvalue())
        found.append(PageFigure(name, drawing.title, drawing.caption, *svgs))
    return found


def _notes(run: RunComparison, comparison: Comparison) -> tuple[str, ...]:
    lines = [heading(run, comparison.label, comparison.correct_at)]
    return (*lines, *floor_lines(run, comparison), *footnotes(run), *changes_lines(run))


def _reliability(comparison: Comparison) -> list[tuple[str, tuple[Grid, ...], tuple[str, ...]]]:
    found = [
        (run.label, tuple(reliability_grids(run, every=True)), tuple(reliability_lines(run)))
        for run in comparison.runs
        if run.reliability
    ]
    if comparison.flip_regressions:
        found.append(("All runs together", tuple(pooled_grids(comparison)), tuple(pooled_lines(comparison))))
    return found


def _shown(choice: Choice) -> str:
    if choice.shown_flips + choice.shown_changed == choice.flips + choice.changed:
        return (
            f"All {choice.flips:,} answers whose verdict changed, and all {choice.changed:,} that changed without "
            "changing the verdict."
        )
    flips = "All" if choice.shown_flips == choice.flips else f"{choice.shown_flips:,} of"
    return (
        f"{flips} {choice.flips:,} answers whose verdict changed"
        + ("" if choice.shown_flips == choice.flips else " (those of documents drawn at random)")
        + f", and {choice.shown_changed:,} of {choice.changed:,} that changed without changing the verdict: "
        "the page would become too large. pairs.csv has all."
    )


def _pictures(found: Thumbnails, source: ImageSource | None, documents: int) -> str:
    if source is None:
        return "No images were given (--images)."
    parts = [f"Images of {len(found.place):,} of {documents:,} samples from the {source.name}"]
    if found.missing:
        parts.append(f"{found.missing:,} have none there")
    if found.broken:
        parts.append(f"{found.broken:,} cannot be read")
    if found.left_out:
        parts.append(f"{found.left_out:,} are left out for the page's size")
    return "; ".join(parts) + "."
