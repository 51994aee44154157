"""`compare()`: a comparison as pandas data frames, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .comparison import Comparison, compare_runs
from .pairing import PairedSamples
from .runs import Run

if TYPE_CHECKING:
    import pandas as pd

#: Columns of `Frames.pairs` that repeat few texts.
_CATEGORIES = ("task", "run", "flip")


@dataclass(frozen=True)
class Frames:
    """A comparison as data frames.

    Attributes:
        table: one row per run and task, and per run with several tasks their average; columns as in docs/summary.md.
            Rates are fractions; what there is not is NaN (None in columns of texts).
        pairs: one row per pair, columns as in pairs.csv: task, doc_id, run, target, prediction_baseline,
            prediction_run, score_baseline, score_run, correct_baseline, correct_run, changed, flip. Empty where the
            pairs were not asked for.
        comparison: everything else: the runs, their confounders, accepted problems and warnings.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    comparison: Comparison


def compare(
    base: str | Path | Run,
    runs: str | Path | Run | Sequence[str | Path | Run],
    *,
    pairs: bool = True,
    **options: Any,
) -> Frames:
    """Compare one or several runs with a baseline.

    Args:
        base: the unaccelerated run: a path as `load_run` takes it, or a loaded run.
        runs: one run or several.
        pairs: keep every pair, in memory (about 100 bytes each, and the texts).
        options: as for `comparison.compare_runs`: rerun, correct_at, accept, tasks, metric, prediction, ...

    Raises `StabilityError`s, as `compare_runs` does; PairingError names everything that is wrong with the logs.
    """
    import pandas as pd

    from .report.folder import PAIR_COLUMNS

    kept: list[pd.DataFrame] = []

    def keep(label: str, found: PairedSamples) -> None:
        kept.append(found.frame.assign(task=found.task, run=label)[list(PAIR_COLUMNS)])

    several = [runs] if isinstance(runs, (str, Path, Run)) else list(runs)
    comparison = compare_runs(base, several, on_pairs=keep if pairs else None, **options)
    frame = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=list(PAIR_COLUMNS))
    return Frames(comparison.table, frame.astype(dict.fromkeys(_CATEGORIES, "category")), comparison)
