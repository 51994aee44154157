"""lmms-eval's requests as this package reads them, and how they are put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """One request of lmms-eval's chat interface."""

    index: int  # in the list of requests
    context: str
    doc_to_messages: Any
    gen_kwargs: dict[str, Any]
    doc_id: int
    task: str
    split: str

    @property
    def name(self) -> str:
        return f"task {self.task}, document {self.doc_id}"


def batches(documents: Sequence[Document], size: int) -> Iterator[list[Document]]:
    """Yield documents that share generation arguments, of similar length where a batch holds several."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(repr(sorted(document.gen_kwargs.items())), []).append(document)
    for group in groups.values():
        ordered = sorted(group, key=lambda document: -len(document.context)) if size > 1 else group
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]
