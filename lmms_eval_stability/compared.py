"""What a comparison found: plain data, made by `comparison.compare_runs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .categories import CategoryRow
from .changes import TaskChanges
from .confounders import Confounder
from .consistency import TaskConsistency
from .divergence import Divergence
from .overlap import TaskOverlap
from .problems import Problem
from .runs import Run
from .speed import Speed
from .verdicts import SCORED, PairMetric

if TYPE_CHECKING:
    import pandas as pd

    from .corruption_study import TaskCorruption
    from .detection_study import OodDetection
    from .reliability import TaskReliability
    from .reliability_study import PooledRegression


@dataclass(frozen=True)
class RunComparison:
    """One run against the baseline.

    Attributes:
        label: name of the run in all outputs.
        rows: one `Divergence` per task, then their average where there are several.
        confounders: settings in which the run differs from the baseline.
        accepted: problems that were accepted, each with its count, of this run and of the baseline's re-run.
        warnings: sentences about what to know before believing the numbers.
        metrics: what the benchmarks report beside the score, task by task (F1 of POPE, circular accuracy of MMBench).
        categories: the numbers of parts of the tasks, where the baseline's log names any.
        changes: what the changed answers became, task by task.
        weighted: the average in which each sample counts the same, beside that of `rows`; None for one task.
        reliability: what log-probabilities say, task by task; empty where nobody asked for it.
        detection: whether confidence tells pairs of tasks apart, pair by pair.
        corruption: errors under each perturbation, perturbed task by perturbed task; with reliability alone.
        speeds: what the baseline and the run cost in time and memory, where their models logged it.
    """

    label: str
    run: Run
    rows: tuple[Divergence, ...]
    confounders: tuple[Confounder, ...] = ()
    accepted: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    metrics: tuple[PairMetric, ...] = ()
    categories: tuple[CategoryRow, ...] = ()
    changes: tuple[TaskChanges, ...] = ()
    weighted: Divergence | None = None
    reliability: tuple[TaskReliability, ...] = ()
    speeds: tuple[Speed | None, Speed | None] = (None, None)
    detection: tuple[OodDetection, ...] = ()
    corruption: tuple[TaskCorruption, ...] = ()

    @property
    def shown_rows(self) -> tuple[Divergence, ...]:
        """The rows of a table for people: with the weighted average at the end, where there are several tasks."""
        return self.rows if self.weighted is None else (*self.rows, self.weighted)


@dataclass(frozen=True)
class Rerun:
    """The baseline run again, and the settings in which that run differs from it."""

    run: Run
    confounders: tuple[Confounder, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All runs against one baseline.

    `reruns` are the baseline's own re-runs; `prediction` is the policy that says which text of an answer is compared;
    `overlaps` says of each task that several runs have whether they diverge on the same samples; `flip_regressions`,
    where reliability was asked for, of each such task which samples flip under all runs together; `consistency`
    relates, where token reductions logged it, the change of their spectrum to changed answers.
    """

    label: str
    baseline: Run
    runs: tuple[RunComparison, ...]
    correct_at: float
    reruns: tuple[Rerun, ...] = ()
    prediction: str = SCORED
    overlaps: tuple[TaskOverlap, ...] = ()
    flip_regressions: tuple[PooledRegression, ...] = ()
    consistency: tuple[TaskConsistency, ...] = ()

    @property
    def measured_reliability(self) -> bool:
        """Whether reliability was asked for."""
        return any(run.reliability for run in self.runs)

    def records(self) -> list[dict[str, Any]]:
        """One dict per run and task (and average), nan as None; keys as in `divergence.Divergence`."""
        return [row.record() for run in self.runs for row in run.rows]

    @property
    def table(self) -> pd.DataFrame:
        """The records as a data frame, one row per run and task."""
        import pandas as pd

        return pd.DataFrame([row.record() for run in self.runs for row in run.rows])
