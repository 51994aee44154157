"""Backgrounds of scenes: greyish patterns of two shades, pale enough that the objects' colours stand out.

Plain, gradient, stripes, checks and blocks are what the embedded model was trained on; it never saw the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmms_eval_stability.demo.canvas import IMAGE_SIZE, FloatArray, X, Y

TINT = 0.35
"""Share of the tint's colour in a tinted background: to be seen at a glance, and paler than any object."""


@dataclass(frozen=True)
class _Brush:
    """What a pattern is drawn with: its own randomness, pixels along its direction, and its period in pixels."""

    rng: np.random.Generator
    along: FloatArray
    period: float


def paint_background(rng: np.random.Generator, kind: str) -> FloatArray:
    """Return a background, (IMAGE_SIZE, IMAGE_SIZE, 3), red, green and blue of 255."""
    if kind not in PATTERNS:
        raise ValueError(f"unknown background {kind!r}; known: {', '.join(PATTERNS)}")
    first = rng.uniform(70, 190) + rng.uniform(-12, 12, size=3)
    second = first + rng.choice([-1.0, 1.0]) * rng.uniform(15, 35)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(10, 28)
    mix = PATTERNS[kind](_Brush(rng, X * np.cos(angle) + Y * np.sin(angle), period))
    painted: FloatArray = first + (second - first) * mix[..., None]
    return painted


def tinted(background: FloatArray, tint: tuple[int, int, int] | None) -> FloatArray:
    """Mix `TINT` of a colour into a background (H, W, 3); None leaves it as it is."""
    if tint is None:
        return background
    mixed: FloatArray = background * (1 - TINT) + TINT * np.asarray(tint, dtype=np.float64)
    return mixed


def _gradient(brush: _Brush) -> FloatArray:
    graded: FloatArray = (brush.along - brush.along.min()) / (brush.along.max() - brush.along.min())
    return graded


def _stripes(brush: _Brush) -> FloatArray:
    return ((brush.along // (brush.period / 2)) % 2).astype(np.float64)


def _checks(brush: _Brush) -> FloatArray:
    return ((X // (brush.period / 2) + Y // (brush.period / 2)) % 2).astype(np.float64)


def _blocks(brush: _Brush) -> FloatArray:
    shades: FloatArray = brush.rng.uniform(0, 1, size=(6, 6)).repeat(IMAGE_SIZE // 6, 0).repeat(IMAGE_SIZE // 6, 1)
    return shades


def _dots(brush: _Brush) -> FloatArray:
    reach = np.hypot(X % brush.period - brush.period / 2, Y % brush.period - brush.period / 2)
    return (reach < 0.3 * brush.period).astype(np.float64)


def _waves(brush: _Brush) -> FloatArray:
    bent: FloatArray = 0.5 + 0.5 * np.sin(2 * np.pi * (brush.along + 4 * np.sin(X / 6)) / brush.period)
    return bent


def _rings(brush: _Brush) -> FloatArray:
    x, y = brush.rng.uniform(0, IMAGE_SIZE, size=2)
    distance: FloatArray = np.hypot(X - x, Y - y)
    return ((distance // (brush.period / 2)) % 2).astype(np.float64)


PATTERNS: dict[str, Callable[[_Brush], FloatArray]] = {
    "plain": lambda _: np.zeros_like(X),
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "blocks": _blocks,
    "dots": _dots,
    "waves": _waves,
    "rings": _rings,
}
