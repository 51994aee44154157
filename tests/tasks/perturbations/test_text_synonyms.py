"""Synonyms: the reader of WordNet's files on a small dictionary made here, the two methods that use synonyms."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
from lmms_eval_stability.tasks.perturbations.text import (
    Resources,
    UnreadableResourceError,
    available_levels,
    describe_resources,
    missing_resources,
    perturb_text,
)
from lmms_eval_stability.tasks.perturbations.text import wordnet as wordnet_module
from lmms_eval_stability.tasks.perturbations.text.wordnet import WordNet, find_wordnet

#: Type of synset and its lemmas, by file; ``s`` is a satellite adjective.
SYNSETS: dict[str, list[tuple[str, list[str]]]] = {
    "noun": [
        ("n", ["dog", "domestic_dog", "hound"]),
        ("n", ["cad", "dog", "heel"]),
        ("n", ["man", "adult_male"]),
        ("n", ["CAT", "cat", "guy"]),
        ("n", ["glass", "drinking_glass"]),
        ("n", ["picture", "image", *(f"word{i}" for i in range(10))]),
    ],
    "verb": [("v", ["throw", "hurl"]), ("v", ["do", "cause"]), ("v", ["dog", "chase"]), ("v", ["carry", "bear"])],
    "adj": [("a", ["big", "large"]), ("s", ["big", "adult", "grown(a)"]), ("s", ["ablaze(p)", "lit"])],
    "adv": [("r", ["quickly", "rapidly"])],
}
EXCEPTIONS = {"noun": "men man\nwives wife\n", "verb": "threw throw\nthrown throw\n", "adj": "", "adv": ""}
LICENCE = "  1 This dictionary was made for a test, in the format of WordNet 3.0 files.\n"


def write_dictionary(folder: Path) -> Path:
    folder.mkdir()
    for name, synsets in SYNSETS.items():
        data, offsets = LICENCE, dict[str, list[str]]()
        for kind, lemmas in synsets:
            offset = f"{len(data):08d}"
            words = " ".join(f"{lemma} 0" for lemma in lemmas)
            data += f"{offset} 05 {kind} {len(lemmas):02x} {words} 000 | made for a test\n"
            for lemma in lemmas:
                offsets.setdefault(lemma.partition("(")[0].lower(), []).append(offset)
        index = LICENCE + "".join(
            f"{lemma} {name[0]} {len(found)} 1 @ {len(found)} 0 {' '.join(found)}  \n"
            for lemma, found in sorted(offsets.items())
        )
        (folder / f"data.{name}").write_text(data, encoding="utf-8")
        (folder / f"index.{name}").write_text(index, encoding="utf-8")
        (folder / f"{name}.exc").write_text(EXCEPTIONS[name], encoding="utf-8")
    return folder


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    return write_dictionary(tmp_path / "dict")


def test_synonyms_are_of_all_synsets_of_the_part_of_speech(dictionary: Path) -> None:
    wordnet = WordNet(dictionary)
    assert wordnet.synonyms("dog", "n") == ["cad", "dog", "heel", "hound"]
    assert wordnet.synonyms("dog", "v") == ["chase", "dog"]
    assert wordnet.synonyms("dog", None) == ["cad", "chase", "dog", "heel", "hound"]
    assert len(wordnet.synonyms("image", "n")) == 12, "the number of words is hexadecimal"
    assert wordnet.synonyms("unicorn", None) == []
    assert wordnet.version == "3.0"


def test_satellites_are_adjectives_and_markers_are_no_part_of_the_word(dictionary: Path) -> None:
    wordnet = WordNet(dictionary)
    assert wordnet.synonyms("big", "a") == ["adult", "big", "grown", "large"]
    assert wordnet.synonyms("big", "a", satellites=False) == ["big", "large"]
    assert wordnet.synonyms("lit", "a") == ["ablaze", "lit"]
    assert wordnet.synonyms("lit", "a", satellites=False) == []


@pytest.mark.parametrize(
    ("word", "pos", "base"),
    [
        *(("dogs", "n", ["dog"]), ("men", "n", ["man"]), ("glasses", "n", ["glass"]), ("man", "n", ["man"])),
        *(("threw", "v", ["throw"]), ("throwing", "v", ["throw"]), ("carries", "v", ["carry"])),
        *(("biggest", "a", []), ("larger", "a", ["large"]), ("dogging", "v", []), ("quickly", "r", ["quickly"])),
    ],
)
def test_base_forms(dictionary: Path, word: str, pos: str, base: list[str]) -> None:
    assert WordNet(dictionary).base_forms(word, pos) == base


def test_a_zip_file_and_the_usual_places(dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "data" / "corpora" / "wordnet.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in dictionary.iterdir():
            file.write(path, f"wordnet/{path.name}")
    assert WordNet(archive).synonyms("dogs", "n") == WordNet(dictionary).synonyms("dogs", "n")
    for variable in ("WNSEARCHDIR", "WNHOME", "NLTK_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "data"))
    if not Path("/usr/share/wordnet/index.noun").exists():
        assert find_wordnet() == archive
    monkeypatch.setenv("WNHOME", str(tmp_path))
    assert find_wordnet() == dictionary
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "elsewhere"))
    assert find_wordnet() == dictionary


def test_a_folder_without_the_files_and_a_damaged_file_are_named(dictionary: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"has no index\.noun"):
        WordNet(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(UnreadableResourceError, match=r"broken\.zip"):
        WordNet(tmp_path / "broken.zip")
    (dictionary / "data.noun").write_text(LICENCE + LICENCE, encoding="utf-8")
    with pytest.raises(UnreadableResourceError, match=r"data\.noun has no synset at byte"):
        WordNet(dictionary).synonyms("dog", "n")


def outputs(text: str, resources: Resources, method: str = "swap_syn_word_net", *, quirks: bool = False) -> set[str]:
    return {perturb_text(text, method, 1, seed=seed, official_quirks=quirks, resources=resources) for seed in range(60)}


def test_a_word_becomes_a_synonym_in_its_own_inflection(dictionary: Path) -> None:
    resources = Resources(wordnet=dictionary)
    assert outputs("Are the dogs there?", resources) == {
        f"Are the {word} there?" for word in ("cads", "heels", "hounds")
    }
    assert outputs("Who is throwing it?", resources) == {"Who is hurling it?"}
    assert outputs("Is the big one there?", resources) == {
        f"Is the {word} one there?" for word in ("adult", "grown", "large")
    }
    assert outputs("Is the cat there?", resources) == {"Is the guy there?"}
    assert outputs("Does the unicorn do it?", resources) == {"Does the unicorn do it?"}
    assert outputs("Dogs there?", resources) <= {"Cads there?", "Heels there?", "Hounds there?"}


def test_officially_it_becomes_the_first_synonym_as_it_stands_and_satellites_do_not_count(dictionary: Path) -> None:
    resources = Resources(wordnet=dictionary)
    assert outputs("Are the dogs there?", resources, quirks=True) == {"Are the cad there?"}
    assert outputs("Is the big one there?", resources, quirks=True) == {"Is the large one there?"}
    assert outputs("Is the cat there?", resources, quirks=True) == {"Is the CAT there?"}
    assert outputs("Does the unicorn do it?", resources, quirks=True) == {
        "cause the unicorn do it?",
        "Does the unicorn cause it?",
    }


def test_without_wordnet_the_levels_are_not_available_and_the_error_says_how_to_get_it(
    dictionary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordnet_module, "find_wordnet", lambda: None)
    with pytest.raises(MissingResourceError, match="apt-get install wordnet-base"):
        perturb_text("Is the dog there?", "swap_syn_word_net", 1, seed=0, resources=Resources())
    assert "apt-get install wordnet-base" in missing_resources(Resources())["swap_syn_word_net"]
    assert "swap_syn_word_net" not in {level.method for level in available_levels(Resources())}
    found = [level for level in available_levels(Resources(wordnet=dictionary)) if level.method == "swap_syn_word_net"]
    assert len(found) == 5


def test_the_record_has_the_dictionary_not_its_place(dictionary: Path, tmp_path: Path) -> None:
    described = describe_resources(Resources(wordnet=dictionary))["wordnet"]
    assert described["version"] == "3.0"
    assert described == describe_resources(Resources(wordnet=write_dictionary(tmp_path / "other")))["wordnet"]
    assert str(tmp_path) not in json.dumps(described)


# --- neighbours by word vector -----------------------------------------------------------------------------------


def tag_by_ending(tokens: Sequence[str]) -> list[str]:
    return ["VB" if token.endswith("ing") else "JJ" if token.endswith("ish") else "NN" for token in tokens]


def test_a_word_becomes_a_neighbour_of_the_same_part_of_speech(tmp_path: Path) -> None:
    file = tmp_path / "neighbours.json"
    file.write_text(json.dumps({"dog": ["cat", "barking", "doggish", "puppy"], "sky": ["falling"]}), encoding="utf-8")
    resources = Resources(neighbours=file, tagger=tag_by_ending)
    made = {"Is the cat there?", "Is the puppy there?"}
    assert outputs("Is the dog there?", resources, "swap_syn_word_emb") == made
    assert outputs("Is the dog there?", resources, "swap_syn_word_emb", quirks=True) == made
    assert outputs("Dog there?", resources, "swap_syn_word_emb") == {"Cat there?", "Puppy there?"}
    assert outputs("Dog there?", resources, "swap_syn_word_emb", quirks=True) == {"Dog there?"}
    assert outputs("Is the sky there?", resources, "swap_syn_word_emb") == {"Is the sky there?"}
    assert len([level for level in available_levels(resources) if level.method == "swap_syn_word_emb"]) == 5


def test_without_neighbours_the_error_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="LMMS_EVAL_STABILITY_TEXT_NEIGHBOURS=FILE"):
        perturb_text("Is the dog there?", "swap_syn_word_emb", 1, seed=0, resources=Resources())
    file = tmp_path / "list.json"
    file.write_text('["dog"]', encoding="utf-8")
    with pytest.raises(UnreadableResourceError, match=r"list\.json: expected a JSON object"):
        perturb_text("Is the dog there?", "swap_syn_word_emb", 1, seed=0, resources=Resources(neighbours=file))
