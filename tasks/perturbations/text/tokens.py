"""Tokens of a text, edits in place, and the way the official tools join tokens again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Token:
    """A piece of a text: its characters and where they begin."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class Edit:
    """Characters ``start`` to ``end`` of a text become ``new``."""

    start: int
    end: int
    new: str


def replace(token: Token, new: str) -> Edit:
    """Return the edit that puts ``new`` in a token's place."""
    return Edit(token.start, token.end, new)


def apply(text: str, edits: Iterable[Edit]) -> str:
    """Return the text with the edits made, which do not overlap; everything else stays as it is."""
    pieces, position = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        pieces += [text[position : edit.start], edit.new]
        position = edit.end
    return "".join([*pieces, text[position:]])


def whitespace_words(text: str) -> list[Token]:
    """Return what ``str.split`` returns, with positions."""
    return [Token(match.group(), match.start()) for match in _WORD.finditer(text)]


@lru_cache(maxsize=1)
def _english() -> Any:
    import spacy

    return spacy.blank("en").tokenizer


def tokenize(text: str) -> list[Token]:
    """Return the tokens of spaCy's blank English tokenizer, without whitespace."""
    return [Token(token.text, token.idx) for token in _english()(text) if not token.is_space]


def sentences(tokens: Sequence[Token]) -> list[list[Token]]:
    """Group tokens: a sentence ends with ``.``, ``!`` or ``?``."""
    grouped: list[list[Token]] = [[]]
    for token in tokens:
        grouped[-1].append(token)
        if token.text in (".", "!", "?"):
            grouped.append([])
    return [group for group in grouped if group]


def is_word(token: str) -> bool:
    """Return whether a token has a letter or a digit."""
    return any(character.isalnum() for character in token)


def with_case_of(original: str, new: str) -> str:
    """Return ``new`` with a capital first letter, if ``original`` has one."""
    return new[:1].upper() + new[1:] if original[:1].isupper() else new


# --- as the official tools do it ---------------------------------------------------------------------------------


def official_tokens(text: str) -> list[str]:
    """Return the tokens that TextFlint works on: spaCy's, doubled quotes unified, runs of spaces left out."""
    tokens = (token.text for token in _english()(text))
    return [token.replace("''", '"').replace("``", '"') for token in tokens if token.strip(" ")]


def treebank_tokens_of_last_sentence(text: str) -> list[str]:
    """Return the Penn Treebank tokens of a text's last sentence: the only one that the official drop methods keep.

    The official code splits sentences with NLTK's punkt model; this splits behind ``.``, ``!`` and ``?``.
    """
    from nltk.tokenize.destructive import NLTKWordTokenizer

    last = _SENTENCE_END.split(text.strip())[-1]
    return [str(token) for token in NLTKWordTokenizer().tokenize(last)]


#: What joining with spaces gets wrong -> how TextFlint repairs it, in this order. (It follows `untokenize` of the
#: metanl library.) The repair is not exact: brackets at either end keep their spaces.
_REPAIRS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(wrong), right)
    for wrong, right in (
        (r"`` ", '"'),
        (r" ''", '"'),
        (r"\. \. \.", "..."),
        (r" \( ", " ("),
        (r" \) ", ") "),
        (r" ([.,:;?!%]+)([ '\"`])", r"\1\2"),
        (r" ([.,:;?!%]+)$", r"\1"),
        (r" '", "'"),
        (r" n't", "n't"),
        (r"can not", "cannot"),
        (r" ` ", " '"),
        (r"([dD])o nt", r"\1ont"),
        (r" - ", "-"),
    )
)


def official_join(tokens: Sequence[str]) -> str:
    """Return the text that TextFlint makes of tokens."""
    text = " ".join(tokens)
    for wrong, right in _REPAIRS:
        text = wrong.sub(right, text)
    return text.strip()
