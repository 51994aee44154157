"""Parts of speech, and the forms of verbs and other words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError, PerturbationError
from lmms_eval_stability.tasks.perturbations.text.resources import Resources, Tagger

_SENTENCE_ENDS = (".", "!", "?")


class TaggerError(PerturbationError):
    """A tagger did not return one tag for each token."""


@lru_cache(maxsize=8)
def load_tagger(tagger: str | Tagger) -> Tagger:
    """Return the tagger of that name, or the function itself.

    Raises:
        MissingResourceError: there is none of that name, or its data is not installed; says what to install.
    """
    if callable(tagger):
        return tagger
    if tagger == "textblob":
        return _textblob()
    if tagger == "nltk":
        return _nltk()
    kind, _, name = tagger.partition(":")
    if kind == "spacy" and name:
        return _spacy(name)
    raise MissingResourceError(
        f"no tagger {tagger!r}; there are textblob, nltk and spacy:NAME of an installed pipeline"
    )


def why_tagger_missing(tagger: str | Tagger) -> str | None:
    """Return why a tagger cannot be used; None if it can. The default tagger, which comes along, is not loaded."""
    if tagger == "textblob":
        return None
    try:
        load_tagger(tagger)
    except MissingResourceError as error:
        return str(error)
    return None


def _textblob() -> Tagger:
    from textblob.en import parser

    return lambda tokens: [tag for _, tag in parser.find_tags(list(tokens))]


def _nltk() -> Tagger:
    import nltk

    try:
        nltk.pos_tag(["cat"])
    except LookupError as error:
        raise MissingResourceError(
            "the tagger nltk needs the data averaged_perceptron_tagger_eng, which is not installed:"
            " python -m nltk.downloader averaged_perceptron_tagger_eng"
        ) from error
    return lambda tokens: [tag for _, tag in nltk.pos_tag(list(tokens))]


def _spacy(name: str) -> Tagger:
    import spacy
    from spacy.tokens import Doc

    try:
        pipeline: Any = spacy.load(name, exclude=["parser", "ner", "lemmatizer"])
    except OSError as error:
        raise MissingResourceError(
            f"the tagger spacy:{name} needs the spaCy pipeline {name}, which is not installed:"
            f" python -m spacy download {name}"
        ) from error

    def tag(tokens: Sequence[str]) -> list[str]:
        doc = Doc(pipeline.vocab, words=list(tokens))
        for _, component in pipeline.pipeline:
            doc = component(doc)
        return [token.tag_ for token in doc]

    return tag


def tag_tokens(resources: Resources, tokens: Sequence[str]) -> list[str]:
    """Return the Penn Treebank tags of one sentence's tokens.

    Raises:
        MissingResourceError: see `load_tagger`.
        TaggerError: the tagger returned more or fewer tags than tokens.
    """
    if not tokens:
        return []
    tags = list(load_tagger(resources.tagger)(tokens))
    if len(tags) != len(tokens):
        raise TaggerError(f"tagger {tagger_name(resources.tagger)} returned {len(tags)} tags for {len(tokens)} tokens")
    return tags


def tag_sentences(resources: Resources, tokens: Sequence[str]) -> list[str]:
    """Return the tags of a text's tokens, tagged sentence by sentence; ``.``, ``!`` and ``?`` end a sentence."""
    tags: list[str] = []
    begin = 0
    for i, token in enumerate(tokens):
        if token in _SENTENCE_ENDS or i == len(tokens) - 1:
            tags += tag_tokens(resources, tokens[begin : i + 1])
            begin = i + 1
    return tags


@lru_cache(maxsize=20_000)
def tag_word(resources: Resources, word: str) -> str:
    """Return the tag of a word that stands alone."""
    return tag_tokens(resources, (word,))[0]


def tagger_name(tagger: str | Tagger) -> str:
    """Return what a record of a run says of the tagger."""
    if isinstance(tagger, str):
        return tagger
    return f"{getattr(tagger, '__module__', '?')}.{getattr(tagger, '__qualname__', type(tagger).__qualname__)}"


@lru_cache(maxsize=20_000)
def verb_forms(verb: str) -> tuple[str, ...]:
    """Return all forms of a verb other than the given one, sorted; none if the lexicon does not have it."""
    from lemminflect import getAllInflections, getAllLemmas

    word = verb.lower()
    lemmas = getAllLemmas(word)
    forms = {
        form
        for upos in ("VERB", "AUX")
        for lemma in lemmas.get(upos, ())
        for inflected in getAllInflections(lemma, upos=upos).values()
        for form in inflected
    }
    return tuple(sorted(forms - {word}))


@lru_cache(maxsize=20_000)
def inflect(lemma: str, tag: str) -> str | None:
    """Return a base form in the form that a Penn Treebank tag asks for; None if there is no such form."""
    if tag in ("NN", "NNP", "VB", "VBP", "JJ", "RB"):
        return lemma
    from lemminflect import getInflection

    forms = getInflection(lemma, tag.replace("NNPS", "NNS"))
    return str(forms[0]) if forms else None
