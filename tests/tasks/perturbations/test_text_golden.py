"""The official outputs of the text methods, exactly: every ``official_text*.json`` of the golden folder.

Such a file has ``questions``, their ``tags`` (token and Penn tag), and per method and severity one output per question,
made with ``random.seed(7000 + 100 * severity + index)`` before each call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.tasks.perturbations.text import METHODS, Resources, perturb_text
from tests.golden_cases import golden_files

DATA = Path(__file__).parent / "data"
FILES = golden_files("perturbations", "official_text", ".json")
OWN = Path(__file__).parents[2] / "golden" / "perturbations" / "official_text.json"


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def official_resources(vectors: dict[str, Any]) -> Resources:
    """The tags of the file, and the tables that its `keyboard` and `spell_error` were made with."""
    tags = {tuple(word for word, _ in tagged): [tag for _, tag in tagged] for tagged in vectors["tags"]}

    def recorded_tags(tokens: Sequence[str]) -> list[str]:
        return tags[tuple(tokens)]

    return Resources(
        tagger=recorded_tags,
        keyboard=DATA / "nlpaug_keyboard.json",
        misspellings=DATA / "nlpaug_misspellings.json",
    )


def exact(vectors: dict[str, Any], method: str) -> bool:
    """Official misspellings come in the order of a Python set, which is known for the words of our own file alone."""
    return method != "spell_error" or set(vectors["questions"]) <= set(load(OWN)["questions"])


def cases() -> list[Any]:
    return [
        pytest.param(file, method, int(severity), id=f"{file.stem}-{method}-{severity}")
        for file in FILES
        for method, severities in load(file)["methods"].items()
        if exact(load(file), method)
        for severity in severities
    ]


def test_there_are_vectors() -> None:
    assert FILES
    assert {method for file in FILES for method in load(file)["methods"]} <= set(METHODS)


@pytest.mark.parametrize(("file", "method", "severity"), cases())
def test_official_output(file: Path, method: str, severity: int) -> None:
    vectors = load(file)
    resources = official_resources(vectors)
    expected = vectors["methods"][method][str(severity)]
    made = [
        perturb_text(
            question,
            method,
            severity,
            seed=7000 + 100 * severity + index,
            official_quirks=True,
            resources=resources,
        )
        for index, question in enumerate(vectors["questions"])
    ]
    assert len(expected) == len(made)
    assert made == expected


def test_the_own_file_covers_what_needs_no_unreachable_data() -> None:
    """25 of 35: not the models, synonyms, tense, adverbs and irrelevant phrases, whose official data is not at hand."""
    uncovered = set(METHODS) - set(load(OWN)["methods"])
    assert uncovered == {
        *("to_passive", "to_active", "to_formal", "to_casual", "back_trans"),
        *("swap_syn_word_net", "swap_syn_word_emb", "tense", "insert_adv", "append_irr"),
    }
