"""A copy of the hub's VQA-RAD in miniature: the same layout, columns and data card, with drawn pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

FEATURES = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
# Worded like the questions that the demo model knows, so that it gets some right.
TRAIN = (
    ("Is there a red circle?", "yes"),
    ("What color is the square?", "red, green or blue"),
    ("Is there a green star? ", "No"),
    ("where is the lesion?", "right upper lobe"),
    ("Is there a blue cross?", "no"),
)
TEST = (
    ("What color is the object, left or right?", "Left"),
    ("Is there a yellow triangle?", "yes"),
    ("How many objects are there?", "four (4) squares"),
)


def picture(seed: int) -> Pillow.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Pillow.fromarray(blocks).resize((64, 48), Pillow.Resampling.NEAREST)


def write_repository(folder: Path) -> Path:
    """Write what a clone of the hub's repository holds; two questions in a row share a picture."""
    (folder / "data").mkdir(parents=True)
    splits = []
    for first_seed, (name, rows) in enumerate((("train", TRAIN), ("test", TEST))):
        columns = {
            "image": [picture(100 * first_seed + i // 2) for i in range(len(rows))],
            "question": [question for question, _ in rows],
            "answer": [answer for _, answer in rows],
        }
        file = folder / "data" / f"{name}-00000-of-00001-0123456789abcdef.parquet"
        Dataset.from_dict(columns, features=FEATURES).to_parquet(file)
        splits.append(f"  - name: {name}\n    num_bytes: {file.stat().st_size}\n    num_examples: {len(rows)}\n")
    features = "".join(f"  - name: {n}\n    dtype: {t}\n" for n, t in (("image", "image"), ("question", "string")))
    features += "  - name: answer\n    dtype: string\n"
    card = f"---\nlicense: cc0-1.0\ndataset_info:\n  features:\n{features}  splits:\n{''.join(splits)}"
    (folder / "README.md").write_text(card + "  download_size: 1\n  dataset_size: 1\n---\n# VQA-RAD\n")
    return folder


def write_task(folder: Path, repository: Path, original: Path, name: str) -> Path:
    """Write the YAML of a user who has the data elsewhere: everything but the place is the original task's."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"include: {original}\ntask: {name}\ndataset_path: {repository}\n"
    (folder / f"{name}.yaml").write_text(text)
    return folder
