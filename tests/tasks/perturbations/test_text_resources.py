"""What the text methods are told to use: environment variables, taggers, tables, and the record of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError, PerturbationError
from lmms_eval_stability.tasks.perturbations.text import (
    Resources,
    UnreadableResourceError,
    available_levels,
    describe_resources,
    missing_resources,
    perturb_text,
)
from lmms_eval_stability.tasks.perturbations.text.resources import word_list

PREFIX = "LMMS_EVAL_STABILITY_TEXT_"


def test_the_environment_names_the_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "neighbours.json"
    file.write_text('{"cat": ["dog"]}', encoding="utf-8")
    given = Resources.from_environment(
        {f"{PREFIX}NEIGHBOURS": str(file), f"{PREFIX}ALLOW_MODELS": "0", f"{PREFIX}DEVICE": "cuda", "OTHER": "x"}
    )
    assert given == Resources(neighbours=file, allow_models=False, device="cuda")
    assert Resources.from_environment({}) == Resources()
    monkeypatch.setenv(f"{PREFIX}NEIGHBOURS", str(file))
    assert perturb_text("Is the cat there?", "swap_syn_word_emb", 1, seed=0) == "Is the dog there?"
    assert "swap_syn_word_emb" not in missing_resources()


@pytest.mark.parametrize(
    ("name", "value"), [("WORDNET", "/nowhere"), ("PRECOMPUTED", "/nowhere"), ("ALLOW_MODELS", "no")]
)
def test_a_variable_that_cannot_be_is_named(name: str, value: str) -> None:
    with pytest.raises(UnreadableResourceError, match=f"{PREFIX}{name}.*{value}"):
        Resources.from_environment({PREFIX + name: value})


def test_own_tables_for_keyboard_and_misspellings(tmp_path: Path) -> None:
    keyboard, spelling = tmp_path / "keyboard.json", tmp_path / "spelling.txt"
    keyboard.write_text('{"c": ["v"]}', encoding="utf-8")
    spelling.write_text("cat kat\ndog dogg\n", encoding="utf-8")
    resources = Resources(keyboard=keyboard, misspellings=spelling)

    def outputs(text: str, method: str) -> set[str]:
        return {perturb_text(text, method, 1, seed=seed, resources=resources) for seed in range(30)}

    assert outputs("Is the cat", "keyboard") == {"Is the vat", "Is the Vat"}
    assert outputs("Cat?", "keyboard") == {"vat?", "Vat?"}
    assert outputs("Cat?", "spell_error") == {"Kat?"}
    assert outputs("kat?", "spell_error") == {"cat?"}
    described = describe_resources(resources)
    assert len(described["keyboard"]) == len(described["misspellings"]) == 64
    spelling.with_suffix(".json").write_text("{", encoding="utf-8")
    with pytest.raises(UnreadableResourceError, match=r"spelling\.json"):
        perturb_text("Cat?", "spell_error", 1, seed=0, resources=Resources(misspellings=spelling.with_suffix(".json")))


def test_an_absent_tagger_is_named_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for tagger, command in (
        ("spacy:en_core_web_none", "python -m spacy download en_core_web_none"),
        ("stanza", "there are textblob, nltk"),
    ):
        resources = Resources(tagger=tagger)
        with pytest.raises(MissingResourceError, match=command):
            perturb_text("Is it wet?", "drop_nn", 1, seed=0, resources=resources)
        assert command in missing_resources(resources)["drop_nn"]
        assert "drop_nn" not in {level.method for level in available_levels(resources)}
    monkeypatch.setattr("nltk.pos_tag", lambda tokens: (_ for _ in ()).throw(LookupError("no data")))
    with pytest.raises(MissingResourceError, match=r"python -m nltk\.downloader averaged_perceptron_tagger_eng"):
        perturb_text("Is it wet?", "drop_nn", 1, seed=0, resources=Resources(tagger="nltk"))


def test_a_spacy_pipeline_can_tag(tmp_path: Path) -> None:
    import spacy

    pipeline = spacy.blank("en")
    pipeline.add_pipe("attribute_ruler").add(patterns=[[{"LOWER": "cat"}]], attrs={"TAG": "NN"})
    pipeline.to_disk(tmp_path / "pipeline")
    resources = Resources(tagger=f"spacy:{tmp_path / 'pipeline'}")
    assert perturb_text("Is the cat a dog?", "drop_nn", 1, seed=0, resources=resources) == "Is the [UNK] a dog?"


def test_a_tagger_that_miscounts_is_named() -> None:
    def short(tokens: Sequence[str]) -> list[str]:
        return ["NN"]

    with pytest.raises(PerturbationError, match="short returned 1 tags for 4 tokens"):
        perturb_text("Is it wet?", "drop_nn", 1, seed=0, resources=Resources(tagger=short))


def test_the_record_names_tagger_and_versions_and_can_be_logged() -> None:
    described = describe_resources(Resources())
    assert described["tagger"].startswith("textblob (textblob ")
    assert described["tokenizer"].startswith("spacy ")
    assert described["inflection"].startswith("lemminflect ")
    assert described["neighbours"] is None
    json.dumps(described)

    def own(tokens: Sequence[str]) -> list[str]:
        return ["NN"] * len(tokens)

    assert describe_resources(Resources(tagger=own))["tagger"].endswith("own")


@pytest.mark.parametrize("name", ["adverbs", "denials", "misspellings", "openings", "proverbs", "stop_words"])
def test_word_lists_have_no_line_twice(name: str) -> None:
    lines = word_list(name)
    assert len(lines) >= 35
    assert len({line.split()[0] if name == "misspellings" else line for line in lines}) == len(lines)
    if name == "denials":
        assert all(denial.split(": ")[1].startswith("not ") for denial in lines)
