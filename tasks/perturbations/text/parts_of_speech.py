"""Methods that choose words by their part of speech.

Official files: text_corruption/corruption_methods.py of adarobustness/corruption; TextFlint 0.1.0,
generation/transformation/UT, for tense and adverbs. Tags are those of the tagger in `Resources`.

The official drop methods keep the last sentence alone, join its tokens with spaces (``bench ?``) and blank punctuation
too where everything else is blanked. Here every sentence stays, spacing stays, and only words are blanked.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval_stability.tasks.perturbations.text.resources import word_list
from lmms_eval_stability.tasks.perturbations.text.setting import Setting
from lmms_eval_stability.tasks.perturbations.text.substitution import substitute_words
from lmms_eval_stability.tasks.perturbations.text.taggers import tag_sentences, tag_tokens, verb_forms
from lmms_eval_stability.tasks.perturbations.text.tokens import (
    Edit,
    apply,
    is_word,
    official_join,
    official_tokens,
    replace,
    tokenize,
    treebank_tokens_of_last_sentence,
    with_case_of,
)
from lmms_eval_stability.tasks.perturbations.text.words import UNKNOWN

_NOUN, _VERB = "NN", "VB"


def drop_nn(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of every noun."""
    return _blank(text, setting, (_NOUN,), matching=True)


def drop_vb(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of every verb."""
    return _blank(text, setting, (_VERB,), matching=True)


def drop_vb_nn(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of every verb and noun."""
    return _blank(text, setting, (_VERB, _NOUN), matching=True)


def only_nn(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of every word but the nouns."""
    return _blank(text, setting, (_NOUN,), matching=False)


def only_vb(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of every word but the verbs."""
    return _blank(text, setting, (_VERB,), matching=False)


def only_vb_nn(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of every word but the verbs and nouns."""
    return _blank(text, setting, (_VERB, _NOUN), matching=False)


def _blank(text: str, setting: Setting, kinds: tuple[str, ...], *, matching: bool) -> str:
    if setting.official_quirks:
        official = treebank_tokens_of_last_sentence(text)
        tagged = zip(official, tag_tokens(setting.resources, official), strict=True)
        return " ".join(UNKNOWN if tag.startswith(kinds) == matching else word for word, tag in tagged)
    tokens = tokenize(text)
    tags = tag_sentences(setting.resources, [token.text for token in tokens])
    return apply(
        text,
        [
            replace(token, UNKNOWN)
            for token, tag in zip(tokens, tags, strict=True)
            if is_word(token.text) and tag.startswith(kinds) == matching
        ],
    )


def drop_rand_one_nn(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of one random noun."""
    return _blank_one(text, setting, _NOUN)


def drop_rand_one_vb(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the place of one random verb."""
    return _blank_one(text, setting, _VERB)


def _blank_one(text: str, setting: Setting, kind: str) -> str:
    """Blank one token; officially every whitespace word equal to it, so none where a mark follows (``hand?``)."""
    if setting.official_quirks:
        official = treebank_tokens_of_last_sentence(text)
        tags = tag_tokens(setting.resources, official)
        found = [word for word, tag in zip(official, tags, strict=True) if tag.startswith(kind)]
        drawn = setting.rng.sample(found, 1)[0] if found else None
        return " ".join(UNKNOWN if word == drawn else word for word in text.split())
    tokens = tokenize(text)
    tags = tag_sentences(setting.resources, [token.text for token in tokens])
    candidates = [
        token for token, tag in zip(tokens, tags, strict=True) if is_word(token.text) and tag.startswith(kind)
    ]
    return apply(text, [replace(token, UNKNOWN) for token in setting.rng.sample(candidates, min(1, len(candidates)))])


def tense(text: str, setting: Setting) -> str:
    """One verb in ten, at least one and at most ten, becomes another form of itself.

    Present forms of "be" and "have" are stop words and stay. Forms come from lemminflect's lexicon, TextFlint has a
    table of its own: outputs differ, whatever the quirks.
    """
    tags: list[str] = []

    def eligible(words: Sequence[str]) -> list[bool]:
        tags[:] = tag_sentences(setting.resources, words)
        return [tag.startswith(_VERB) and bool(verb_forms(word)) for word, tag in zip(words, tags, strict=True)]

    def candidate(_: int, word: str) -> str:
        return with_case_of(word, setting.rng.sample(verb_forms(word), 1)[0])

    return substitute_words(text, setting, eligible, candidate, rate=0.1, most=10)


def insert_adv(text: str, setting: Setting) -> str:
    """Insert a random adverb before every verb, auxiliaries included. The list of adverbs is this package's own."""
    adverbs = word_list("adverbs")
    if setting.official_quirks:
        official = official_tokens(text)
        tags = tag_sentences(setting.resources, official)
        words = [
            [setting.rng.sample(adverbs, 1)[0], word] if tag.startswith(_VERB) else [word]
            for word, tag in zip(official, tags, strict=True)
        ]
        return official_join([word for group in words for word in group])
    tokens = tokenize(text)
    tags = tag_sentences(setting.resources, [token.text for token in tokens])
    return apply(
        text,
        [
            Edit(token.start, token.start, f"{setting.rng.choice(adverbs)} ")
            for token, tag in zip(tokens, tags, strict=True)
            if tag.startswith(_VERB)
        ],
    )
