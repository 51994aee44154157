"""The 35 methods, and the function that applies one level."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lmms_eval_stability.tasks.perturbations.entries import (
    Level,
    Need,
    Perturbation,
    UnknownPerturbationError,
    UnreadableInputError,
)
from lmms_eval_stability.tasks.perturbations.text import characters, parts_of_speech, sentences, words
from lmms_eval_stability.tasks.perturbations.text.neural import MODELS, rewriting
from lmms_eval_stability.tasks.perturbations.text.resources import Resources
from lmms_eval_stability.tasks.perturbations.text.setting import RATES, Setting

_OWN = "text_corruption/corruption_methods.py, {}_corruption"

#: Method -> the function that applies it.
_FUNCTIONS: dict[str, Callable[[str, Setting], str]] = {
    function.__name__: function
    for function in (
        characters.ocr,
        characters.punctuation,
        characters.typos,
        characters.keyboard,
        characters.spell_error,
        characters.random_char_insert,
        characters.random_char_replace,
        characters.random_char_swap,
        characters.random_char_delete,
        parts_of_speech.tense,
        sentences.double_denial,
        parts_of_speech.insert_adv,
        sentences.append_irr,
        words.random_word_insert,
        parts_of_speech.drop_nn,
        parts_of_speech.drop_rand_one_nn,
        parts_of_speech.drop_vb,
        parts_of_speech.drop_vb_nn,
        parts_of_speech.only_nn,
        parts_of_speech.only_vb,
        parts_of_speech.only_vb_nn,
        parts_of_speech.drop_rand_one_vb,
        words.drop_first,
        words.drop_last,
        words.drop_first_and_last,
        words.shuffle_order,
        words.random_word_delete,
        words.swap_syn_word_emb,
        words.swap_syn_word_net,
        words.random_word_swap,
    )
} | {method: rewriting(method) for method in MODELS}


def _method(
    name: str,
    paper_name: str,
    group: str,
    *,
    severities: int = 1,
    deterministic: bool = False,
    needs: tuple[Need, ...] = (),
    via: str = "",
) -> Perturbation:
    source = "; ".join(filter(None, (_OWN.format(name), via)))
    return Perturbation(name, paper_name, "text", group, severities, deterministic, source, needs)


_FIVE = len(RATES)
_TAGGER: tuple[Need, ...] = ("tagger",)
_MODEL: tuple[Need, ...] = ("model",)

#: The methods of Chen et al. 2023 in the order of their table of text corruptions, which is that of the official code:
#: characters, style, additions, deletions by part of speech, positions, substitutions. Groups name what is changed.
METHODS: dict[str, Perturbation] = {
    method.name: method
    for method in (
        _method("ocr", "OCR", "character", severities=_FIVE, via="TextFlint 0.1.0, UT/ocr.py"),
        _method("punctuation", "Punct", "character", via="TextFlint 0.1.0, UT/punctuation.py"),
        _method("typos", "Typos", "character", severities=_FIVE, via="TextFlint 0.1.0, UT/typos.py"),
        _method("keyboard", "Keyboard", "character", severities=_FIVE, via="TextFlint 0.1.0, UT/keyboard.py"),
        _method(
            "spell_error", "Spelling Error", "character", severities=_FIVE, via="TextFlint 0.1.0, UT/spelling_error.py"
        ),
        _method("random_char_insert", "char random insert", "character", severities=_FIVE),
        _method("random_char_replace", "char random replace", "character", severities=_FIVE),
        _method("random_char_swap", "char random swap", "character", severities=_FIVE),
        _method("random_char_delete", "char random delete", "character", severities=_FIVE),
        _method("to_passive", "Passive", "sentence", deterministic=True, needs=_MODEL, via="Styleformer"),
        _method("tense", "Tense", "word", needs=_TAGGER, via="TextFlint 0.1.0, UT/tense.py"),
        _method("to_formal", "Formal", "sentence", deterministic=True, needs=_MODEL, via="Styleformer"),
        _method("to_casual", "Casual", "sentence", deterministic=True, needs=_MODEL, via="Styleformer"),
        _method("to_active", "Active", "sentence", deterministic=True, needs=_MODEL, via="Styleformer"),
        _method("double_denial", "Double Neg", "word", deterministic=True, via="TextFlint 0.1.0, SA/double_denial.py"),
        _method("insert_adv", "InsertAdv", "word", needs=_TAGGER, via="TextFlint 0.1.0, UT/insert_adv.py"),
        _method("append_irr", "AppendIrr", "sentence", via="TextFlint 0.1.0, UT/append_irr.py"),
        _method("random_word_insert", "Random Insert", "word", severities=_FIVE),
        _method("drop_nn", "Drop NN", "word", deterministic=True, needs=_TAGGER),
        _method("drop_rand_one_nn", "Drop Rand NN", "word", needs=_TAGGER),
        _method("drop_vb", "DropVB", "word", deterministic=True, needs=_TAGGER),
        _method("drop_vb_nn", "Drop VB & NN", "word", deterministic=True, needs=_TAGGER),
        _method("only_nn", "Only NN", "word", deterministic=True, needs=_TAGGER),
        _method("only_vb", "Only VB", "word", deterministic=True, needs=_TAGGER),
        _method("only_vb_nn", "Only NN & VB", "word", deterministic=True, needs=_TAGGER),
        _method("drop_rand_one_vb", "Drop Rand VB", "word", needs=_TAGGER),
        _method("drop_first", "Drop First", "word", deterministic=True),
        _method("drop_last", "Drop Last", "word", deterministic=True),
        _method("drop_first_and_last", "Drop First and Last", "word", deterministic=True),
        _method("shuffle_order", "Shuffle Order", "word"),
        _method("random_word_delete", "Random Delete", "word", severities=_FIVE),
        _method(
            "swap_syn_word_emb",
            "SwapSyn Word Embd",
            "word",
            severities=_FIVE,
            needs=("tagger", "neighbours"),
            via="TextFlint 0.1.0, UT/swap_syn_word_embedding.py",
        ),
        _method(
            "swap_syn_word_net",
            "SwapSyn WordNet",
            "word",
            severities=_FIVE,
            needs=("tagger", "wordnet"),
            via="TextFlint 0.1.0, UT/swap_syn_wordnet.py",
        ),
        _method(
            "back_trans",
            "Back Trans",
            "sentence",
            deterministic=True,
            needs=_MODEL,
            via="TextFlint 0.1.0, UT/back_trans.py",
        ),
        _method("random_word_swap", "Random Swap", "word", severities=_FIVE),
    )
}


def perturb_text(
    text: str,
    method: str,
    severity: int,
    *,
    seed: int,
    official_quirks: bool = False,
    resources: Resources | None = None,
) -> str:
    """Return a text perturbed at one level.

    The output depends on the arguments and the resources alone: the only generator is ``random.Random(seed)``. A text
    without a visible character is returned as it is. So is, by any method, a text in which it finds nothing to change.

    Args:
        text: a question, of any length.
        method: name in `METHODS`.
        severity: from 1 to the method's number of severities.
        seed: of the random numbers.
        official_quirks: reproduce what the official code does where it departs from the method's description.
        resources: what the method may use; default: from the environment (see `Resources.from_environment`).

    Raises:
        UnknownPerturbationError: there is no such method or severity.
        UnreadableInputError: ``text`` is not text, or has code points that no character has.
        MissingResourceError: the method needs a file or model that is not there; says how to get it.
    """
    entry = METHODS.get(method)
    if entry is None:
        raise UnknownPerturbationError(f"no text perturbation '{method}'; there are {', '.join(METHODS)}")
    if type(severity) is not int or Level(method, severity) not in entry.levels:
        raise UnknownPerturbationError(f"{method} has severities 1 to {entry.severities}, not {severity!r}")
    if not isinstance(text, str):
        raise UnreadableInputError(f"a question must be text, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnreadableInputError(f"a question is not valid Unicode: {error}") from error
    if not text.strip():
        return text
    resources = Resources.from_environment() if resources is None else resources
    return _FUNCTIONS[method](text, Setting(Random(seed), severity, official_quirks, resources))
