"""Replacing some of a text's words: which, how many, and in which order the random numbers are drawn."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import lru_cache

from lmms_eval_stability.tasks.perturbations.text.resources import word_list
from lmms_eval_stability.tasks.perturbations.text.setting import Setting
from lmms_eval_stability.tasks.perturbations.text.tokens import (
    apply,
    is_word,
    official_join,
    official_tokens,
    replace,
    tokenize,
)

#: All tokens of a text -> for each whether it may be replaced.
Eligible = Callable[[Sequence[str]], Sequence[bool]]
#: Index of a token, the token -> what may stand in its place, drawn at random; None where nothing may.
Candidate = Callable[[int, str], str | None]


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    return frozenset(word_list("stop_words"))


def is_stop_word(token: str) -> bool:
    """Return whether a token is a function word that is never replaced."""
    return token.lower() in _stop_words()


def substitute_words(
    text: str,
    setting: Setting,
    eligible: Eligible,
    candidate: Candidate,
    *,
    rate: float,
    most: int | None = None,
) -> str:
    """Replace ``max(1, int(rate * tokens))`` of a text's words, at most ``most``.

    Punctuation and stop words are left alone. Spacing and everything else stays as it is; with ``official_quirks`` the
    text is joined anew from its tokens, as TextFlint does.
    """
    if setting.official_quirks:
        return _official(text, setting, eligible, candidate, rate=rate, most=most)
    tokens = tokenize(text)
    words = [token.text for token in tokens]
    allowed = eligible(words)
    legal = [i for i, word in enumerate(words) if allowed[i] and is_word(word) and not is_stop_word(word)]
    chosen = setting.rng.sample(legal, min(_count(len(tokens), rate, most), len(legal)))
    drawn = ((i, candidate(i, words[i])) for i in sorted(chosen))
    return apply(text, [replace(tokens[i], new) for i, new in drawn if new is not None])


def _official(
    text: str, setting: Setting, eligible: Eligible, candidate: Candidate, *, rate: float, most: int | None
) -> str:
    """As TextFlint: a candidate for every word first (drawn twice, the second one counts), then which words."""
    words = official_tokens(text)
    allowed = eligible(words)
    legal = [
        i for i, word in enumerate(words) if allowed[i] and word not in string.punctuation and not is_stop_word(word)
    ]
    drawn = [(i, candidate(i, words[i])) for i in legal if candidate(i, words[i])]
    count = min(_count(len(words), rate, most), len(drawn))
    usable = [(i, new) for i, new in drawn if new]
    if count < len(usable):
        usable = setting.rng.sample(usable, count)
    if not usable:
        return text
    for i, new in usable:
        words[i] = new
    return official_join(words)


def _count(tokens: int, rate: float, most: int | None) -> int:
    count = max(1, int(rate * tokens))
    return count if most is None else min(count, most)
