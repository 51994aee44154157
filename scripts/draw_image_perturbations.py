"""Draw docs/images/perturbations_image.png: every image method at severity 3 on a drawn scene.

python scripts/draw_image_perturbations.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lmms_eval_stability.tasks.perturbations.image import METHODS, perturb_image

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "perturbations_image.png"
SIZE, CELL, LABEL, GAP, COLUMNS = (480, 360), (160, 120), 16, 6, 5


def scene() -> Image.Image:
    """Return a house, a tree, a fence and a sign under a sky."""
    width, height = SIZE
    sky = np.linspace((120, 170, 225), (215, 230, 240), 240).astype(np.uint8)
    ground = np.linspace((110, 150, 80), (70, 115, 60), height - 240).astype(np.uint8)
    picture = Image.fromarray(np.repeat(np.concatenate([sky, ground])[:, None], width, axis=1))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((380, 30, 440, 90), fill=(250, 215, 90))
    draw.rectangle((60, 150, 230, 290), fill=(200, 120, 90))
    draw.polygon([(45, 150), (145, 75), (245, 150)], fill=(120, 45, 45))
    draw.rectangle((125, 220, 165, 290), fill=(90, 60, 40))
    for left in (75, 180):
        draw.rectangle((left, 175, left + 35, 205), fill=(190, 220, 240), outline=(70, 70, 70), width=3)
    draw.rectangle((318, 200, 334, 290), fill=(95, 70, 45))
    for x, y, radius in ((326, 160, 45), (296, 185, 32), (358, 187, 32)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(50, 120, 60))
    for left in range(255, 480, 24):
        draw.polygon(
            [(left, 330), (left, 292), (left + 7, 284), (left + 14, 292), (left + 14, 330)], fill=(240, 240, 235)
        )
    draw.rectangle((70, 305, 180, 345), fill=(35, 60, 120))
    draw.text((82, 308), "STOP 42", fill="white", font=ImageFont.load_default(26))
    return picture


def main() -> None:
    rows = -(-len(METHODS) // COLUMNS)
    cell = CELL[0] + GAP, CELL[1] + LABEL + GAP
    grid = Image.new("RGB", (COLUMNS * cell[0] - GAP, rows * cell[1] - GAP), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
    for index, (name, entry) in enumerate(METHODS.items()):
        left, top = index % COLUMNS * cell[0], index // COLUMNS * cell[1]
        image = perturb_image(scene(), name, min(3, entry.severities), seed=2)
        grid.paste(image.resize(CELL, Image.Resampling.BOX), (left, top + LABEL))
        draw.rectangle((left, top + LABEL, left + CELL[0] - 1, top + LABEL + CELL[1] - 1), outline=(170, 170, 170))
        draw.text((left + 1, top), entry.paper_name, fill="black", font=font)
    levels = np.asarray(grid) // 8 * 8 + 4  # fewer levels, smaller file
    Image.fromarray(np.where(np.asarray(grid) == 255, 255, levels).astype(np.uint8)).save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
