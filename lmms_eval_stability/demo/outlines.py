"""Shapes as signed distances, so that they can be painted with smooth edges.

Circle, square, triangle, star and cross are what the embedded model was trained on; it never saw the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmms_eval_stability.demo.canvas import FloatArray

Outline = Callable[[FloatArray, FloatArray, float], FloatArray]


def signed_distance(shape: str, x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    """Return the approximate distance in pixels to the outline (negative inside) of a shape centred on the origin."""
    if shape not in OUTLINES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(OUTLINES)}")
    return OUTLINES[shape](x, y, radius)


def _circle(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    distance: FloatArray = np.hypot(x, y) - 0.92 * radius
    return distance


def _square(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    distance: FloatArray = np.maximum(np.abs(x), np.abs(y)) - 0.74 * radius
    return distance


def _cross(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    bar = 0.3 * radius
    across = np.maximum(np.abs(x) - radius, np.abs(y) - bar)
    distance: FloatArray = np.minimum(across, np.maximum(np.abs(x) - bar, np.abs(y) - radius))
    return distance


def _triangle(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    sides = [x * np.cos(a) + y * np.sin(a) for a in (np.pi / 2, np.pi * 7 / 6, np.pi * 11 / 6)]
    outside: FloatArray = np.maximum.reduce(sides) - 0.5 * radius
    return outside


def _star(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    # Fold the plane onto one tenth of the star: from the tip at angle 0 to the notch at angle 36 degrees.
    turn = np.arctan2(x, -y)
    folded = np.abs((turn + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    reach = np.hypot(x, y)
    notch = 0.42 * radius * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - np.array([radius, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    distance: FloatArray = (reach * np.cos(folded) - radius) * normal[0] + reach * np.sin(folded) * normal[1]
    return distance


def _pentagon(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    sides = [x * np.sin(a) + y * np.cos(a) for a in np.arange(5) * 2 * np.pi / 5]
    outside: FloatArray = np.maximum.reduce(sides) - radius * np.cos(np.pi / 5)
    return outside


def _ring(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    distance: FloatArray = np.abs(np.hypot(x, y) - 0.7 * radius) - 0.22 * radius
    return distance


def _moon(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    bitten = np.hypot(x - 0.5 * radius, y) - 0.72 * radius
    distance: FloatArray = np.maximum(np.hypot(x, y) - 0.95 * radius, -bitten)
    return distance


def _heart(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    # A square on its tip and two discs on its upper sides.
    side = 0.55 * radius
    tip = (np.abs(x) + np.abs(y - 0.1 * radius) - np.sqrt(2) * side) / np.sqrt(2)
    lobe = np.hypot(np.abs(x) - side / np.sqrt(2), y - 0.1 * radius + side / np.sqrt(2)) - side
    distance: FloatArray = np.minimum(tip, lobe)
    return distance


def _arrow(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    shaft = np.maximum(np.abs(x) - 0.22 * radius, np.abs(y - 0.35 * radius) - 0.6 * radius)
    sides = [-y - 0.95 * radius, y - 0.05 * radius, (np.abs(x) - 0.85 * radius * (y + 0.95 * radius) / radius)]
    distance: FloatArray = np.minimum(shaft, np.maximum.reduce(sides))
    return distance


OUTLINES: dict[str, Outline] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "pentagon": _pentagon,
    "ring": _ring,
    "moon": _moon,
    "heart": _heart,
    "arrow": _arrow,
}
