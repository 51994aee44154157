"""Drawn scenes: a few coloured shapes on a textured background, with everything about them known.

A `Scene` holds every number that its picture depends on, so the same scene always renders to the same pixels and a
question about it can be checked against the scene alone. Coordinates are pixels, x to the right, y downwards.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lmms_eval_stability.demo.backgrounds import paint_background, tinted
from lmms_eval_stability.demo.canvas import IMAGE_SIZE, ByteArray, FloatArray, X, Y
from lmms_eval_stability.demo.outlines import signed_distance

JPEG_QUALITY = 92

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (232, 208, 40),
    "purple": (150, 50, 185),
    "cyan": (45, 200, 210),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "checks", "blocks")

OBJECT_COUNTS: tuple[int, ...] = (1, 2, 3, 4)
OBJECT_COUNT_WEIGHTS: tuple[float, ...] = (0.20, 0.26, 0.27, 0.27)

MIN_RADIUS, MAX_RADIUS = 10.0, 16.0
MAX_ROTATION = np.pi / 12
HATCH_SHARE, HATCH_DARKNESS = 0.4, 0.65  # of a hatched shape: how much is lines, and how dark they are
GAP = 2.0  # pixels left free between the circumscribed circles of two objects

HELD_OUT_DIFFICULTY: tuple[float, float] = (0.1, 0.7)
"""Range of `Scene.difficulty` in the held-out set. Fixed before the first model was trained; not tuned afterwards."""


@dataclass(frozen=True)
class World:
    """What scenes are made of: colours by name (red, green, blue of 255), shapes and backgrounds."""

    colors: Mapping[str, tuple[int, int, int]]
    shapes: tuple[str, ...]
    backgrounds: tuple[str, ...]


TRAINED = World(COLORS, SHAPES, BACKGROUNDS)
"""What the embedded model was trained on, and `shapes_vqa` asks about."""


@dataclass(frozen=True)
class SceneObject:
    """One shape. `radius` is that of the circumscribed circle; `rgb` is the drawn colour, jittered around `color`.

    `hatch` is the distance in pixels between dark lines drawn across the shape; 0 for none.
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]
    opacity: float
    hatch: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Everything that determines a picture. `texture_seed` drives background detail, specks and pixel noise.

    `tint` colours the background (red, green, blue of 255); None leaves it grey.
    """

    objects: tuple[SceneObject, ...]
    background: str
    difficulty: float
    texture_seed: int
    tint: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Difficulty:
    """What a difficulty between 0 (clean) and 1 (hardest) means in pixels and grey levels (of 255)."""

    noise_sigma: float
    specks: int
    color_jitter: float
    min_opacity: float

    @classmethod
    def of(cls, level: float) -> Difficulty:
        return cls(
            noise_sigma=2.0 + 20.0 * level,
            specks=int(10 * level),
            color_jitter=8.0 + 14.0 * level,
            min_opacity=1.0 - 0.25 * level,
        )


def draw_scene(
    rng: np.random.Generator,
    *,
    difficulty: tuple[float, float] = HELD_OUT_DIFFICULTY,
    n_objects: int | None = None,
    world: World = TRAINED,
) -> Scene:
    """Draw a scene at random: 1-4 objects, each colour-shape pair at most once.

    Args:
        rng: the only source of randomness.
        difficulty: range from which this scene's difficulty is drawn uniformly.
        n_objects: number of objects; drawn with `OBJECT_COUNT_WEIGHTS` when None.
        world: what there is to draw.
    """
    level = float(rng.uniform(*difficulty))
    count = n_objects if n_objects is not None else int(rng.choice(OBJECT_COUNTS, p=OBJECT_COUNT_WEIGHTS))
    means = Difficulty.of(level)
    names, shapes = list(world.colors), world.shapes
    pairs = rng.choice(len(names) * len(shapes), size=count, replace=False)
    places = _place(rng, count)
    objects = []
    for pair, (x, y, radius) in zip(pairs, places, strict=True):
        color, shape = names[int(pair) // len(shapes)], shapes[int(pair) % len(shapes)]
        jitter = rng.uniform(-means.color_jitter, means.color_jitter, size=3)
        red, green, blue = (float(np.clip(c + j, 0, 255)) for c, j in zip(world.colors[color], jitter, strict=True))
        objects.append(
            SceneObject(
                shape=shape,
                color=color,
                x=x,
                y=y,
                radius=radius,
                angle=float(rng.uniform(-MAX_ROTATION, MAX_ROTATION)),
                rgb=(red, green, blue),
                opacity=float(rng.uniform(means.min_opacity, 1.0)),
            )
        )
    background = world.backgrounds[int(rng.integers(len(world.backgrounds)))]
    return Scene(tuple(objects), background, level, int(rng.integers(2**63)))


def _place(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Return (x, y, radius) of `count` objects that do not touch; radii shrink a little when they do not fit."""
    shrink = 1.0
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(40 * count):
            radius = float(rng.uniform(MIN_RADIUS, max(MIN_RADIUS + 1.0, MAX_RADIUS * shrink)))
            x, y = (float(v) for v in rng.uniform(radius + 1, IMAGE_SIZE - radius - 1, size=2))
            if all(np.hypot(x - px, y - py) >= radius + pr + GAP for px, py, pr in placed):
                placed.append((x, y, radius))
            if len(placed) == count:
                return placed
        shrink *= 0.95


def render(scene: Scene) -> ByteArray:
    """Paint a scene; return uint8 pixels of shape (IMAGE_SIZE, IMAGE_SIZE, 3)."""
    rng = np.random.default_rng(scene.texture_seed)
    means = Difficulty.of(scene.difficulty)
    canvas = tinted(paint_background(rng, scene.background), scene.tint)
    _paint_specks(rng, canvas, means.specks)
    for item in scene.objects:
        alpha = (item.opacity * coverage(item))[..., None]
        canvas = canvas * (1 - alpha) + _paint(item) * alpha
    canvas = canvas + means.noise_sigma * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def encode_jpeg(pixels: ByteArray) -> bytes:
    """Compress pixels (H, W, 3) as the shipped data set does; the pictures of real benchmarks are JPEG too."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> ByteArray:
    """Return the pixels (H, W, 3) of a JPEG file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _paint(item: SceneObject) -> FloatArray:
    """Return the colours laid on by an object: one (3,), or one per pixel (IMAGE_SIZE, IMAGE_SIZE, 3) if hatched."""
    rgb = np.asarray(item.rgb)
    if item.hatch == 0:
        return rgb
    along = (X - item.x) * np.cos(item.angle + np.pi / 4) + (Y - item.y) * np.sin(item.angle + np.pi / 4)
    line = (along % item.hatch) < HATCH_SHARE * item.hatch
    hatched: FloatArray = rgb * np.where(line, HATCH_DARKNESS, 1.0)[..., None]
    return hatched


def coverage(item: SceneObject) -> FloatArray:
    """Return how much of each pixel the object covers, in [0, 1], shape (IMAGE_SIZE, IMAGE_SIZE)."""
    covered = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    box = _box(item.x, item.y, item.radius)
    dx, dy = X[box] - item.x, Y[box] - item.y
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    distance = signed_distance(item.shape, cos * dx + sin * dy, cos * dy - sin * dx, item.radius)
    covered[box] = np.clip(0.5 - distance, 0.0, 1.0)
    return covered


def _box(x: float, y: float, radius: float) -> tuple[slice, slice]:
    """Return the rows and columns within reach of a circle: all that drawing it needs to look at."""
    top, left = (max(0, int(centre - radius) - 2) for centre in (y, x))
    return slice(top, int(y + radius) + 3), slice(left, int(x + radius) + 3)


def _paint_specks(rng: np.random.Generator, canvas: FloatArray, count: int) -> None:
    """Dot the canvas, in place, with small coloured distractors of 1-2 pixels' radius; objects cover them."""
    palette = list(COLORS.values())
    for _ in range(count):
        x, y = rng.uniform(0, IMAGE_SIZE, size=2)
        radius = rng.uniform(1.0, 2.0)
        box = _box(x, y, radius)
        dot = np.hypot(X[box] - x, Y[box] - y) <= radius
        canvas[box][dot] = palette[int(rng.integers(len(palette)))]
