"""All methods by name, and the fixed sets of levels that samples draw from."""

from __future__ import annotations

from lmms_eval_stability.tasks.perturbations.entries import (
    Level,
    Modality,
    Need,
    Perturbation,
    UnknownPerturbationError,
)

#: Name of a set -> the modality whose levels it holds. ``paper-96`` and ``paper-87`` hold all of the paper's;
#: ``offline-72`` those text levels that need nothing but this package, so that it is the same on every machine.
SETS: dict[str, Modality] = {"paper-96": "image", "paper-87": "text", "offline-72": "text"}
_COMES_ALONG: tuple[Need, ...] = ("tagger",)


def methods(modality: Modality) -> dict[str, Perturbation]:
    """Return the methods of one modality by name, in the paper's order."""
    if modality == "image":
        from lmms_eval_stability.tasks.perturbations.image import METHODS
    else:
        from lmms_eval_stability.tasks.perturbations.text import METHODS
    return METHODS


def find_level(modality: Modality, method: str, severity: int) -> Level:
    """Return one level.

    Raises:
        UnknownPerturbationError: there is no such method, or it has no such severity.
    """
    known = methods(modality)
    entry = known.get(method)
    if entry is None:
        raise UnknownPerturbationError(f"no {modality} perturbation '{method}'; there are {', '.join(known)}")
    level = Level(method, severity)
    if level not in entry.levels:
        raise UnknownPerturbationError(f"{method} has severities 1 to {entry.severities}, not {severity!r}")
    return level


def levels_of(name: str, modality: Modality) -> tuple[Level, ...]:
    """Return the levels of a set, in its fixed order.

    Raises:
        UnknownPerturbationError: there is no such set, or it is of the other modality.
    """
    if name not in SETS:
        raise UnknownPerturbationError(f"no set of perturbations '{name}'; there are {', '.join(SETS)}")
    if SETS[name] != modality:
        raise UnknownPerturbationError(f"the set '{name}' perturbs the {SETS[name]}, not the {modality}")
    entries = [entry for entry in methods(modality).values() if entry.in_paper]
    if name == "offline-72":
        entries = [entry for entry in entries if set(entry.needs) <= set(_COMES_ALONG)]
    return tuple(level for entry in entries for level in entry.levels)
