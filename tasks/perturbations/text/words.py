"""Methods that work on words between whitespace, and synonyms.

Official file: text_corruption/corruption_methods.py of adarobustness/corruption; TextFlint 0.1.0,
generation/transformation/UT, for the synonyms. The official code also turns all whitespace into single spaces; here it
stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
from lmms_eval_stability.tasks.perturbations.text.setting import Setting
from lmms_eval_stability.tasks.perturbations.text.substitution import substitute_words
from lmms_eval_stability.tasks.perturbations.text.tables import read_table
from lmms_eval_stability.tasks.perturbations.text.taggers import inflect, tag_sentences, tag_word
from lmms_eval_stability.tasks.perturbations.text.tokens import (
    Edit,
    Token,
    apply,
    replace,
    whitespace_words,
    with_case_of,
)
from lmms_eval_stability.tasks.perturbations.text.wordnet import WordNet, open_wordnet

#: What the official code puts in a word's place.
UNKNOWN = "[UNK]"

#: Forms of verbs that mostly stand beside another verb, where WordNet's synonyms do not fit.
_AUXILIARIES = frozenset(
    ("be", "am", "is", "are", "was", "were", "been", "being", "do", "does", "did", "have", "has", "had", "having")
)


def single_spaced(text: str, setting: Setting) -> str:
    """Return the text, with single spaces if the official quirks are asked for."""
    return " ".join(text.split()) if setting.official_quirks else text


def random_word_insert(text: str, setting: Setting) -> str:
    """Insert ``[UNK]`` at ``int(rate * words)`` random places."""
    text = single_spaced(text, setting)
    words = whitespace_words(text)
    slots: list[Token | None] = list(words)
    for _ in range(int(len(words) * setting.rate)):
        slots.insert(setting.rng.randint(0, len(slots)), None)
    edits: list[Edit] = []
    waiting = 0
    for slot in slots:
        if slot is None:
            waiting += 1
        elif waiting:
            edits.append(Edit(slot.start, slot.start, f"{UNKNOWN} " * waiting))
            waiting = 0
    return apply(text, [*edits, Edit(words[-1].end, words[-1].end, f" {UNKNOWN}" * waiting)])


def random_word_delete(text: str, setting: Setting) -> str:
    """Delete ``int(rate * words)`` random words.

    The official code deletes the first word that is equal to the drawn one, here it is the drawn one.
    """
    text = single_spaced(text, setting)
    words = whitespace_words(text)
    left = list(words)
    for _ in range(int(len(words) * setting.rate)):
        drawn = setting.rng.choice(left)
        if setting.official_quirks:
            drawn = next(word for word in left if word.text == drawn.text)
        left.remove(drawn)
    return _without(text, words, left)


def _without(text: str, words: Sequence[Token], left: Sequence[Token]) -> str:
    """Delete the words that are not left, of which there is at least one; no whitespace is left over at the end."""
    kept = set(left)
    last = max(i for i, word in enumerate(words) if word in kept)
    edits = [Edit(words[i].start, words[i + 1].start, "") for i in range(last) if words[i] not in kept]
    return apply(text, [*edits, Edit(words[last].end, words[-1].end, "")])


def random_word_swap(text: str, setting: Setting) -> str:
    """Swap two random words, ``int(rate * words)`` times.

    The official code draws the two words with replacement, looks them up by their text and so undoes about half of its
    swaps. Here all swapped places are different, so that none is undone.
    """
    text = single_spaced(text, setting)
    words = whitespace_words(text)
    order = [word.text for word in words]
    swaps = int(len(words) * setting.rate)
    if setting.official_quirks:
        for _ in range(swaps):
            first, second = setting.rng.choice(order), setting.rng.choice(order)
            order[order.index(first)] = second
            order[order.index(second)] = first
    else:
        places = setting.rng.sample(range(len(words)), 2 * swaps)
        for i, j in zip(places[::2], places[1::2], strict=True):
            order[i], order[j] = order[j], order[i]
    return apply(text, [replace(word, new) for word, new in zip(words, order, strict=True)])


def shuffle_order(text: str, setting: Setting) -> str:
    """Put all words in a random order."""
    text = single_spaced(text, setting)
    words = whitespace_words(text)
    order = [word.text for word in words]
    setting.rng.shuffle(order)
    return apply(text, [replace(word, new) for word, new in zip(words, order, strict=True)])


def drop_first(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the first word's place."""
    return _drop_ends(text, setting, first=True)


def drop_last(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the last word's place."""
    return _drop_ends(text, setting, last=True)


def drop_first_and_last(text: str, setting: Setting) -> str:
    """Put ``[UNK]`` in the places of the first and the last word."""
    return _drop_ends(text, setting, first=True, last=True)


def _drop_ends(text: str, setting: Setting, *, first: bool = False, last: bool = False) -> str:
    text = single_spaced(text, setting)
    words = whitespace_words(text)
    if setting.official_quirks and len(words) < 2:  # the official code makes two of one word, and one of none
        return f"{UNKNOWN} {UNKNOWN}" if first and last else UNKNOWN
    places = {words[0]} if first else set()
    if last:
        places.add(words[-1])
    return apply(text, [replace(word, UNKNOWN) for word in places])


# --- synonyms ----------------------------------------------------------------------------------------------------


def swap_syn_word_net(text: str, setting: Setting) -> str:
    """Some words become a WordNet synonym of themselves.

    Official: the first element of a Python set (so it depends on the interpreter's hash seed) of all lemmas of all
    synsets with the token's part of speech, satellite adjectives excepted; so that "dogs" becomes "dog", and "does"
    "cause". Reproduced here with the alphabetically first element. Corrected: a random one, in the word's own
    inflection; satellite adjectives count; auxiliary verbs and other parts of speech are left alone.
    """
    wordnet = open_wordnet(setting.resources.wordnet)
    tags: list[str] = []

    def official(i: int, word: str) -> list[str]:
        found = wordnet.synonyms(word.lower(), _wordnet_pos(tags[i]), satellites=_wordnet_pos(tags[i]) is None)
        return [synonym for synonym in found if synonym != word][:1]

    def corrected(i: int, word: str) -> list[str]:
        return _inflected_synonyms(wordnet, word.lower(), tags[i])

    synonyms = official if setting.official_quirks else corrected

    def eligible(words: Sequence[str]) -> list[bool]:
        tags[:] = tag_sentences(setting.resources, words)
        return [bool(synonyms(i, word)) for i, word in enumerate(words)]

    def candidate(i: int, word: str) -> str:
        if setting.official_quirks:
            return synonyms(i, word)[0]
        return with_case_of(word, setting.rng.choice(synonyms(i, word)))

    return substitute_words(text, setting, eligible, candidate, rate=setting.rate)


@lru_cache(maxsize=20_000)
def _inflected_synonyms(wordnet: WordNet, word: str, tag: str) -> list[str]:
    pos = _wordnet_pos(tag)
    if pos is None or word in _AUXILIARIES:
        return []
    own = {word, *wordnet.base_forms(word, pos)}
    lemmas = [lemma for lemma in wordnet.synonyms(word, pos) if lemma not in own and lemma == lemma.lower()]
    forms = {form for lemma in lemmas for form in [inflect(lemma, tag)] if form is not None and form != word}
    return sorted(forms)


def _wordnet_pos(tag: str) -> str | None:
    """Return WordNet's letter for a Penn Treebank tag; None for words that WordNet does not have."""
    return {"NN": "n", "VB": "v", "JJ": "a", "RB": "r"}.get(tag[:2])


def swap_syn_word_emb(text: str, setting: Setting) -> str:
    """Some words become one of their nearest words by word vector, of the same part of speech.

    As in the official code, the neighbour's part of speech is that of the word standing alone.
    """
    path = setting.resources.neighbours
    if path is None:
        raise MissingResourceError(NO_NEIGHBOURS)
    table = read_table(path)
    tags: list[str] = []

    def neighbours(i: int, word: str) -> list[str]:
        pos = _wordnet_pos(tags[i])
        known = table.get(word, () if setting.official_quirks else table.get(word.lower(), ()))
        return [other for other in known if pos is not None and _wordnet_pos(tag_word(setting.resources, other)) == pos]

    def eligible(words: Sequence[str]) -> list[bool]:
        tags[:] = tag_sentences(setting.resources, words)
        return [bool(neighbours(i, word)) for i, word in enumerate(words)]

    def candidate(i: int, word: str) -> str:
        drawn = setting.rng.sample(neighbours(i, word), 1)[0]
        return drawn if setting.official_quirks else with_case_of(word, drawn)

    return substitute_words(text, setting, eligible, candidate, rate=setting.rate)


#: Why `swap_syn_word_emb` cannot be made.
NO_NEIGHBOURS = (
    "swap_syn_word_emb needs a table of neighbours by word vector: a JSON file, word -> its nearest words (TextFlint's"
    " sim_words_dic.json, or the top 20 of GloVe); name it with LMMS_EVAL_STABILITY_TEXT_NEIGHBOURS=FILE"
)
