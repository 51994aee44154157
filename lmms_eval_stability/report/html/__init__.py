"""The report as one HTML file: summary, figures, and a browser of the answers that changed.

collector = PageCollector()
comparison = compare_runs(base, runs, on_pairs=collector.add_pairs)
write_html(Path("report.html"), html_model(comparison, collector))
"""

from __future__ import annotations

from .collect import PageCollector
from .drawings import Drawing, FigureData, figures_of
from .images import FolderImages, ImageSource, TaskImages, image_source
from .model import PageModel, html_model
from .page import render, write_html

__all__ = [
    "Drawing",
    "FigureData",
    "FolderImages",
    "ImageSource",
    "PageCollector",
    "PageModel",
    "TaskImages",
    "figures_of",
    "html_model",
    "image_source",
    "render",
    "write_html",
]
