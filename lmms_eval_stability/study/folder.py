"""The folder of a study: `study.json`, `shards/`, `runs/BASE/RUN/`, `report/BASE/`, `failed/`; running: `work/`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .errors import StudyConfigError
from .plan import Plan

MARKER = "study.json"
_PARTS = ("shards", "runs", "report", "failed", "work")


def open_folder(folder: Path, name: str) -> None:
    """Make `folder` ready for a study; refuse one that holds other things.

    Raises:
        StudyConfigError: it is a file, holds something else, or the study of another name.
        OutputError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise StudyConfigError(f"{folder} is a file; name a folder for the study")
    marker = folder / MARKER
    if folder.is_dir() and any(folder.iterdir()):
        if not marker.is_file():
            raise StudyConfigError(f"{folder} is not empty and holds no study; name an empty or a new folder")
        other = _name(marker)
        if other not in (name, None):
            raise StudyConfigError(f"{folder} holds the study '{other}', not '{name}'; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.is_file():
            marker.write_text(json.dumps({"name": name}) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error


def _name(marker: Path) -> str | None:
    """Of the study in a folder; None where that is not stated, as in folders of the first release."""
    try:
        known = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # half written
    return known.get("name") if isinstance(known, dict) else None


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep a second process of the same study out while this one runs.

    Raises:
        StudyConfigError: another one runs.
    """
    try:
        import fcntl
    except ImportError:  # no Unix
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StudyConfigError(f"{folder}: another process runs this study; wait for it, or end it") from error
        yield


def describe(folder: Path, plan: Plan) -> None:
    """Write the plan into `study.json`."""
    cells = [
        {
            "base": cell.base,
            "run": cell.run,
            "method": cell.method,
            "task": cell.task,
            "samples": cell.samples,
            "model": cell.model,
            "model_args": cell.call.model_args_text,
            "key": cell.key,
        }
        for cell in plan.cells
    ]
    known: dict[str, Any] = {
        "name": plan.study.name,
        "versions": dict(plan.versions),
        "cells": cells,
        "study": plan.study.model_dump(mode="json"),
    }
    begun = folder / f".{MARKER}"
    try:
        begun.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        begun.replace(folder / MARKER)
    except OSError as error:
        raise OutputError(f"{folder / MARKER}: cannot be written: {error.strerror}") from error


def clear(folder: Path) -> None:
    """Remove what a study left in its folder, finished work, too."""
    for part in _PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
