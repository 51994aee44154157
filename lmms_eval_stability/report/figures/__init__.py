"""Figures of a comparison, one module each: pure functions from data frames to matplotlib figures."""

from __future__ import annotations

from .consistency import draw_consistency
from .frontier import draw_frontier
from .margin import draw_margin
from .overlap import draw_overlap, overlap_matrix
from .pareto import draw_pareto, pareto_front
from .reliability import MOST_PANELS, draw_reliability, draw_risk_coverage
from .score_drop import draw_score_drop
from .style import DARK, LIGHT, NEUTRAL, Theme, save_figure
from .upset import draw_upset, intersections

__all__ = [
    "DARK",
    "LIGHT",
    "MOST_PANELS",
    "NEUTRAL",
    "Theme",
    "draw_consistency",
    "draw_frontier",
    "draw_margin",
    "draw_overlap",
    "draw_pareto",
    "draw_reliability",
    "draw_risk_coverage",
    "draw_score_drop",
    "draw_upset",
    "intersections",
    "overlap_matrix",
    "pareto_front",
    "save_figure",
]
