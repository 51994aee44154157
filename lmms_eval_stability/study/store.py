"""Where finished work lies: `shards/KEY/FIRST-STOP/`, in a folder or behind any fsspec URL, complete or not there.

A shard is some documents of one cell. Its folder holds what lmms-eval logged of them (`samples.jsonl`, `results.json`),
what it printed (`lmms_eval.log`), and `done.json`, which is written last: a folder without one does not count.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from ..errors import OutputError

SAMPLES, RESULTS, LOG, DONE = "samples.jsonl", "results.json", "lmms_eval.log", "done.json"


@dataclass(frozen=True, order=True)
class Span:
    """Documents `first` (from 0) up to `stop`, which is not among them; None is the end of the task."""

    first: int
    stop: int | None

    @property
    def name(self) -> str:
        """As a folder."""
        return f"{self.first}-{'end' if self.stop is None else self.stop}"

    @property
    def count(self) -> int | None:
        """How many documents; None when only lmms-eval will know."""
        return None if self.stop is None else self.stop - self.first


@dataclass(frozen=True)
class Finished:
    """A complete shard, as its `done.json` says.

    Attributes:
        key: of its cell. span: which documents were asked for.
        stop: where the shard ends in fact. total: documents that the task has.
        seconds: of the whole process, shared out by documents where it ran several tasks.
        startup: those of `seconds` that passed outside of generation; None when lmms-eval did not say.
        cell: name of the cell for which it ran. host: where.
        sizes: bytes of each file.
    """

    key: str
    span: Span
    stop: int
    total: int
    seconds: float
    startup: float | None
    cell: str
    host: str
    sizes: dict[str, int]

    @property
    def documents(self) -> int:
        """How many were answered."""
        return self.stop - self.span.first


class Store:
    """The finished shards of a study. Only the URL is kept, so a store may be sent to a worker."""

    def __init__(self, url: str) -> None:
        """`url` is a folder or an fsspec URL, such as `s3://bucket/study`."""
        self.url = url

    @property
    def _files(self) -> tuple[fsspec.AbstractFileSystem, str]:
        files, root = url_to_fs(self.url)
        return files, str(root).rstrip("/")

    def folder(self, key: str, span: Span) -> str:
        """Path of a shard within its file system."""
        return f"{self._files[1]}/shards/{key}/{span.name}"

    def finished(self) -> dict[str, list[Finished]]:
        """All complete shards by key. One whose files are not of the size that `done.json` says is not complete."""
        files, root = self._files
        files.invalidate_cache()
        listed: dict[str, Any] = files.find(f"{root}/shards", detail=True)  # one listing, not a question per file
        markers = sorted(path for path in listed if path.endswith(f"/{DONE}"))
        texts = files.cat(markers, on_error="omit") if markers else {}
        found: dict[str, list[Finished]] = defaultdict(list)
        for marker in markers:
            shard = _read(texts.get(marker, b""))
            folder = marker.rpartition("/")[0]
            if shard is None:
                continue
            if all(listed.get(f"{folder}/{name}", {}).get("size") == size for name, size in shard.sizes.items()):
                found[shard.key].append(shard)
        return dict(found)

    def publish(self, folder: Path, shard: Finished) -> None:
        """Store a shard: its files first, the marker last. Raises OSError; what is there then does not count."""
        files, _ = self._files
        target = self.folder(shard.key, shard.span)
        if files.exists(f"{target}/{DONE}"):
            files.rm(f"{target}/{DONE}")
        files.makedirs(target, exist_ok=True)
        for name in shard.sizes:
            files.put_file(str(folder / name), f"{target}/{name}")
        marker = folder / DONE
        marker.write_text(json.dumps(asdict(shard), indent=2) + "\n", encoding="utf-8")
        files.put_file(str(marker), f"{target}/{DONE}")

    def keep_log(self, log: Path, name: str) -> str:
        """Store what a failed process printed as `failed/NAME.log`; returns its path."""
        files, root = self._files
        files.makedirs(f"{root}/failed", exist_ok=True)
        files.put_file(str(log), f"{root}/failed/{name}.log")
        return f"{root}/failed/{name}.log"

    def put_folders(self, folder: Path, names: Iterable[str]) -> None:
        """Copy folders beside the shards, where the store is not in `folder` itself."""
        files, root = self._files
        for name in names:
            if "://" not in self.url or not (folder / name).is_dir():
                continue
            try:
                if files.exists(f"{root}/{name}"):
                    files.rm(f"{root}/{name}", recursive=True)
                files.put(str(folder / name), f"{root}/{name}", recursive=True)
            except OSError as error:
                raise OutputError(f"{self.url}/{name}: cannot be written: {error}") from error

    def read(self, shard: Finished, name: str) -> bytes:
        """One file of a shard."""
        files, _ = self._files
        return bytes(files.cat_file(f"{self.folder(shard.key, shard.span)}/{name}"))


def _read(marker: bytes) -> Finished | None:
    """A shard as its marker says; None for one that was half written: it is run again."""
    try:
        fields: dict[str, Any] = json.loads(marker)
        return Finished(**{**fields, "span": Span(**fields["span"])})
    except (ValueError, TypeError, LookupError):
        return None


def missing(wanted: int | None, finished: Iterable[Finished], limit: int | None = None) -> list[Span]:
    """The documents that no finished shard holds.

    Args:
        wanted: how many documents the cell has; None while nobody knows.
        finished: its complete shards; where two overlap, the one that starts earlier counts.
        limit: documents per task, should a finished shard say how many there are.
    """
    spans = []
    at = 0
    for shard in chosen(finished):
        wanted = min(shard.total, limit or shard.total)
        if shard.span.first > at:
            spans.append(Span(at, shard.span.first))
        at = shard.stop
    if wanted is None or at < wanted:
        spans.append(Span(at, wanted))
    return spans


def chosen(finished: Iterable[Finished]) -> list[Finished]:
    """Shards in order of their documents, without those that repeat documents of another."""
    found: list[Finished] = []
    for shard in sorted(finished, key=lambda shard: (shard.span.first, -shard.stop)):
        if not found or shard.span.first >= found[-1].stop:
            found.append(shard)
    return found
