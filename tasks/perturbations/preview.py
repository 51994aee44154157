"""One picture that shows what the image perturbations do: a row per method, a column per severity."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lmms_eval_stability.tasks.perturbations.image import METHODS, perturb_image

_LABEL_WIDTH, _HEADER, _GAP = 150, 26, 6
_FONT_SIZE = 14


def preview_grid(
    image: Image.Image, methods: Sequence[str], *, seed: int, official_quirks: bool = False, cell: int = 160
) -> Image.Image:
    """Return a labelled grid of an image at every severity of the methods.

    Args:
        image: any image; it is perturbed at its own size and then scaled down to the cells.
        methods: names, one row each.
        seed: of every cell's random numbers.
        cell: width of a cell in pixels.
    """
    source = image.convert("RGB")
    height = max(1, round(source.height * cell / source.width))
    columns = 1 + max(METHODS[name].severities for name in methods)
    size = (_LABEL_WIDTH + columns * (cell + _GAP), _HEADER + len(methods) * (height + _GAP))
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(_FONT_SIZE)
    for column in range(columns):
        text = "input" if column == 0 else f"severity {column}"
        draw.text((_LABEL_WIDTH + column * (cell + _GAP), 5), text, fill="black", font=font)
    for row, name in enumerate(methods):
        top = _HEADER + row * (height + _GAP)
        draw.text((8, top + height // 2 - _FONT_SIZE // 2), METHODS[name].paper_name, fill="black", font=font)
        shown = [source]
        for severity in range(1, METHODS[name].severities + 1):
            shown.append(perturb_image(source, name, severity, seed=seed, official_quirks=official_quirks))
        for column, picture in enumerate(shown):
            small = picture.resize((cell, height), Image.Resampling.LANCZOS)
            grid.paste(small, (_LABEL_WIDTH + column * (cell + _GAP), top))
    return grid
