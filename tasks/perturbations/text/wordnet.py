"""A reader of WordNet's ``index.*``, ``data.*`` and ``*.exc`` files: base forms and synonyms.

The formats are those of WordNet's manual pages wndb(5WN) and morphy(7WN). NLTK's reader is not used because it needs a
file ``lexnames``, which some packages of WordNet leave out.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
from lmms_eval_stability.tasks.perturbations.text.resources import UnreadableResourceError

_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
#: Endings that inflection adds -> what stands there in the base form, by part of speech: morphy's rules.
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}
#: Where an adjective may stand, noted behind some of them: ``(p)``, ``(a)``, ``(ip)``.
_MARKER = re.compile(r"\((?:p|a|ip)\)$")


class WordNet:
    """WordNet in a folder or a zip file.

    Args:
        path: the folder with ``index.noun``, ``data.noun`` and so on; or a zip file with such a folder in it.

    Raises:
        MissingResourceError: there are no such files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        needed = [f"{kind}.{pos}" for kind in ("index", "data") for pos in _FILES.values()]
        missing = [name for name in needed if not self._has(name)]
        if missing:
            raise MissingResourceError(f"{path} is not a WordNet dictionary: it has no {', '.join(missing)}")
        self._data: dict[str, bytes] = {}
        self._lines: dict[str, dict[str, str]] = {}

    @cached_property
    def _members(self) -> dict[str, str]:
        """File name -> member of the zip file."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return {Path(name).name: name for name in archive.namelist() if not name.endswith("/")}
        except (OSError, zipfile.BadZipFile) as error:
            raise UnreadableResourceError(f"{self.path}: {error}") from error

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file() if self.path.is_dir() else name in self._members

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(self._members[name])

    def _index(self, name: str) -> dict[str, str]:
        """Return first word of a line -> rest of the line; lines that begin with a space are the licence."""
        if name not in self._lines:
            text = self.read(name).decode("utf-8") if self._has(name) else ""
            pairs = (line.partition(" ") for line in text.splitlines() if line[:1] not in ("", " "))
            self._lines[name] = {word: rest for word, _, rest in pairs}
        return self._lines[name]

    def base_forms(self, word: str, pos: str) -> list[str]:
        """Return the base forms of a lower-case word that WordNet has, itself first; irregular forms, else endings."""
        known = self._index(f"index.{_FILES[pos]}")
        irregular = self._index(f"{_FILES[pos]}.exc").get(word)
        if irregular is not None:
            forms = [word, *irregular.split()]
        else:
            regular = (word[: -len(end)] + base for end, base in _ENDINGS[pos] if word.endswith(end))
            forms = [word, *regular]
        return list(dict.fromkeys(form for form in forms if form in known))

    def synonyms(self, word: str, pos: str | None, *, satellites: bool = True) -> list[str]:
        """Return the one-word lemmas of all synsets of a word, itself among them, sorted.

        Args:
            word: in lower case.
            pos: ``n``, ``v``, ``a`` or ``r``; None for all.
            satellites: with synsets of satellite adjectives.
        """
        found = {
            lemma
            for each in (_FILES if pos is None else (pos,))
            for form in self.base_forms(word, each)
            for lemma in self._lemmas(form, each, satellites=satellites)
        }
        return sorted(lemma for lemma in found if "_" not in lemma)

    def _lemmas(self, form: str, pos: str, *, satellites: bool) -> Iterator[str]:
        # lemma: pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset [synset_offset...]
        fields = self._index(f"index.{_FILES[pos]}")[form].split()
        for offset in fields[-int(fields[1]) :]:
            # synset_offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] ... with w_cnt in hexadecimal
            synset = self._line(f"data.{_FILES[pos]}", int(offset)).split()
            if synset[:1] != [offset]:
                raise UnreadableResourceError(f"{self.path}: data.{_FILES[pos]} has no synset at byte {offset}")
            if synset[2] != "s" or satellites:
                for i in range(int(synset[3], 16)):
                    yield _MARKER.sub("", synset[4 + 2 * i])

    def _line(self, name: str, offset: int) -> str:
        if name not in self._data:
            self._data[name] = self.read(name)
        data = self._data[name]
        end = data.find(b"\n", offset)
        return data[offset : end if end >= 0 else len(data)].decode("utf-8")

    @property
    def version(self) -> str:
        """The version that the licence in ``data.noun`` names."""
        found = re.search(rb"WordNet (\d+\.\d+)", self.read("data.noun")[:4096])
        return found.group(1).decode() if found else "unknown"


def _usual_places() -> Iterator[Path]:
    if searched := os.environ.get("WNSEARCHDIR"):
        yield Path(searched)
    if home := os.environ.get("WNHOME"):
        yield Path(home) / "dict"
    yield Path("/usr/share/wordnet")
    data = [Path(place) for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place]
    roots = (Path.home(), Path("/usr/share"), Path("/usr/local/share"), Path("/usr/lib"))
    data += [root / "nltk_data" for root in roots]
    for place in data:
        yield place / "corpora" / "wordnet"
        yield place / "corpora" / "wordnet.zip"


def find_wordnet() -> Path | None:
    """Return where WordNet is: ``WNSEARCHDIR``, ``WNHOME/dict``, ``/usr/share/wordnet``, or NLTK's data folders."""
    for place in _usual_places():
        if (place / "index.noun").is_file() or (place.suffix == ".zip" and place.is_file()):
            return place
    return None


def open_wordnet(path: Path | None) -> WordNet:
    """Return the dictionary in a folder or zip file, by default the one that `find_wordnet` finds.

    Raises:
        MissingResourceError: there is none; says how to get it.
    """
    found = find_wordnet() if path is None else path
    if found is None:
        raise MissingResourceError(
            "swap_syn_word_net needs WordNet 3.0, which was not found: `apt-get install wordnet-base`, or `python -m"
            " nltk.downloader wordnet`; or name its folder with LMMS_EVAL_STABILITY_TEXT_WORDNET=FOLDER"
        )
    return _open(found)


@lru_cache(maxsize=4)
def _open(path: Path) -> WordNet:
    return WordNet(path)
