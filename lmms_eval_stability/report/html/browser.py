"""The data of the flip browser: one compact JSON object, columns instead of objects and every text once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from .collect import Part
from .details import LogDetails, SampleDetails
from .images import Thumbnails

#: Most rows of a page.
MOST_ROWS = 50_000
#: Longest text, in characters; what is longer is cut, and says so.
LONGEST = 4_000

Key = tuple[str, int]


@dataclass(frozen=True)
class Choice:
    """Which diverged pairs a page shows.

    Attributes:
        rows: places in `Part.diverged`, one list per part.
        flips, changed: pairs with another verdict, and with another prediction but the same verdict.
        shown_flips, shown_changed: how many of them the page shows.
    """

    rows: list[list[int]]
    flips: int
    changed: int
    shown_flips: int
    shown_changed: int


def choose(parts: list[Part], most: int = MOST_ROWS) -> Choice:
    """All diverged pairs if there are no more than `most`; else flips only, of some documents if they are too many.

    Documents are drawn by a hash of task and doc_id, whatever the run: what is left can still be compared across runs.
    """
    is_flip = [(part.diverged["flip"] != "").tolist() for part in parts]
    flips = sum(map(sum, is_flip))
    total = sum(map(len, is_flip))
    if total <= most:
        rows = [list(range(len(one))) for one in is_flip]
    else:
        rows = [[i for i, flip in enumerate(one) if flip] for one in is_flip]
    if flips > most:
        rows = _drawn(parts, rows, most)
    shown_flips = sum(flags[i] for flags, chosen in zip(is_flip, rows, strict=True) for i in chosen)
    shown = sum(map(len, rows))
    return Choice(rows, flips, total - flips, shown_flips, shown - shown_flips)


def _drawn(parts: list[Part], rows: list[list[int]], most: int) -> list[list[int]]:
    """The rows of as many documents as fit, all rows of a document or none."""
    docs = [part.diverged["doc_id"].tolist() for part in parts]
    counts: dict[Key, int] = {}
    for part, ids, chosen in zip(parts, docs, rows, strict=True):
        for i in chosen:
            counts[part.task, ids[i]] = counts.get((part.task, ids[i]), 0) + 1
    kept, used = set(), 0
    for key in sorted(counts, key=_lot):
        if used + counts[key] > most:
            break
        kept.add(key)
        used += counts[key]
    return [
        [i for i in chosen if (part.task, ids[i]) in kept] for part, ids, chosen in zip(parts, docs, rows, strict=True)
    ]


def _lot(key: Key) -> bytes:
    return hashlib.blake2b(f"{key[0]}\0{key[1]}".encode("utf-8", "replace"), digest_size=8).digest()


@dataclass
class _Texts:
    """Every text once; a text is its place."""

    place: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: str) -> int:
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]} … (cut: {len(text)} characters in all)"
        return self.place.setdefault(text, len(self.place))


def wanted_documents(parts: list[Part], choice: Choice) -> dict[Key, int]:
    """The documents of the rows, and in how many rows each is; tasks and documents in order."""
    counts: dict[Key, int] = {}
    for part, chosen in zip(parts, choice.rows, strict=True):
        ids = part.diverged["doc_id"].tolist()
        for i in chosen:
            counts[part.task, ids[i]] = counts.get((part.task, ids[i]), 0) + 1
    tasks = {task: place for place, task in enumerate(dict.fromkeys(part.task for part in parts))}
    return dict(sorted(counts.items(), key=lambda item: (tasks[item[0][0]], item[0][1])))


def browser_data(
    parts: list[Part],
    choice: Choice,
    documents: Iterable[Key],
    baseline: Mapping[str, LogDetails],
    answers: Mapping[tuple[str, str], LogDetails],
    pictures: Thumbnails,
) -> dict[str, Any]:
    """The object in the page. Columns of `docs` and `rows` that hold texts hold places in `texts`.

    Args:
        parts, choice: the pairs, and which of them.
        documents: as `wanted_documents` orders them.
        baseline: by task, what the baseline's log says.
        answers: by (task, run), what the run's log says.
        pictures: the thumbnails.
    """
    texts = _Texts()
    runs = list(dict.fromkeys(part.run for part in parts))
    tasks = list(dict.fromkeys(part.task for part in parts))
    documents = list(documents)
    places = {key: place for place, key in enumerate(documents)}
    docs = _document_columns(documents, tasks, baseline, pictures, texts)
    rows: dict[str, list[Any]] = {name: [] for name in ("doc", "run", "flip", "answer", "prediction", "score")}
    for part, chosen in zip(parts, choice.rows, strict=True):
        given = answers[part.task, part.run].samples
        frame = part.diverged.take(chosen)
        for row in frame.to_dict("records"):
            place = places[part.task, row["doc_id"]]
            rows["doc"].append(place)
            rows["run"].append(runs.index(part.run))
            rows["flip"].append({"negative": -1, "positive": 1}.get(row["flip"], 0))
            details = given.get(row["doc_id"])
            rows["answer"].append(texts(row["prediction_run"] if details is None else details.answer))
            rows["prediction"].append(texts(row["prediction_run"]))
            rows["score"].append(_number(row["score_run"]))
            docs["target"][place] = texts(row["target"])
            docs["prediction"][place] = texts(row["prediction_baseline"])
            docs["score"][place] = _number(row["score_baseline"])
    categories = docs.pop("_categories")
    return {
        "runs": runs,
        "tasks": tasks,
        "categories": categories,
        "images": pictures.urls,
        "docs": docs,
        "rows": rows,
        "texts": list(texts.place),
    }


def _document_columns(
    documents: list[Key],
    tasks: list[str],
    baseline: Mapping[str, LogDetails],
    pictures: Thumbnails,
    texts: _Texts,
) -> dict[str, list[Any]]:
    categories: dict[tuple[str, str], int] = {}
    nothing = SampleDetails("", "", {})
    found = [baseline[task].samples.get(doc_id, nothing) for task, doc_id in documents]
    return {
        "task": [tasks.index(task) for task, _ in documents],
        # as texts: JavaScript's numbers are not exact beyond 2^53
        "id": [str(doc_id) for _, doc_id in documents],
        "question": [texts(one.question) for one in found],
        "answer": [texts(one.answer) for one in found],
        "target": [-1] * len(documents),
        "prediction": [-1] * len(documents),
        "score": [None] * len(documents),
        "margin": [_number(baseline[task].margin.get(doc_id)) for task, doc_id in documents],
        "image": [pictures.place.get(key, -1) for key in documents],
        "categories": [
            [categories.setdefault(item, len(categories)) for item in one.categories.items()] for one in found
        ],
        "_categories": [list(item) for item in categories],
    }


def _number(value: float | None) -> float | int | None:
    """With six significant digits, which is more than is shown; None for what is no number."""
    if value is None or not isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short
