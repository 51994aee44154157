"""The text methods: their list, their determinism, what each does by default, and input that is hostile."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import string
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmms_eval_stability.tasks.perturbations.entries import (
    Level,
    MissingResourceError,
    UnknownPerturbationError,
    UnreadableInputError,
)
from lmms_eval_stability.tasks.perturbations.text import METHODS, Resources, available_levels, perturb_text
from lmms_eval_stability.tasks.perturbations.text.tables import keyboard_table, misspelling_table, ocr_table
from lmms_eval_stability.tasks.perturbations.text.tokens import official_join, official_tokens, whitespace_words

QUESTION = "Is the tall man near the bench wearing a red hat, or does his dog have it?"
#: Needs nothing that is not installed with the package.
PLAIN = Resources()
OFFLINE = [level for method in METHODS.values() if set(method.needs) <= {"tagger"} for level in method.levels]

#: Table of text corruptions of Chen et al. 2023, as Sun et al. 2025 (table 8) repeat it: name, number of severities.
PAPER = (
    *(("OCR", 5), ("Punct", 1), ("Typos", 5), ("Keyboard", 5), ("Spelling Error", 5)),
    *(("char random insert", 5), ("char random replace", 5), ("char random swap", 5), ("char random delete", 5)),
    *(("Passive", 1), ("Tense", 1), ("Formal", 1), ("Casual", 1), ("Active", 1), ("Double Neg", 1)),
    *(("InsertAdv", 1), ("AppendIrr", 1), ("Random Insert", 5)),
    *(("Drop NN", 1), ("Drop Rand NN", 1), ("DropVB", 1), ("Drop VB & NN", 1)),
    *(("Only NN", 1), ("Only VB", 1), ("Only NN & VB", 1), ("Drop Rand VB", 1)),
    *(("Drop First", 1), ("Drop Last", 1), ("Drop First and Last", 1), ("Shuffle Order", 1), ("Random Delete", 5)),
    *(("SwapSyn Word Embd", 5), ("SwapSyn WordNet", 5), ("Back Trans", 1), ("Random Swap", 5)),
)


def perturbed(text: str, method: str, severity: int = 1, *, seed: int = 0, quirks: bool = False) -> str:
    return perturb_text(text, method, severity, seed=seed, official_quirks=quirks, resources=PLAIN)


def outputs(text: str, method: str, severity: int = 1, *, quirks: bool = False, n: int = 200) -> set[str]:
    return {perturbed(text, method, severity, seed=seed, quirks=quirks) for seed in range(n)}


# --- the list ----------------------------------------------------------------------------------------------------


def test_methods_are_the_papers_35_with_87_levels() -> None:
    assert [(method.paper_name, method.severities) for method in METHODS.values()] == list(PAPER)
    levels = [level for method in METHODS.values() for level in method.levels]
    assert len(METHODS) == 35
    assert len(set(levels)) == len(levels) == 87
    assert sum(method.severities == 5 for method in METHODS.values()) == 13
    assert {method.severities for method in METHODS.values()} == {1, 5}


def test_entries_say_what_a_caller_needs_to_know() -> None:
    for name, method in METHODS.items():
        assert name == method.name
        assert method.modality == "text"
        assert method.group in ("character", "word", "sentence")
        assert f"{name}_corruption" in method.source
    assert {name for name, method in METHODS.items() if "model" in method.needs} == {
        *("to_passive", "to_active", "to_formal", "to_casual", "back_trans")
    }
    assert METHODS["swap_syn_word_net"].needs == ("tagger", "wordnet")
    assert METHODS["swap_syn_word_emb"].needs == ("tagger", "neighbours")
    assert len(OFFLINE) == 72


@pytest.mark.parametrize("level", OFFLINE, ids=lambda level: f"{level.method}-{level.severity}")
def test_deterministic_methods_ignore_the_seed_and_the_others_do_not(level: Level) -> None:
    found = outputs(QUESTION, level.method, level.severity, n=40)
    assert (len(found) == 1) == METHODS[level.method].deterministic


@pytest.mark.parametrize(
    ("method", "severity"),
    [("glass_blur", 1), ("ocr", 0), ("ocr", 6), ("drop_nn", 2), ("ocr", True), ("ocr", "1"), ("ocr", 1.0)],
)
def test_unknown_levels_are_refused_by_name(method: str, severity: int) -> None:
    with pytest.raises(UnknownPerturbationError, match=method):
        perturbed(QUESTION, method, severity)


@pytest.mark.parametrize("text", [b"what", None, 3, "\ud800 alone"])
def test_what_is_not_text_is_refused(text: str) -> None:
    with pytest.raises(UnreadableInputError):
        perturbed(text, "ocr")


# --- same key, same output ---------------------------------------------------------------------------------------

_SCRIPT = """
import json, random, sys
from lmms_eval_stability.tasks.perturbations.text import METHODS, Resources, perturb_text
random.seed(int(sys.argv[1]))
levels = [l for m in METHODS.values() if set(m.needs) <= {"tagger"} for l in m.levels]
random.shuffle(levels)
done = {f"{l.method}-{l.severity}-{q}": perturb_text(sys.argv[2], l.method, l.severity, seed=5, official_quirks=q,
        resources=Resources()) for l in levels for q in (False, True)}
print(json.dumps(done, sort_keys=True))
"""


def test_outputs_depend_neither_on_the_hash_seed_nor_on_the_order_nor_on_the_global_generator() -> None:
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "1", QUESTION],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    here = {
        f"{level.method}-{level.severity}-{quirks}": perturbed(
            QUESTION, level.method, level.severity, seed=5, quirks=quirks
        )
        for level in OFFLINE
        for quirks in (False, True)
    }
    assert json.loads(process.stdout) == here


def test_the_global_generator_is_left_alone() -> None:
    random.seed(3)
    state = random.getstate()
    for level in OFFLINE:
        perturbed(QUESTION, level.method, level.severity)
    assert random.getstate() == state


def test_importing_the_package_imports_none_of_the_libraries() -> None:
    code = (
        "import sys; from lmms_eval_stability.tasks.perturbations.text import METHODS, perturb_text, available_levels;"
        "available_levels();"
        "print([m for m in ('spacy', 'textblob', 'nltk', 'lemminflect', 'torch', 'transformers') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


hostile = st.text(max_size=60) | st.text(
    alphabet=st.sampled_from(" \n\t\u3000\u200b'\"`()[]{}.,?!-_/\\&<>#%aAiI09éßİ中😀\u0301👩\u200d👧"), max_size=40
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=hostile, seed=st.integers(0, 2**64), level=st.sampled_from(OFFLINE), quirks=st.booleans())
def test_any_text_is_perturbed_without_a_crash_and_always_alike(
    text: str, seed: int, level: Level, quirks: bool
) -> None:
    made = perturbed(text, level.method, level.severity, seed=seed, quirks=quirks)
    assert isinstance(made, str)
    made.encode("utf-8")
    assert perturbed(text, level.method, level.severity, seed=seed, quirks=quirks) == made
    if not text.strip():
        assert made == text


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("level", OFFLINE, ids=lambda level: f"{level.method}-{level.severity}")
def test_2000_words_are_perturbed(level: Level, quirks: bool) -> None:
    if level.severity not in (1, 5):
        level = Level(level.method, 5)
    text = " ".join(random.Random(1).choices([*QUESTION.split(), "good", "中文", "naïve", "\n"], k=2000))
    made = perturbed(text, level.method, level.severity, seed=1, quirks=quirks)
    assert made != text
    assert made == perturbed(text, level.method, level.severity, seed=1, quirks=quirks)


def test_one_word_and_one_letter() -> None:
    for level in OFFLINE:
        for text in ("Why?", "a", "?", "7"):
            assert isinstance(perturbed(text, level.method, level.severity), str)


# --- characters --------------------------------------------------------------------------------------------------


def test_random_characters_change_their_share() -> None:
    text = "x" * 20_000
    for severity, rate in ((1, 0.1), (3, 0.3), (5, 0.5)):
        deleted = perturbed(text, "random_char_delete", severity)
        inserted = perturbed(text, "random_char_insert", severity)
        assert len(deleted) / len(text) == pytest.approx(1 - rate, abs=0.02)
        assert len(inserted) / len(text) == pytest.approx(1 + rate, abs=0.02)
        replaced = perturbed(text, "random_char_replace", severity)
        assert len(replaced) == len(text)
        # One replacement in 95 is by the same character.
        assert sum(a != b for a, b in zip(text, replaced, strict=True)) / len(text) == pytest.approx(rate, abs=0.02)


def test_nothing_is_inserted_behind_a_space_and_swaps_keep_all_characters() -> None:
    assert perturbed(" " * 50 + "a", "random_char_insert", 5).startswith(" " * 50)
    for seed in range(20):
        assert sorted(perturbed(QUESTION, "random_char_swap", 5, seed=seed)) == sorted(QUESTION)


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    old, new = official_tokens(before), official_tokens(after)
    assert len(old) == len(new)
    return [(a, b) for a, b in zip(old, new, strict=True) if a != b]


def test_recognition_errors_are_one_character_of_the_table_and_leave_the_rest() -> None:
    table = ocr_table()
    for seed in range(50):
        made = perturbed(QUESTION, "ocr", 5, seed=seed)
        assert len(made) == len(QUESTION)
        differing = [(a, b) for a, b in zip(QUESTION, made, strict=True) if a != b]
        assert differing
        assert all(b in table[a] for a, b in differing)


def test_recognition_table_is_symmetric() -> None:
    table = ocr_table()
    assert all(source in table[target] for source, targets in table.items() for target in targets)
    assert set(table["o"]) == {"u", "0"}
    assert "q" not in table["9"]


def test_keyboard_neighbours_are_mutual_and_touch() -> None:
    table = keyboard_table(None)
    assert set("".join(table["g"])) == set("FTYHBVftyhbv")
    assert set("".join(table["q"])) == set("12!@WwAa")
    assert "p" not in table["a"]
    for key, neighbours in table.items():
        assert key not in neighbours
        assert all(key in table[neighbour] for neighbour in neighbours)
    letters = set(string.ascii_letters + string.digits)
    assert letters <= set(table)


def test_the_number_of_changed_words_is_a_share_of_all_tokens_and_at_least_one() -> None:
    counts = {
        severity: len(changed_words(QUESTION, perturbed(QUESTION, "keyboard", severity))) for severity in (1, 2, 4)
    }
    tokens = len(official_tokens(QUESTION))
    assert tokens == 19
    assert counts == {1: 1, 2: 3, 4: 7}
    assert len(changed_words("Is it wet?", perturbed("Is it wet?", "keyboard", 1))) == 1


def test_stop_words_and_punctuation_are_never_misspelt() -> None:
    kept = {"Is", "the", "a", "or", "his", "have", "it", ",", "?"}
    for method in ("typos", "keyboard", "ocr", "spell_error"):
        for seed in range(60):
            old, new = official_tokens(QUESTION), official_tokens(perturbed(QUESTION, method, 5, seed=seed))
            if len(old) == len(new):  # a typing error can split a token
                assert all(a == b for a, b in zip(old, new, strict=True) if a in kept), method


def test_a_typing_error_always_changes_the_word() -> None:
    for word in ("aa", "11", "book", "Aa"):
        made = outputs(word, "typos", 1)
        assert word not in made
        assert len(made) > 5
        assert all(abs(len(new) - len(word)) <= 1 for new in made)
    assert "book" in outputs("book", "typos", 1, quirks=True)


def test_misspellings_are_listed_and_keep_the_capital() -> None:
    assert outputs("What?", "spell_error") == {"Waht?", "Wath?", "Whta?", "Wat?"}
    table = misspelling_table(None)
    assert "there" in table["their"]
    assert "their" in table["there"]
    assert all(word not in others for word, others in table.items())


def test_spacing_and_quotes_stay_outside_the_changed_words() -> None:
    text = "Does  the sign\n(on the left) say \"stop\"  - or 'go'?"
    for method in ("ocr", "keyboard", "typos", "spell_error", "double_denial", "drop_nn", "tense"):
        made = perturbed(text, method)
        spaces = [character for character in made if character.isspace()]
        assert spaces == [character for character in text if character.isspace()], method
        assert {"(", ")", '"', "?"} <= set(made), method


def test_punctuation_is_replaced_and_the_question_bracketed() -> None:
    made = outputs("Is it wet?!", "punctuation")
    opening, closing = ('"', "{", "[", "(", "`", "【"), ('"', "}", "]", ")", "`", "】")
    expected = {
        f"{a}Is it wet{end}{b}" for a, b in zip(opening, closing, strict=True) for end in ("...", ".", ",", ";")
    }
    assert made == expected
    assert perturbed("?!", "punctuation") == "?!"


# --- words -------------------------------------------------------------------------------------------------------


def test_words_are_inserted_deleted_and_swapped_in_their_number() -> None:
    words = QUESTION.split()
    for severity, number in ((1, 1), (3, 5), (5, 8)):
        for seed in range(30):
            inserted = perturbed(QUESTION, "random_word_insert", severity, seed=seed).split()
            assert inserted.count("[UNK]") == number
            assert [word for word in inserted if word != "[UNK]"] == words
            deleted = perturbed(QUESTION, "random_word_delete", severity, seed=seed).split()
            assert len(deleted) == len(words) - number
            rest = iter(words)
            assert all(word in rest for word in deleted), "order is kept"
            assert sorted(perturbed(QUESTION, "random_word_swap", severity, seed=seed).split()) == sorted(words)


def test_one_swap_swaps_two_places() -> None:
    text = "a b c d e f g h i j"
    made = outputs(text, "random_word_swap")
    assert all(sum(x != y for x, y in zip(text.split(), new.split(), strict=True)) == 2 for new in made)
    assert len(made) == 45, "all pairs of places"
    assert text in outputs(text, "random_word_swap", quirks=True), "officially about half undo themselves"


def test_the_drawn_word_is_deleted_not_the_first_equal_one() -> None:
    text = "x a x b x c d e f g"
    assert "x a x b c d e f g" in outputs(text, "random_word_delete")
    assert "x a x b c d e f g" not in outputs(text, "random_word_delete", quirks=True)


def test_no_word_is_inserted_into_a_short_question_at_severity_1() -> None:
    for method in ("random_word_insert", "random_word_delete", "random_word_swap"):
        assert outputs("What color is the small circle over there?", method, 1) == {
            "What color is the small circle over there?"
        }


def test_dropped_ends() -> None:
    assert perturbed("What is\n this?", "drop_first") == "[UNK] is\n this?"
    assert perturbed("What is\n this?", "drop_last") == "What is\n [UNK]"
    assert perturbed(" What is this? ", "drop_first_and_last") == " [UNK] is [UNK] "
    assert perturbed("Why?", "drop_first_and_last") == "[UNK]"
    assert perturbed("Why?", "drop_first_and_last", quirks=True) == "[UNK] [UNK]"
    assert perturbed("What is\n this?", "drop_first", quirks=True) == "[UNK] is this?"


def test_shuffled_words_stay_in_the_layout() -> None:
    made = outputs("a b\nc  d", "shuffle_order")
    assert len(made) == 24
    assert all(sorted(new.split()) == ["a", "b", "c", "d"] and new[3] == "\n" and new[5:7] == "  " for new in made)


# --- parts of speech ---------------------------------------------------------------------------------------------


def test_parts_of_speech_are_blanked_in_place_in_every_sentence() -> None:
    text = "Look at the cat. Is it sitting on the bench?"
    assert perturbed(text, "drop_nn") == "Look at the [UNK]. Is it sitting on the [UNK]?"
    assert perturbed(text, "drop_vb") == "[UNK] at the cat. [UNK] it [UNK] on the bench?"
    assert perturbed(text, "drop_vb_nn") == "[UNK] at the [UNK]. [UNK] it [UNK] on the [UNK]?"
    assert perturbed(text, "only_nn") == "[UNK] [UNK] [UNK] cat. [UNK] [UNK] [UNK] [UNK] [UNK] bench?"
    assert perturbed(text, "only_vb") == "Look [UNK] [UNK] [UNK]. Is [UNK] sitting [UNK] [UNK] [UNK]?"
    assert perturbed(text, "only_vb_nn") == "Look [UNK] [UNK] cat. Is [UNK] sitting [UNK] [UNK] bench?"
    assert perturbed(text, "drop_nn", quirks=True) == "Is it sitting on the [UNK] ?"


def test_one_noun_is_blanked_also_before_a_mark() -> None:
    text = "Is the man or the man holding a hat?"
    assert outputs(text, "drop_rand_one_nn") == {
        "Is the [UNK] or the man holding a hat?",
        "Is the man or the [UNK] holding a hat?",
        "Is the man or the man holding a [UNK]?",
    }
    assert outputs(text, "drop_rand_one_nn", quirks=True) == {text, "Is the [UNK] or the [UNK] holding a hat?"}
    assert outputs(text, "drop_rand_one_vb") == {
        "[UNK] the man or the man holding a hat?",
        "Is the man or the man [UNK] a hat?",
    }
    assert perturbed("Of what?", "drop_rand_one_nn") == "Of what?"


def test_one_verb_changes_its_form() -> None:
    assert outputs("What was he throwing?", "tense") == {
        *(f"What {form} he throwing?" for form in ("am", "are", "be", "been", "being", "is", "were")),
        *(f"What was he {form}?" for form in ("throw", "threw", "thrown", "throws")),
    }
    assert perturbed("Is the cat blue?", "tense") == "Is the cat blue?", "a stop word, as officially"
    assert {word.split()[0] for word in outputs("Does the clock work?", "tense")} >= {"Did", "Doing", "Done"}


def test_an_adverb_stands_before_every_verb() -> None:
    for quirks in (False, True):
        for seed in range(20):
            made = perturbed("Is it sitting on the bench?", "insert_adv", seed=seed, quirks=quirks).split()
            assert [made[1], *made[2:3], *made[4:]] == ["Is", "it", "sitting", "on", "the", "bench?"]
            assert made[0].endswith("ly") or made[0] in ("seldom", "sometimes")


def test_a_tagger_can_be_given() -> None:
    def all_nouns(tokens: object) -> list[str]:
        return ["NN"] * len(tokens)  # type: ignore[arg-type]

    resources = Resources(tagger=all_nouns)
    assert perturb_text("Is it?", "drop_nn", 1, seed=0, resources=resources) == "[UNK] [UNK]?"


# --- sentences ---------------------------------------------------------------------------------------------------


def test_denials_are_of_the_opposite() -> None:
    assert perturbed("Good place or bad?", "double_denial") == "Not poor place or not good?"
    assert perturbed("Good place or bad?", "double_denial", quirks=True) == "not poor place or bad?"
    assert perturbed("What is left?", "double_denial") == "What is left?"


def test_irrelevant_phrases_stand_before_and_behind_long_questions_behind_too() -> None:
    short, long = "Is it wet?", "Is it wet or is it a dry and sunny day?"
    for seed in range(20):
        made = perturbed(short, "append_irr", seed=seed)
        assert made.endswith(f" {short}")
        made = perturbed(long, "append_irr", seed=seed)
        before, _, behind = made.partition(long)
        assert before.endswith(" ")
        assert behind.endswith(".")
    assert len(outputs(short, "append_irr")) > 20


# --- what is shared ----------------------------------------------------------------------------------------------


def test_whitespace_words_are_those_of_split() -> None:
    text = " a\u3000b\x1cc\u00a0d\n e\u200bf "
    assert [word.text for word in whitespace_words(text)] == text.split()
    assert all(text[word.start : word.end] == word.text for word in whitespace_words(text))


@given(st.text(max_size=60))
def test_whitespace_words_are_those_of_split_for_any_text(text: str) -> None:
    assert [word.text for word in whitespace_words(text)] == text.split()


def test_official_join() -> None:
    assert official_join(["(", "What", "is", "it", "...", ")"]) == "( What is it... )"
    assert official_join(["Is", "n't", "the", "boy", "'s", "hat", "(", "red", ")", "wet", "?"]) == (
        "Isn't the boy's hat (red) wet?"
    )


def test_levels_that_need_nothing_are_available_and_the_others_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmms_eval_stability.tasks.perturbations.text.wordnet.find_wordnet", lambda: None)
    resources = Resources(models=tmp_path, allow_models=False)
    available = available_levels(resources)
    assert list(available) == OFFLINE
    for method in METHODS.values():
        for level in method.levels:
            if level not in available:
                with pytest.raises(MissingResourceError, match=method.name):
                    perturb_text(QUESTION, method.name, level.severity, seed=0, resources=resources)


# --- the page ----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]


def test_the_page_has_every_method_and_its_share_of_unchanged_questions() -> None:
    page = (ROOT / "docs" / "perturbations" / "text.md").read_text(encoding="utf-8")
    table = pyarrow.parquet.read_table(ROOT / "tasks" / "shapes_vqa" / "shapes_vqa.parquet", columns=["question"])
    questions = table.column("question").to_pylist()[:500]

    def unchanged(method: str, severity: int) -> float:
        same = sum(perturbed(question, method, severity, seed=i) == question for i, question in enumerate(questions))
        return 100 * same / len(questions)

    for method in METHODS.values():
        row = re.search(
            rf"^\| `{method.name}` \| {method.paper_name} \| {method.group} \| {method.severities} \|.*\| (.*) \|$",
            page,
            flags=re.MULTILINE,
        )
        assert row, method.name
        if set(method.needs) <= {"tagger"}:
            stated = [float(share) for share in row[1].split(" / ")]
            severities = (1, 5) if method.severities == 5 else (1,)
            assert stated == pytest.approx([unchanged(method.name, severity) for severity in severities], abs=0.05)


def test_the_page_has_every_environment_variable() -> None:
    page = (ROOT / "docs" / "perturbations" / "text.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Resources):
        assert f"`LMMS_EVAL_STABILITY_TEXT_{field.name.upper()}`" in page
