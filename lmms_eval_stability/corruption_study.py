"""The corruption errors of all runs of a comparison, collected while it goes through tasks and runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .corruption import CleanErrors, CorruptionError, ScoreRangeError, corruption_errors, with_clean

if TYPE_CHECKING:
    import pandas as pd

    from .clusters import Clusters
    from .pairing import PairedSamples

#: Of the bootstrap over clusters.
REPLICATES, SEED = 1000, 0
#: The dimension of `categories` that names methods.
_METHOD = "perturbation"


@dataclass(frozen=True)
class TaskCorruption:
    """How robust one run is on one perturbed task, relative to the baseline.

    Attributes:
        clean_task: the task that this one perturbs, where it is compared, too; else empty, and nothing is relative.
        errors: one per method, and their mean at the end. missing: why there are none; else empty.
    """

    task: str
    run: str
    clean_task: str = ""
    errors: tuple[CorruptionError, ...] = ()
    missing: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON, nan as None."""
        errors = []
        for error in self.errors:
            errors.append(error.record())
            del errors[-1]["task"]
        names = {"task": self.task, "run": self.run, "clean_task": self.clean_task}
        return {**names, "errors": errors, "missing": self.missing}


class CorruptionStudy:
    """Collects corruption errors of perturbed tasks, and the errors on clean ones.

    Args:
        runs: number of compared runs.
    """

    def __init__(self, runs: int) -> None:
        self._tasks: list[list[TaskCorruption]] = [[] for _ in range(runs)]
        self._clean: list[dict[str, CleanErrors]] = [{} for _ in range(runs)]

    def add(
        self,
        i: int,
        pairs: PairedSamples,
        label: str,
        clusters: Clusters | None,
        labels: pd.DataFrame | None,
        clean_task: str,
    ) -> None:
        """Measure one task of run i, if its log names perturbations.

        Args:
            pairs: its paired samples. label: of the run. clusters, labels: of the baseline.
            clean_task: the task that this one perturbs; empty where nothing says so.
        """
        frame = pairs.frame
        if labels is None or _METHOD not in labels:
            errors = (float(1 - frame[f"score_{side}"].mean()) for side in ("baseline", "run"))
            self._clean[i][pairs.task] = CleanErrors(*errors)
            return
        codes = None if clusters is None else clusters.codes.reindex(frame["doc_id"]).to_numpy()
        found = TaskCorruption(pairs.task, label, clean_task)
        try:
            rows = corruption_errors(pairs.task, frame, labels, codes=codes, replicates=REPLICATES, seed=SEED)
        except ScoreRangeError as error:
            self._tasks[i].append(replace(found, clean_task="", missing=str(error)))
            return
        if rows:
            self._tasks[i].append(replace(found, errors=tuple(rows)))

    def finish(self, i: int) -> tuple[TaskCorruption, ...]:
        """The tasks of run i, with relative errors where the clean task is compared, too."""
        return tuple(self._with_clean(i, task) for task in self._tasks[i])

    def _with_clean(self, i: int, task: TaskCorruption) -> TaskCorruption:
        clean = self._clean[i].get(task.clean_task)
        if clean is None or not task.errors:
            return replace(task, clean_task="")
        return replace(task, errors=tuple(with_clean(task.errors, clean)))
