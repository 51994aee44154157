"""Files put in place together: never half written, never beside what an earlier comparison left in the same folder.

`manifest.json` names the files that the last comparison wrote, and nothing else is ever removed. Each file is written
under a temporary name and renamed; no rename of several files is one step, so while it lasts the manifest says that the
folder is not complete.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
_TEMPORARY = re.compile(r"^\..+\.(?P<process>\d+)\.tmp$")


def temporary_name(path: Path) -> Path:
    """The hidden name under which this process writes the file."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def put_in_place(folder: Path, pending: dict[Path, Path]) -> list[Path]:
    """Rename every temporary file to its target in `folder`; remove what an earlier manifest names and this does not.

    Args:
        folder: of all targets.
        pending: temporary file by target, emptied step by step.

    Returns the targets. Raises OSError.
    """
    written = list(pending)
    names = [path.name for path in written]
    earlier = _listed(folder)
    _write_manifest(folder, dict.fromkeys([*names, *earlier]), complete=False)
    for target in written:
        pending[target].replace(target)
        del pending[target]
    for name in earlier:
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    _write_manifest(folder, names, complete=True)
    return written


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed before they could."""
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and path.is_file() and not _is_alive(int(match["process"])):
            path.unlink(missing_ok=True)


def _listed(folder: Path) -> list[str]:
    """Files of this folder that its manifest names: plain names of files that are there, whatever else it says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    names = manifest.get("files") if isinstance(manifest, Mapping) else None
    if not isinstance(names, list):
        return []
    texts = [name for name in names if isinstance(name, str) and name == Path(name).name and "\0" not in name]
    return [name for name in texts if (folder / name).is_file()]


def _write_manifest(folder: Path, names: Iterable[str], complete: bool) -> None:
    temporary = temporary_name(folder / MANIFEST)
    try:
        text = json.dumps({"complete": complete, "files": list(names)}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / MANIFEST)
    except BaseException:  # an interrupt, too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; yes where asking would end it (Windows)."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # someone else's
        return True
    return True
