"""Methods that add to or reformulate the whole text without a model.

Official files: TextFlint 0.1.0, generation/transformation/UT/append_irr.py and SA/double_denial.py. The phrases,
proverbs and denials are this package's own: TextFlint's are under the GPL.
"""

from __future__ import annotations

from functools import lru_cache

from lmms_eval_stability.tasks.perturbations.text.resources import word_list
from lmms_eval_stability.tasks.perturbations.text.setting import Setting
from lmms_eval_stability.tasks.perturbations.text.tokens import (
    apply,
    official_join,
    official_tokens,
    replace,
    tokenize,
    with_case_of,
)

#: Texts of at least this many tokens also get a proverb behind them.
_LONG = 10
#: The two entries of the official table of 26 that questions mostly meet. "like" is hardly ever a verb in them, so that
#: the corrected table leaves it out.
_OFFICIAL_DENIALS = {"good": "not poor", "like": "don't refuse"}


def append_irr(text: str, setting: Setting) -> str:
    """Put a random irrelevant phrase before the text and, if it has ten tokens or more, a random proverb behind it."""
    rng = setting.rng
    opening = rng.sample(word_list("openings"), 1)[0]
    tokens = official_tokens(text) if setting.official_quirks else [token.text for token in tokenize(text)]
    proverb = rng.sample(word_list("proverbs"), 1)[0] if len(tokens) >= _LONG else None
    if not setting.official_quirks:
        return f"{opening} {text}" if proverb is None else f"{opening} {text} {proverb}"
    behind = [] if proverb is None else official_tokens(proverb)
    return official_join([*official_tokens(opening), *tokens, *behind])


def double_denial(text: str, setting: Setting) -> str:
    """Replace every listed word with the denial of its opposite (good: not poor). Most questions have no such word."""
    denials = _OFFICIAL_DENIALS if setting.official_quirks else _denials()
    if setting.official_quirks:
        words = official_tokens(text)
        if not any(word.lower() in denials for word in words):
            return text
        replaced = [denials[word.lower()].split() if word.lower() in denials else [word] for word in words]
        return official_join([word for group in replaced for word in group])
    return apply(
        text,
        [
            replace(token, with_case_of(token.text, denials[token.text.lower()]))
            for token in tokenize(text)
            if token.text.lower() in denials
        ],
    )


@lru_cache(maxsize=1)
def _denials() -> dict[str, str]:
    """Return word -> its double denial, from lines ``word: denial``."""
    pairs = (line.partition(":") for line in word_list("denials"))
    return {word.strip(): denial.strip() for word, _, denial in pairs}
