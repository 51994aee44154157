"""Pairs of an in-distribution and an out-of-distribution (OOD) task, by name: `compare --reliability --ood ID:OOD`.

Either side is a task of the comparison, or the part of one that a category of its log names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .categories import CLUSTER, IMAGE
from .detection import Confidences, DetectionScore, detection_scores
from .errors import OptionError
from .reliability import Side, confidence_kinds, plain
from .reliability_scores import replicates_for

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from .clusters import Clusters
    from .pairing import PairedSamples

#: More categories than this are not listed in an error.
_LISTED = 12


@dataclass(frozen=True)
class Part:
    """A task, or its samples of one category.

    Attributes:
        dimension: of the category; empty: the only one that has it.
    """

    task: str
    category: str = ""
    dimension: str = ""

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read TASK, TASK@CATEGORY or TASK@DIMENSION=CATEGORY."""
        task, at, category = (word.strip() for word in text.partition("@"))
        dimension, equals, named = (word.strip() for word in category.partition("="))
        if not task or (at and not (named if equals else category)):
            raise OptionError(
                f"--ood: '{text}' names no task; write TASK, TASK@CATEGORY or TASK@DIMENSION=CATEGORY on either side"
            )
        return cls(task, named, dimension) if equals else cls(task, category)

    def __str__(self) -> str:
        dimension = f"{self.dimension}=" if self.dimension else ""
        return f"{self.task}@{dimension}{self.category}" if self.category else self.task


@dataclass(frozen=True)
class OodPair:
    """What stands for inputs like those of training, and what for others."""

    inside: Part
    outside: Part

    @classmethod
    def parse(cls, text: str) -> OodPair:
        """Read ID:OOD, see `Part.parse`. Raises OptionError."""
        words = text.split(":")
        if len(words) != 2:
            raise OptionError(f"--ood {text}: write ID_TASK:OOD_TASK, such as shapes_vqa:shapes_vqa_ood")
        inside, outside = map(Part.parse, words)
        if inside == outside:
            raise OptionError(f"--ood {text}: both sides are the same samples")
        return cls(inside, outside)

    def __str__(self) -> str:
        return f"{self.inside}:{self.outside}"


def tasks_of(pair: str) -> frozenset[str]:
    """Names of the tasks of a pair as on the command line. Raises OptionError."""
    found = OodPair.parse(pair)
    return frozenset({found.inside.task, found.outside.task})


@dataclass(frozen=True)
class KindDetection:
    """One kind of confidence as a detector.

    Attributes:
        kind: as in `reliability.ConfidenceComparison`.
        n_in, n_out: samples for which both logs have it. missing_in, missing_out: pairs without.
        clusters_in, clusters_out, replicates: clusters that were drawn for the intervals, and how often.
        scores: the numbers of both runs.
    """

    kind: str
    n_in: int
    n_out: int
    missing_in: int
    missing_out: int
    clusters_in: int
    clusters_out: int
    replicates: int
    scores: tuple[DetectionScore, ...]


@dataclass(frozen=True)
class OodDetection:
    """What one run's and the baseline's confidence say of one pair of tasks.

    Attributes:
        inside, outside: as they were named. run: label.
        kinds: one per kind that both logs have for both tasks. missing: why there is none; else empty.
    """

    inside: str
    outside: str
    run: str
    kinds: tuple[KindDetection, ...] = ()
    missing: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON, see `reliability.plain`."""
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True)
class _Sure:
    """How sure both models were of the samples of one part: confidences by kind, nan where not logged."""

    docs: NDArray[np.int64]
    kinds: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    codes: NDArray[Any] | None

    def known(self, kind: str) -> tuple[Confidences, int]:
        """The confidences of the samples that both have, and how many those are."""
        import numpy as np

        before, after = self.kinds[kind]
        both = np.isfinite(before) & np.isfinite(after)
        codes = None if self.codes is None else np.unique(self.codes[both], return_inverse=True)[1]
        return Confidences(before[both], after[both], codes), int(both.sum())


class DetectionStudy:
    """Collects the confidences of the tasks that pairs name while a comparison goes through tasks and runs.

    Args:
        runs: number of compared runs.
        pairs: as on the command line.

    Raises OptionError for pairs that cannot be read.
    """

    def __init__(self, runs: int, pairs: Sequence[str]) -> None:
        self.pairs = list(dict.fromkeys(map(OodPair.parse, pairs)))
        self._labels = [""] * runs
        self._found: list[dict[Part, _Sure]] = [{} for _ in range(runs)]

    def check_tasks(self, tasks: Collection[str]) -> None:
        """Raises OptionError for a pair with a task that is not compared."""
        for pair in self.pairs:
            for part in (pair.inside, pair.outside):
                if part.task not in tasks:
                    raise OptionError(
                        f"--ood {pair}: task {part.task} is not compared; compared are {', '.join(tasks)}"
                    )

    def add(
        self,
        i: int,
        pairs: PairedSamples,
        baseline: Side,
        run: Side,
        clusters: Clusters | None,
        labels: pd.DataFrame | None,
    ) -> None:
        """Keep what the pairs of one task of run i say of the parts of it that are named.

        Raises OptionError for a category that the baseline's log does not name.
        """
        self._labels[i] = run.label
        parts = dict.fromkeys(part for pair in self.pairs for part in (pair.inside, pair.outside))
        named = [part for part in parts if part.task == pairs.task]
        if not named:
            return
        docs = pairs.frame["doc_id"].to_numpy()
        kinds = confidence_kinds(pairs, baseline, run)
        codes = None if clusters is None else clusters.codes.reindex(docs).to_numpy()
        for part in named:
            rows = _rows(part, docs, labels)
            inner = {kind: (before[rows], after[rows]) for kind, (before, after) in kinds.items()}
            self._found[i][part] = _Sure(docs[rows], inner, None if codes is None else codes[rows])

    def finish(self, i: int) -> tuple[OodDetection, ...]:
        """The numbers of run i, one entry per pair of tasks."""
        return tuple(self._measure(i, pair) for pair in self.pairs)

    def check(self) -> None:
        """Raises OptionError for a pair of which no run has the log-probabilities."""
        for pair in self.pairs:
            reasons = [self._lacking(i, pair) for i in range(len(self._found))]
            if all(reasons):
                raise OptionError(f"--ood {pair}: {'; '.join(dict.fromkeys(reasons))}")

    def _lacking(self, i: int, pair: OodPair) -> str:
        """Why a pair cannot be measured for run i; empty if it can."""
        found, label = self._found[i], self._labels[i] or "a run"
        for part in (pair.inside, pair.outside):
            if part not in found:
                return f"{label} lacks {part.task}"
            if not any(found[part].known(kind)[1] for kind in found[part].kinds):
                return f"no sample of {part} has log-probabilities in both logs ({label})"
        return ""

    def _measure(self, i: int, pair: OodPair) -> OodDetection:
        names = str(pair.inside), str(pair.outside), self._labels[i]
        if why := self._lacking(i, pair):
            return OodDetection(*names, missing=why)
        inside, outside = (self._found[i][part] for part in (pair.inside, pair.outside))
        if pair.inside.task == pair.outside.task and (shared := len(set(inside.docs) & set(outside.docs))):
            raise OptionError(f"--ood {pair}: {shared} samples are in both parts; name parts without common samples")
        kinds = [kind for kind in inside.kinds if kind in outside.kinds]
        found = [_kind(kind, inside, outside) for kind in kinds]
        return OodDetection(*names, kinds=tuple(one for one in found if one is not None))


def _kind(kind: str, inside: _Sure, outside: _Sure) -> KindDetection | None:
    """None where a side has no sample with this confidence in both logs."""
    import numpy as np

    (one, n_in), (other, n_out) = inside.known(kind), outside.known(kind)
    if not n_in or not n_out:
        return None
    clusters = [
        n if part.clusters is None else len(np.unique(np.asarray(part.clusters)))
        for part, n in ((one, n_in), (other, n_out))
    ]
    return KindDetection(
        kind=kind,
        n_in=n_in,
        n_out=n_out,
        missing_in=len(inside.docs) - n_in,
        missing_out=len(outside.docs) - n_out,
        clusters_in=clusters[0],
        clusters_out=clusters[1],
        replicates=replicates_for(n_in + n_out),
        scores=tuple(detection_scores(one, other)),
    )


def _rows(part: Part, docs: NDArray[np.int64], labels: pd.DataFrame | None) -> NDArray[np.bool_]:
    """Which of these documents belong to the part. Raises OptionError for a category that there is not."""
    import numpy as np

    if not part.category:
        return np.ones(len(docs), dtype=bool)
    names = [] if labels is None else [name for name in labels.columns if name not in (CLUSTER, IMAGE)]
    if part.dimension:
        names = [name for name in names if name == part.dimension]
    holders = [name for name in names if labels is not None and (labels[name] == part.category).any()]
    if len(holders) > 1:
        choices = " or ".join(f"{part.task}@{name}={part.category}" for name in holders)
        raise OptionError(f"--ood {part}: several dimensions have this category; write {choices}")
    if labels is None or not holders:
        raise OptionError(f"--ood {part}: the log names no such part of {part.task}; {_known(labels)}")
    return np.asarray((labels[holders[0]].reindex(docs) == part.category).to_numpy(), dtype=bool)


def _known(labels: pd.DataFrame | None) -> str:
    """What parts a log names, in words."""
    found = []
    for name in () if labels is None else labels.columns.difference([CLUSTER, IMAGE], sort=False):
        values = sorted(labels[name].dropna().unique()) if labels is not None else []
        more = f", ... ({len(values)})" if len(values) > _LISTED else ""
        found.append(f"{name}={', '.join(values[:_LISTED])}{more}")
    return f"it names {'; '.join(found)}" if found else "it names none at all"
