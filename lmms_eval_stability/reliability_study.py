"""The reliability of all runs of a comparison, collected while it goes through tasks and runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .corruption_study import CorruptionStudy
from .detection_study import DetectionStudy
from .errors import OptionError
from .reliability import Flips, Side, TaskReliability, flips_of, measure_reliability, plain
from .reliability_flips import FlipRegression, regress_flips

if TYPE_CHECKING:
    import pandas as pd

    from .clusters import Clusters
    from .pairing import PairedSamples

#: More pairs than this, of all runs together, are too much to hold for one regression.
MOST_POOLED = 3_000_000


@dataclass(frozen=True)
class PooledRegression:
    """Flips of all runs of one task in one regression, in which kept tokens differ at least between runs.

    Samples of one document, and of one cluster, count as related.
    """

    task: str
    runs: int
    regression: FlipRegression

    def record(self) -> dict[str, Any]:
        """As JSON, see `reliability.plain`."""
        found: dict[str, Any] = plain(self)
        return found


class ReliabilityStudy:
    """Collects what the logs of a comparison say about confidence.

    Args:
        runs: number of compared runs.
        ood: pairs of tasks, see `detection_study.OodPair`.
    """

    def __init__(self, runs: int, ood: Sequence[str] = ()) -> None:
        self.detection = DetectionStudy(runs, ood)
        self.corruption = CorruptionStudy(runs)
        self.tasks: list[list[TaskReliability]] = [[] for _ in range(runs)]
        self.pooled: list[PooledRegression] = []
        self._flips: list[Flips] = []

    def add(
        self,
        i: int,
        pairs: PairedSamples,
        baseline: Side,
        run: Side,
        clusters: Clusters | None,
        labels: pd.DataFrame | None,
        clean_task: str = "",
    ) -> None:
        """Measure one task of run i; `clean_task` is the one that it perturbs."""
        self.detection.add(i, pairs, baseline, run, clusters, labels)
        self.corruption.add(i, pairs, run.label, clusters, labels, clean_task)
        flips = flips_of(pairs, baseline, run, clusters, labels)
        self.tasks[i].append(measure_reliability(pairs, baseline, run, flips))
        if len(baseline.logprobs):
            self._flips.append(flips)

    def end_task(self, task: str) -> None:
        """Regress the flips of all runs of the task together, where there are several."""
        parts, self._flips = self._flips, []
        if len(parts) < 2:
            return
        n = sum(len(part.flipped) for part in parts)
        if n > MOST_POOLED:
            why = (
                f"{n:,} pairs of {len(parts)} runs are more than one regression takes ({MOST_POOLED:,}): compare fewer"
            )
            found = FlipRegression(n, sum(int(part.flipped.sum()) for part in parts), refused=why)
        else:
            found = _pool(parts)
        self.pooled.append(PooledRegression(task, len(parts), found))

    def check_tasks(self, tasks: Collection[str]) -> None:
        """Raises OptionError for pairs of tasks that are not compared."""
        self.detection.check_tasks(tasks)

    def check(self) -> None:
        """Raises OptionError when no task of any run, or of a pair of tasks, says anything about confidence."""
        found = [one for run in self.tasks for one in run]
        if found and not any(one.measured for one in found):
            reasons = dict.fromkeys(reason for one in found for reason in one.missing)
            shown = "; ".join(list(reasons)[:5])
            raise OptionError(
                f"--reliability: {shown}. The models of this package log first_token_logprobs and answer_logprob "
                "with every answer that they generate; leave the option out for other logs"
            )
        self.detection.check()


def _pool(parts: list[Flips]) -> FlipRegression:
    import numpy as np

    def joined(values: list[Any]) -> Any:
        return np.concatenate(values)

    numbers = {name: joined([part.numbers[name] for part in parts]) for name in parts[0].numbers}
    common = [name for name in parts[0].categories if all(name in part.categories for part in parts)]
    categories = {name: joined([part.categories[name] for part in parts]) for name in common}
    groups = joined([part.docs if part.codes is None else part.codes for part in parts])
    return regress_flips(joined([part.flipped for part in parts]), numbers, categories, groups)
