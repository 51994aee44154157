"""A folder of perturbed images, stored without loss, so that an expensive level is computed once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lmms_eval_stability.tasks.perturbations.assignment import VERSION
from lmms_eval_stability.tasks.perturbations.entries import Level

#: Names the folder that perturbed tasks read from and write to.
FOLDER_VARIABLE = "LMMS_EVAL_STABILITY_PERTURBATION_CACHE"


@dataclass(frozen=True)
class ImageCache:
    """Perturbed images by what made them: version, level, seed, quirks and the pixels of the input.

    Files are PNGs in 256 sub-folders, named by a digest. A file appears under its name only once it is complete, so a
    folder may be filled by several processes, and filling it may be interrupted and taken up again.
    """

    folder: Path

    @classmethod
    def from_environment(cls) -> ImageCache | None:
        """Return the cache in the folder that the environment names, or None."""
        folder = os.environ.get(FOLDER_VARIABLE)
        return cls(Path(folder)) if folder else None

    def file(
        self, image: Image.Image, level: Level, seed: int, *, official_quirks: bool, photographs: bool = False
    ) -> Path:
        """Return where an image's output is, or will be."""
        rgb = image.convert("RGB")
        pixels = hashlib.blake2b(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes(), digest_size=16).hexdigest()
        key = json.dumps([VERSION, level.method, level.severity, seed, official_quirks, photographs, pixels])
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.png"

    def read(self, file: Path) -> Image.Image | None:
        """Return a stored image, or None if there is none."""
        if not file.is_file():
            return None
        with Image.open(file) as stored:
            return stored.convert("RGB")

    def write(self, file: Path, image: Image.Image) -> None:
        """Store an image."""
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as part:
                image.save(part, "PNG", compress_level=1)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
