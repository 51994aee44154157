"""Golden vectors: where they lie, and how tests find them.

The tests run every file of the folder named by the environment variable ``LMMS_EVAL_STABILITY_GOLDEN``, by default
``tests/golden``; it has the sub-folders ``token_reduction`` and ``perturbations``, and a file's prefix says what it is
for. So further cases are run by dropping them in, without touching code.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_VARIABLE = "LMMS_EVAL_STABILITY_GOLDEN"
OWN_FOLDER = Path(__file__).parent / "golden"
SUBFOLDERS = ("token_reduction", "perturbations")


def golden_folder() -> Path:
    """Return the folder with the golden vectors.

    Raises:
        FileNotFoundError: The environment variable names no folder, or one without any of the sub-folders.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return OWN_FOLDER
    folder = Path(named)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{FOLDER_VARIABLE} names {named!r}, which is not a folder; name one with the sub-folders"
            f" {' or '.join(SUBFOLDERS)}, or unset it to run the vectors in {OWN_FOLDER}"
        )
    if not any((folder / name).is_dir() for name in SUBFOLDERS):
        raise FileNotFoundError(
            f"{FOLDER_VARIABLE} names {named!r}, which has none of the sub-folders {', '.join(SUBFOLDERS)}"
        )
    return folder


def golden_files(subfolder: str, prefix: str = "", suffix: str = ".npz") -> list[Path]:
    """Return the files of a sub-folder whose names begin with ``prefix`` and end with ``suffix``, sorted by name.

    A sub-folder that the folder named by the environment variable does not have is taken from ``tests/golden``.

    Raises:
        FileNotFoundError: See `golden_folder`.
    """
    if subfolder not in SUBFOLDERS:
        raise ValueError(f"golden vectors are in {', '.join(SUBFOLDERS)}, not in {subfolder!r}")
    folder = golden_folder() / subfolder
    if not folder.is_dir():
        folder = OWN_FOLDER / subfolder
    return sorted(path for path in folder.glob("*") if path.name.startswith(prefix) and path.name.endswith(suffix))
