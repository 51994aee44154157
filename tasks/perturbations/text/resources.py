"""What the text methods need beyond their own code, and where it is found."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from lmms_eval_stability.tasks.perturbations.entries import PerturbationError

#: The tokens of one sentence -> as many Penn Treebank tags.
Tagger = Callable[[Sequence[str]], Sequence[str]]

#: Environment variables begin with this, followed by the field's name in upper case.
VARIABLE_PREFIX = "LMMS_EVAL_STABILITY_TEXT_"


class UnreadableResourceError(PerturbationError):
    """A file that a text method was told to use is not what it should be."""


@dataclass(frozen=True)
class Resources:
    """What the text methods may use. The same resources and seed give the same output.

    Attributes:
        tagger: ``textblob`` (comes with the package), ``nltk`` (its perceptron tagger, where its data is installed),
            ``spacy:NAME`` (the tagger of an installed spaCy pipeline), or a function from the tokens of one sentence to
            their Penn Treebank tags.
        wordnet: folder with WordNet's ``index.*`` and ``data.*`` files, or a zip of it; None: the usual places (see
            `wordnet.find_wordnet`).
        neighbours: JSON file, word -> its nearest words by word vector, nearest first.
        precomputed: JSON lines ``{"method", "input", "output"}`` with outputs of the methods that need a model. A
            method that the file has is read from it alone: no model is run for it.
        keyboard: JSON file, key -> neighbouring keys, instead of the QWERTY table computed here.
        misspellings: lines ``word misspelling ...``, used in both directions, or a JSON file word -> misspellings, used
            as it is; instead of the list that comes with the package.
        models: folder with models as ``OWNER/NAME``; those that are not there come from the Hugging Face cache.
        allow_models: run models that are found. Nothing is ever downloaded.
        device: where models run.
    """

    tagger: str | Tagger = "textblob"
    wordnet: Path | None = None
    neighbours: Path | None = None
    precomputed: Path | None = None
    keyboard: Path | None = None
    misspellings: Path | None = None
    models: Path | None = None
    allow_models: bool = True
    device: str = "cpu"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Resources:
        """Read ``LMMS_EVAL_STABILITY_TEXT_TAGGER``, ``..._WORDNET`` and so on; what is not set keeps its default.

        Raises:
            UnreadableResourceError: a variable names a file that is not there, or is neither 0 nor 1.
        """
        environment = os.environ if environment is None else environment
        given: dict[str, object] = {}
        for field in fields(cls):
            variable = VARIABLE_PREFIX + field.name.upper()
            value = environment.get(variable, "")
            if not value:
                continue
            if field.name == "allow_models":
                if value not in ("0", "1"):
                    raise UnreadableResourceError(f"{variable} is {value!r}; write 1 (run models) or 0 (do not)")
                given[field.name] = value == "1"
            elif field.name in ("tagger", "device"):
                given[field.name] = value
            else:
                given[field.name] = Path(value).expanduser()
                if not Path(value).expanduser().exists():
                    raise UnreadableResourceError(f"{variable} names {value!r}, which does not exist")
        return cls(**given)  # type: ignore[arg-type]


@cache
def word_list(name: str) -> tuple[str, ...]:
    """Return the lines of ``lists/NAME.txt`` that are neither empty nor comments."""
    text = importlib.resources.files(f"{__package__}.lists").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
