"""The folder of a quantised checkpoint: written beside its place, put there when it is complete."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_eval_stability.model_wrappers.quantization.make.errors import OutputFolderError

#: What was done, for programs; also the sign by which a folder is known to be ours.
RECIPE = "quantization_recipe.json"
CARD = "README.md"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise unless a checkpoint may be written to ``folder``.

    Raises:
        OutputFolderError: it is a file, or holds something that must not be deleted.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputFolderError(f"{folder} is a file; name a folder with --output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / RECIPE).is_file():
        raise OutputFolderError(
            f"{folder} is not empty and was not written by this command (it holds no {RECIPE}); name another folder"
        )
    if not overwrite:
        raise OutputFolderError(
            f"{folder} holds a quantised checkpoint already; name another folder, or replace it with --overwrite"
        )


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; put it in its place at the end, or delete it after an exception."""
    check_folder(folder, overwrite)
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.unfinished-", dir=folder.parent))
    except OSError as error:
        raise OutputFolderError(f"cannot write beside {folder}: {error.strerror}") from error
    try:
        yield unfinished
        check_folder(folder, overwrite)  # hours may have passed
        unfinished.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def keep_rejected(unfinished: Path, folder: Path) -> Path:
    """Move what was written and is not good to a folder of its own, for inspection; return that folder."""
    kept = Path(tempfile.mkdtemp(prefix=f"{folder.name}.rejected-", dir=folder.resolve().parent))
    for path in unfinished.iterdir():
        path.rename(kept / path.name)
    return kept


def state_ignored(folder: Path, ignore: Sequence[str]) -> dict[str, Any]:
    """Write what is not quantised into a checkpoint's ``config.json``; return its ``quantization_config``."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    stated: dict[str, Any] = config["quantization_config"]
    stated["ignore"] = list(ignore)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return stated


def store_as(folder: Path, dtype: Any) -> None:
    """Store the scales and whatever is not quantised in another dtype; config.json keeps the dtype to compute in."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        total += sum(t.nbytes for t in cast.values())
        save_file(cast, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = total
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a checkpoint's configuration and weights, by file name."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    found = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 22):
                digest.update(block)
        found[path.name] = digest.hexdigest()
    return found


def size(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
