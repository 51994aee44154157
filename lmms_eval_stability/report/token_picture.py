"""The picture of kept visual tokens: a panel per method, kept patches clear, dropped ones dark, merged ones hatched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .values import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

#: Blue of Okabe and Ito's colours that people with colour-blindness can tell apart; as the divergence figure's.
_MERGED, _HATCH = (86, 180, 233), (44, 92, 122)
_DIFFERS = (213, 94, 0)
_INK, _FAINT, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)
#: How much of a patch's light is left when the first stage dropped it, and the last one; one stage is the first.
_DARKEST, _LIGHTEST = 0.24, 0.52
_PANEL = 384  # pixels that the longer side of a picture is scaled to, about
_WIDE = 640  # the same for wide ones, which hold tiles
_WIDEST = 1700  # of a row of panels
_MARGIN, _GAP = 24, 28
_ANSWER_LINES = 5


@dataclass(frozen=True)
class Panel:
    """What is drawn of one method.

    Attributes:
        title: The method and its numbers of tokens.
        note: A second, smaller line.
        answer: What the model says.
        differs: Whether that is something else than the baseline says.
        picture: (H, W, 3) uint8, the image as the model sees it.
        boxes: (N, 4) left, top, right, bottom of each visual token.
        dropped_at: (N,) the stage, from 1, that dropped it; 0 if it is left.
        merged: (N,) bool, whether it is part of a merged token.
        stages: Stages of the method.
    """

    title: str
    note: str
    answer: str
    differs: bool
    picture: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    dropped_at: NDArray[np.int64]
    merged: NDArray[np.bool_]
    stages: int


def draw_tokens(panels: Sequence[Panel], heading: str) -> Image:
    """Draw panels side by side, in as many rows as it takes.

    Args:
        panels: At least one; the first is the baseline.
        heading: The line above them.

    Returns:
        An RGB image whose ``info`` holds all its text, for ``save(..., pnginfo=...)`` and for readers that cannot see.
    """
    from PIL import Image, ImageDraw

    drawn = [_Drawn.of(panel) for panel in panels]
    head = max(one.head for one in drawn)  # so that the pictures of a row begin at one height
    blocks = [one.draw(head) for one in drawn]
    width = max(block.width for block in blocks)
    columns = max(1, min(len(blocks), (_WIDEST + _GAP) // (width + _GAP)))
    rows = -(-len(blocks) // columns)
    columns = -(-len(blocks) // rows)
    heights = [max(block.height for block in blocks[row * columns : (row + 1) * columns]) for row in range(rows)]
    total = 2 * _MARGIN + columns * (width + _GAP) - _GAP
    lines = list(_wrapped(heading, 19, total - 2 * _MARGIN))
    legend = _legend(panels)
    top = _MARGIN + 28 * len(lines) + 12
    sheet = Image.new("RGB", (total, top + sum(heights) + _GAP * (rows - 1) + 20 + 26 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 28 * number), line, _INK, _font(19))
    for number, block in enumerate(blocks):
        row, column = divmod(number, columns)
        sheet.paste(block, (_MARGIN + column * (width + _GAP), top + sum(heights[:row]) + _GAP * row))
    left = _MARGIN
    for swatch, label in legend:
        sheet.paste(swatch, (left, sheet.height - _MARGIN - 20))
        draw.text((left + 28, sheet.height - _MARGIN - 19), label, _FAINT, _font(15))
        left += 28 + int(_font(15).getlength(label)) + 24
    sheet.info = {"Title": heading, "Description": "\n".join(f"{p.title}: {p.answer}" for p in panels)}
    return sheet


def save_tokens(panels: Sequence[Panel], heading: str, path: Path) -> None:
    """Draw panels into a PNG file; its text is kept in the file's ``Title`` and ``Description``.

    Raises:
        OSError: the file cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    sheet, info = draw_tokens(panels, heading), PngInfo()
    for name, text in sheet.info.items():
        info.add_itxt(str(name), printable(text))
    sheet.save(path, format="PNG", optimize=True, pnginfo=info)


@dataclass(frozen=True)
class _Drawn:
    """A panel whose picture is shaded and whose lines are broken."""

    picture: Image
    title: list[str]
    note: list[str]
    answer: list[str]
    differs: bool

    @classmethod
    def of(cls, panel: Panel) -> _Drawn:
        """Prepare a panel."""
        picture = shade(panel)
        answer = list(_wrapped(panel.answer or "(empty)", 18, picture.width - 26))
        if len(answer) > _ANSWER_LINES:
            answer = [*answer[: _ANSWER_LINES - 1], answer[_ANSWER_LINES - 1] + " …"]
        title = list(_wrapped(panel.title, 18, picture.width, bold=True))
        return cls(picture, title, list(_wrapped(panel.note, 14, picture.width)), answer, panel.differs)

    @property
    def head(self) -> int:
        """Pixels above the picture."""
        return 25 * len(self.title) + 20 * len(self.note) + 8

    def draw(self, head: int) -> Image:
        """Draw title and note in ``head`` pixels, the picture, and the answer."""
        from PIL import ImageDraw
        from PIL.Image import new

        bottom = head + self.picture.height + 8
        block = new("RGB", (self.picture.width, bottom + 26 * len(self.answer) + 2), _PAPER)
        draw, top = ImageDraw.Draw(block), head - self.head
        for number, line in enumerate(self.title):
            draw.text((0, top + 25 * number), line, _INK, _font(18, bold=True))
        for number, line in enumerate(self.note):
            draw.text((0, top + 25 * len(self.title) + 20 * number), line, _FAINT, _font(14))
        block.paste(self.picture, (0, head))
        ink = _DIFFERS if self.differs else _INK
        draw.text((0, bottom), "≠" if self.differs else "→", ink, _font(18, bold=True))
        for number, line in enumerate(self.answer):
            draw.text((26, bottom + 26 * number), line, ink, _font(18, bold=self.differs))
        return block


def shade(panel: Panel, longer_side: int | None = None) -> Image:
    """Return the panel's picture at the size it is drawn in, each patch shaded by what became of it."""
    from PIL import Image

    height, width = panel.picture.shape[:2]
    limit = longer_side or (_WIDE if width > 1.4 * height else _PANEL)
    scale = limit / max(height, width)
    # whole multiples keep every pixel as large as the next
    scale = float(int(scale)) if scale >= 1 else scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    canvas = np.asarray(Image.fromarray(panel.picture).resize(size, how)).astype(np.float32)
    boxes = np.rint(panel.boxes * scale).astype(int).tolist()
    for (left, top, right, bottom), stage, merged in zip(boxes, panel.dropped_at, panel.merged, strict=True):
        patch = canvas[top:bottom, left:right]
        if stage:
            patch[:] = _dark(patch, int(stage), panel.stages)
        elif merged:
            patch[:] = _hatched(patch, left, top, max(1, int(scale)))
    return Image.fromarray(np.rint(canvas).astype(np.uint8))


def _dark(patch: NDArray[np.float32], stage: int, stages: int) -> NDArray[np.float32]:
    """Darken a patch and take half its colour: the earlier it was dropped, the more."""
    later = (stage - 1) / max(1, stages - 1)
    light = _DARKEST + later * (_LIGHTEST - _DARKEST)
    grey = patch.mean(axis=2, keepdims=True)
    dark: NDArray[np.float32] = light * (0.4 * patch + 0.6 * grey)
    return dark


def _hatched(patch: NDArray[np.float32], left: int, top: int, step: int) -> NDArray[np.float32]:
    """Tint a patch and draw diagonals that go on into its neighbours, in steps of the picture's enlarged pixels."""
    y, x = np.mgrid[top : top + patch.shape[0], left : left + patch.shape[1]] // step
    line = ((x + y) % max(4, 8 // step) < max(1, 2 // step))[..., None]
    tinted = 0.4 * patch + 0.6 * np.asarray(_MERGED, dtype=np.float32)
    hatched: NDArray[np.float32] = np.where(line, np.asarray(_HATCH, dtype=np.float32), tinted)
    return hatched


def _legend(panels: Sequence[Panel]) -> list[tuple[Image, str]]:
    """Return a swatch and a label for each kind of patch that occurs."""
    from PIL.Image import new

    def swatch(stage: int, stages: int, merged: bool) -> Image:
        dropped_at, whole = np.array([stage]), np.array([[0, 0, 20, 20]])
        plain = np.full((20, 20, 3), (200, 175, 130), dtype=np.uint8)
        return shade(Panel("", "", "", False, plain, whole, dropped_at, np.array([merged]), stages), 20)

    found = [(swatch(0, 1, False), "kept")]
    stages = max((panel.stages for panel in panels if panel.dropped_at.any()), default=0)
    if stages == 1:
        found.append((swatch(1, 1, False), "dropped"))
    elif stages > 1:
        found += [(swatch(1, 2, False), "dropped by the first or only stage"), (swatch(2, 2, False), "by the last")]
    if any(panel.merged.any() for panel in panels):
        found.append((swatch(0, 1, True), "merged with others"))
    if any(panel.differs for panel in panels):
        found.append((new("RGB", (20, 20), _DIFFERS), "another answer than the baseline's"))
    return found


def _wrapped(text: str, size: int, width: int, *, bold: bool = False) -> Iterator[str]:
    """Yield lines no wider than ``width`` pixels: broken at spaces, and inside words that are longer than a line."""
    font, line = _font(size, bold=bold), ""
    text = "".join(sign if sign.isprintable() or sign.isspace() else "\ufffd" for sign in printable(text))
    if text.isprintable() and font.getlength(text) <= width:
        yield text  # with its spaces as they are
        return
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        while font.getlength(word) > width and len(word) > 1:
            end = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            yield word[:end]
            word = word[end:]
        line = word
    if line:
        yield line


@cache
def _font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """Return the font that comes with matplotlib: the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # the other engine is not there on every machine, and refuses some odd answers
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
