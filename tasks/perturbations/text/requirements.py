"""Which levels can be made here, why the others cannot, and what a record of a run says of what was used."""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmms_eval_stability.tasks.perturbations.entries import Level, MissingResourceError
from lmms_eval_stability.tasks.perturbations.text.neural import MODELS, local_copy, precomputed_table, why_missing
from lmms_eval_stability.tasks.perturbations.text.registry import METHODS
from lmms_eval_stability.tasks.perturbations.text.resources import Resources
from lmms_eval_stability.tasks.perturbations.text.taggers import tagger_name, why_tagger_missing
from lmms_eval_stability.tasks.perturbations.text.wordnet import find_wordnet, open_wordnet
from lmms_eval_stability.tasks.perturbations.text.words import NO_NEIGHBOURS


def missing_resources(resources: Resources | None = None) -> dict[str, str]:
    """Return the methods that cannot be applied, each with the reason and how to change that.

    A table of precomputed outputs makes its methods available, also where it lacks some inputs: those raise.
    """
    resources = Resources.from_environment() if resources is None else resources
    reasons = ((method, _why_missing(method, resources)) for method in METHODS)
    return {method: reason for method, reason in reasons if reason is not None}


def available_levels(resources: Resources | None = None) -> tuple[Level, ...]:
    """Return the levels that can be made with these resources (default: the environment's), in the paper's order."""
    missing = missing_resources(resources)
    return tuple(level for name, method in METHODS.items() if name not in missing for level in method.levels)


def _why_missing(method: str, resources: Resources) -> str | None:
    needs = METHODS[method].needs
    if "tagger" in needs and (reason := why_tagger_missing(resources.tagger)):
        return reason
    if "wordnet" in needs:
        try:
            open_wordnet(resources.wordnet)
        except MissingResourceError as error:
            return str(error)
    if "neighbours" in needs and resources.neighbours is None:
        return NO_NEIGHBOURS
    if "model" in needs and method not in precomputed_table(resources.precomputed):
        return why_missing(method, resources)
    return None


def describe_resources(resources: Resources | None = None) -> dict[str, Any]:
    """Return what decides the outputs besides text, method, severity and seed, for the record of a run.

    Versions of the libraries, name of the tagger, and the SHA-256 of every file; no paths, so that two machines with
    the same resources have the same record.
    """
    resources = Resources.from_environment() if resources is None else resources
    tagger = tagger_name(resources.tagger)
    library = {"textblob": "textblob", "nltk": "nltk"}.get(tagger, "spacy" if tagger.startswith("spacy:") else None)
    wordnet = resources.wordnet or find_wordnet()
    described: dict[str, Any] = {
        "tokenizer": f"spacy {importlib.metadata.version('spacy')} blank:en",
        "tagger": tagger if library is None else f"{tagger} ({library} {importlib.metadata.version(library)})",
        "inflection": f"lemminflect {importlib.metadata.version('lemminflect')}",
        "wordnet": None if wordnet is None else _describe_wordnet(wordnet),
    }
    for name in ("neighbours", "precomputed", "keyboard", "misspellings"):
        path: Path | None = getattr(resources, name)
        described[name] = None if path is None else _sha256(path)
    described["models"] = _describe_models(resources) if resources.allow_models else {}
    return described


@lru_cache(maxsize=4)
def _describe_wordnet(path: Path) -> dict[str, str]:
    wordnet = open_wordnet(path)
    digest = hashlib.sha256()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        digest.update(wordnet.read(name))
    return {"version": wordnet.version, "sha256": digest.hexdigest()}


@lru_cache(maxsize=16)
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _describe_models(resources: Resources) -> dict[str, str]:
    """Return the models that are there: repository -> commit in the Hugging Face cache, or "folder"."""
    table = precomputed_table(resources.precomputed)
    found = {
        repository: local_copy(repository, resources.models)
        for method, rewriter in MODELS.items()
        if method not in table
        for repository in rewriter.models
    }
    return {
        repository: path.name if path.parent.name == "snapshots" else "folder"
        for repository, path in found.items()
        if path is not None
    }
