"""Tables of what a character or a word may be mistaken for. Candidates have a fixed order; none comes from a set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from lmms_eval_stability.tasks.perturbations.text.resources import UnreadableResourceError, word_list

Table = Mapping[str, tuple[str, ...]]

#: Characters that optical character recognition confuses. The table is made symmetric by `ocr_table`.
_CONFUSED = {
    "0": "89oOD",
    "1": "47lI",
    "2": "zZ",
    "5": "8",
    "6": "b",
    "8": "sS@&",
    "9": "g",
    "o": "u",
    "r": "k",
    "C": "G",
    "O": "DU",
    "E": "B",
}

#: Rows of a US QWERTY keyboard, unshifted and shifted, and how far each is moved to the right, in widths of a key.
_ROWS = (
    ("1234567890", "!@#$%^&*()", 0.0),
    ("qwertyuiop", "QWERTYUIOP", 0.5),
    ("asdfghjkl;", "ASDFGHJKL:", 0.75),
    ("zxcvbnm,./", "ZXCVBNM<>?", 1.25),
)
#: Keys whose centres are closer than this, in widths of a key, are neighbours: those that touch.
_REACH = 1.3


@lru_cache(maxsize=1)
def ocr_table() -> Table:
    """Return character -> characters it is confused with; both directions, own entries first."""
    table = {source: list(targets) for source, targets in _CONFUSED.items()}
    for source, targets in _CONFUSED.items():
        for target in targets:
            entry = table.setdefault(target, [])
            if source not in entry:
                entry.append(source)
    return {source: tuple(targets) for source, targets in table.items()}


@lru_cache(maxsize=1)
def _qwerty() -> Table:
    places = {
        legend: (shift + column, float(row))
        for row, (plain, shifted, shift) in enumerate(_ROWS)
        for legends in (plain, shifted)
        for column, legend in enumerate(legends)
    }

    def near(a: str, b: str) -> bool:
        (x, y), (u, v) = places[a], places[b]
        return 0 < (x - u) ** 2 + (y - v) ** 2 < _REACH**2

    return {key: tuple(sorted(other for other in places if near(key, other))) for key in places}


@lru_cache(maxsize=8)
def keyboard_table(path: Path | None) -> Table:
    """Return key -> neighbouring keys, with and without shift.

    Args:
        path: JSON file of key -> list of neighbours, in the format of TextFlint and nlpaug: letters in lower case; both
            cases of every letter and neighbour are added. None: the table computed from the keys' places.
    """
    if path is None:
        return _qwerty()
    found: dict[str, set[str]] = {}
    for key, neighbours in read_table(path).items():
        both = {*neighbours, *(neighbour.upper() for neighbour in neighbours)}
        for case in (key, key.upper()):
            found.setdefault(case, set()).update(both - {case})
    return {key: tuple(sorted(neighbours)) for key, neighbours in found.items()}


@lru_cache(maxsize=8)
def misspelling_table(path: Path | None) -> Table:
    """Return word -> what it is misspelt as; see `Resources.misspellings` for the formats of the file."""
    if path is not None and path.suffix == ".json":
        return read_table(path)
    lines = word_list("misspellings") if path is None else _lines(path)
    table: dict[str, list[str]] = {}
    for line in lines:
        word, *misspellings = line.split()
        table.setdefault(word, []).extend(misspellings)
        for misspelling in misspellings:
            table.setdefault(misspelling, []).append(word)
    return {word: tuple(sorted(set(others) - {word})) for word, others in table.items()}


@lru_cache(maxsize=8)
def read_table(path: Path) -> Table:
    """Read a JSON file of word -> list of words.

    Raises:
        UnreadableResourceError: it is not that.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableResourceError(f"{path}: {error}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(entry, str) or (isinstance(entry, list) and all(isinstance(word, str) for word in entry))
        for entry in loaded.values()
    ):
        raise UnreadableResourceError(f"{path}: expected a JSON object, word -> list of words")
    return {word: tuple(entry) for word, entry in loaded.items()}


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableResourceError(f"{path}: {error}") from error
