"""Which sample gets which level, and the seed of its random numbers: functions of what the sample is, nothing else.

The published code perturbs a whole data set per level and seeds nothing. Here every sample draws one level. The draw is
a digest of the benchmark's seed, the data set, the split, the sample's own id and the modality: the same in any order
of samples, under ``--limit``, on any number of processes and whatever Python's hash seed is. As in HELM's perturbations
the sample's id is part of the key, so two benchmarks that share a picture draw independently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from lmms_eval_stability.tasks.perturbations.entries import Level, Modality

#: Part of every key: raised when a draw or a method changes its output, so that numbers of two versions do not mix.
VERSION = 1

Draw = Literal["levels", "methods"]


@dataclass(frozen=True)
class SampleKey:
    """What a sample is.

    Attributes:
        seed: the benchmark's seed.
        dataset: name of the benchmark (``gqa``), not of one copy of its data.
        split: split of the data.
        sample: the benchmark's own id of the question, or of the image where all its questions share one noise.
        modality: ``image`` or ``text``.
    """

    seed: int
    dataset: str
    split: str
    sample: str
    modality: Modality

    def digest(self, *purpose: str | int) -> int:
        """Return 128 bits that depend on the key, the version and ``purpose``."""
        text = json.dumps([VERSION, *astuple(self), *purpose], ensure_ascii=False)
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")


def draw_level(key: SampleKey, levels: Sequence[Level], draw: Draw = "levels") -> Level:
    """Return the sample's level.

    Args:
        levels: the levels to draw from, in the order of the set; must not be empty.
        draw: ``levels`` gives every level the same chance, as the paper's counts suggest; ``methods`` every method, and
            then every severity of it (a method of one level is then drawn five times as often).
    """
    if draw == "levels":
        return levels[key.digest("level") % len(levels)]
    methods = list(dict.fromkeys(level.method for level in levels))
    method = methods[key.digest("method") % len(methods)]
    severities = [level for level in levels if level.method == method]
    return severities[key.digest("severity") % len(severities)]


def seed_of(key: SampleKey, level: Level, part: int = 0) -> int:
    """Return the seed (32 bits) of a sample's random numbers at a level; ``part`` tells a sample's images apart."""
    return key.digest("random", level.method, level.severity, part) % 2**32
