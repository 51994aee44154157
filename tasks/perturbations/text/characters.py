"""Methods that change characters: recognition, typing and spelling errors, noise, punctuation.

Official files: text_corruption/corruption_methods.py of adarobustness/corruption for the four random ones, which have
nothing to correct; TextFlint 0.1.0, generation/transformation/UT, for the others, which replace words.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from random import Random

from lmms_eval_stability.tasks.perturbations.text.setting import Setting
from lmms_eval_stability.tasks.perturbations.text.substitution import substitute_words
from lmms_eval_stability.tasks.perturbations.text.tables import (
    Table,
    keyboard_table,
    misspelling_table,
    ocr_table,
)
from lmms_eval_stability.tasks.perturbations.text.tokens import (
    Edit,
    apply,
    is_word,
    official_join,
    official_tokens,
    tokenize,
    with_case_of,
)

#: What is inserted or put in a character's place: the 95 printable ASCII characters, in the official order.
PRINTABLE = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation + " "
_CLOSINGS = ("...", ".", ",", ";")
_BRACKETS = ('""', "{}", "[]", "()", "``", "【】")


def random_char_insert(text: str, setting: Setting) -> str:
    """Insert a printable character behind each non-space character, with probability `rate`."""
    rng, output = setting.rng, []
    for character in text:
        output.append(character)
        if character != " " and rng.random() < setting.rate:
            output.append(rng.choice(PRINTABLE))
    return "".join(output)


def random_char_replace(text: str, setting: Setting) -> str:
    """Put a printable character in each character's place, with probability `rate`."""
    rng = setting.rng
    return "".join(rng.choice(PRINTABLE) if rng.random() < setting.rate else character for character in text)


def random_char_delete(text: str, setting: Setting) -> str:
    """Delete each character, with probability `rate`."""
    return "".join(character for character in text if setting.rng.random() >= setting.rate)


def random_char_swap(text: str, setting: Setting) -> str:
    """Swap each character with one at any place of the text, with probability `rate`."""
    rng, characters = setting.rng, list(text)
    for i in range(len(characters)):
        if rng.random() < setting.rate:
            j = rng.choice(range(len(characters)))
            characters[i], characters[j] = characters[j], characters[i]
    return "".join(characters)


def ocr(text: str, setting: Setting) -> str:
    """In some words, one character becomes one that optical character recognition confuses it with."""
    return _one_character(text, setting, ocr_table())


def keyboard(text: str, setting: Setting) -> str:
    """In some words, one character becomes one on a neighbouring key."""
    return _one_character(text, setting, keyboard_table(setting.resources.keyboard))


def _one_character(text: str, setting: Setting, table: Table) -> str:
    rng = setting.rng

    def eligible(words: Sequence[str]) -> list[bool]:
        return [any(table.get(character) for character in word) for word in words]

    def candidate(_: int, word: str) -> str:
        i = rng.sample([i for i, character in enumerate(word) if table.get(character)], 1)[0]
        return word[:i] + rng.sample(table[word[i]], 1)[0] + word[i + 1 :]

    return substitute_words(text, setting, eligible, candidate, rate=setting.rate)


def spell_error(text: str, setting: Setting) -> str:
    """Some words become a listed misspelling of themselves."""
    rng, table = setting.rng, misspelling_table(setting.resources.misspellings)

    def misspellings(word: str) -> list[str]:
        exact = table.get(word)
        if exact is None and not setting.official_quirks:
            return [with_case_of(word, misspelling) for misspelling in table.get(word.lower(), ())]
        return list(exact or ())

    def eligible(words: Sequence[str]) -> list[bool]:
        return [bool(misspellings(word)) for word in words]

    def candidate(_: int, word: str) -> str:
        return rng.sample(misspellings(word), 1)[0]

    return substitute_words(text, setting, eligible, candidate, rate=setting.rate)


def typos(text: str, setting: Setting) -> str:
    """In some words, one letter is replaced, swapped with the next, inserted or deleted.

    The official code leaves words of one letter alone, and sometimes puts a letter in its own place or swaps two equal
    ones. Here a typing error always changes the word.
    """
    draw = _official_typo if setting.official_quirks else _typo

    def eligible(words: Sequence[str]) -> list[bool]:
        return [setting.official_quirks or len(word) > 1 for word in words]

    def candidate(_: int, word: str) -> str | None:
        return draw(word, setting.rng)

    return substitute_words(text, setting, eligible, candidate, rate=setting.rate)


def _alphabet(like: str) -> str:
    """Return digits, upper or lower case letters, whichever a character is like."""
    if like.isdigit():
        return string.digits
    return string.ascii_uppercase if like.isupper() else string.ascii_lowercase


def _typo(word: str, rng: Random) -> str:
    swappable = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    kind = rng.choice(("replace", "insert", "delete", "swap") if swappable else ("replace", "insert", "delete"))
    if kind == "swap":
        i = rng.choice(swappable)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == "insert":
        i = rng.randrange(len(word) + 1)
        return word[:i] + rng.choice(_alphabet(word[min(i, len(word) - 1)])) + word[i:]
    i = rng.randrange(len(word))
    if kind == "delete":
        return word[:i] + word[i + 1 :]
    return word[:i] + rng.choice(_alphabet(word[i]).replace(word[i], "")) + word[i + 1 :]


def _official_typo(word: str, rng: Random) -> str | None:
    kind = rng.choice(("replace", "swap", "insert", "delete"))
    if len(word) <= 1:
        return None if kind == "replace" else word
    places = {"replace": len(word), "swap": len(word) - 1, "insert": len(word) + 1, "delete": len(word)}
    i = rng.sample(range(places[kind]), 1)[0]
    if kind == "swap":
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == "delete":
        return word[:i] + word[i + 1 :]
    letter = rng.choice(_alphabet(word[min(i, len(word) - 1)]))
    return word[:i] + letter + word[i + (kind == "replace") :]


def punctuation(text: str, setting: Setting) -> str:
    """Put another mark in the place of the closing punctuation, and the whole between brackets or quotation marks.

    The official output has a space behind the opening bracket and before the closing one.
    """
    rng = setting.rng
    opening, closing = rng.sample(_BRACKETS, 1)[0]
    end = rng.sample(_CLOSINGS, 1)[0]
    if setting.official_quirks:
        words = official_tokens(text)
        while words and words[-1] in string.punctuation:
            words.pop()
        return official_join([opening, *words, end, closing])
    tokens = tokenize(text)
    last_word = next((token for token in reversed(tokens) if is_word(token.text)), None)
    if last_word is None:
        return text
    before, behind = tokens[0].start, tokens[-1].end
    return apply(text, [Edit(before, before, opening), Edit(last_word.end, behind, end + closing)])
