"""What a perturbation is: its entry in a registry, one level of it, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Modality = Literal["image", "text"]

#: What a method needs beyond this package's own code: a part-of-speech tagger, WordNet 3.0's files, a table of
#: neighbours by word vector, or a neural model.
Need = Literal["tagger", "wordnet", "neighbours", "model"]


class PerturbationError(ValueError):
    """Base of what can go wrong while a sample is perturbed."""


class UnknownPerturbationError(PerturbationError):
    """A method, level or set that is in no registry."""


class MissingResourceError(PerturbationError):
    """A method needs a file or a model that is not there; the message says how to get it."""


class UnreadableInputError(PerturbationError):
    """An image or a question that cannot be perturbed."""


@dataclass(frozen=True)
class Perturbation:
    """One method.

    Attributes:
        name: identifier, in lower case with underscores (``glass_blur``).
        paper_name: as the paper's tables spell it (``Frosted Glass``).
        modality: ``image`` or ``text``.
        group: the paper's group (``noise``, ``blur``, ``weather``, ``digital``; ``character``, ``word``, ``sentence``).
        severities: number of levels; they are numbered from 1.
        deterministic: the output depends on the input and the severity alone.
        source: the official file and function that define it.
        needs: what must be there beyond this package.
        in_paper: whether it belongs to the paper's fixed sets; a method added later does not.
    """

    name: str
    paper_name: str
    modality: Modality
    group: str
    severities: int
    deterministic: bool
    source: str
    needs: tuple[Need, ...] = ()
    in_paper: bool = True

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(Level(self.name, severity) for severity in range(1, self.severities + 1))


@dataclass(frozen=True, order=True)
class Level:
    """One severity of one method."""

    method: str
    severity: int
