"""The figures of a page: the frames behind them, and which there is something to draw for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, nan, prod
from typing import TYPE_CHECKING

from ...calibration import flip_rate_by_margin
from ...comparison import Comparison, RunComparison
from ...consistency import TaskConsistency
from ...divergence import AVERAGE
from ...overlap import overlap_table
from .collect import PageCollector, membership
from .details import LogDetails, speedup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ...reliability import ConfidenceComparison
    from ..figures import Theme

#: Bins of margins hold at least so many samples, as long as there are three of them; there are at most ten.
_IN_BIN = 50


@dataclass(frozen=True)
class FigureData:
    """The frames behind the figures, for `report.figures`.

    Attributes:
        records: `Comparison.table`.
        overlap: by task that several runs have, `overlap.overlap_table` of the negatively diverged samples.
        membership: by such task, one row per sample that all its runs have, one bool column per run: whether it
            diverges negatively.
        left_out: samples that are not in `membership` because some run lacks them.
        margins: run -> `calibration.flip_rate_by_margin`, over all tasks.
        costs: run, method, speedup, tokens, flops (nan where no log says) and dr, ndr with their intervals.
        confidences: title of a panel -> the first kind of confidence that both logs have; empty unless asked for.
        consistency: `Comparison.consistency`.
    """

    records: pd.DataFrame
    overlap: Mapping[str, pd.DataFrame]
    membership: Mapping[str, pd.DataFrame]
    left_out: int
    margins: Mapping[str, pd.DataFrame]
    costs: pd.DataFrame
    confidences: Mapping[str, ConfidenceComparison] = field(default_factory=dict)
    consistency: tuple[TaskConsistency, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure, before it is drawn in the colours of a theme."""

    title: str
    caption: str
    draw: Callable[[Theme], Figure]


def gather(
    comparison: Comparison,
    pairs: PageCollector,
    baseline: Mapping[str, LogDetails],
    answers: Mapping[tuple[str, str], LogDetails],
    names: Mapping[str, str],
) -> FigureData:
    """The frames behind the figures.

    Args:
        comparison, pairs: the comparison and what its `on_pairs` received.
        baseline: by task, what the baseline's log says. answers: by (task, run), what the run's log says.
        names: short names of the runs by their labels.
    """
    found = {task: {names[run]: one for run, one in pairs.negative_sets(task).items()} for task in pairs.tasks}
    several = {task: sets for task, sets in found.items() if len(sets) > 1}
    members = {task: membership(sets) for task, sets in several.items()}
    return FigureData(
        records=comparison.table.assign(run=lambda table: table["run"].map(names)),
        overlap={task: overlap_table(sets) for task, sets in several.items()},
        membership={task: table for task, (table, _) in members.items()},
        left_out=sum(lacking for _, lacking in members.values()),
        margins={names[run]: _margins(run, pairs, baseline) for run in pairs.runs},
        costs=_costs(comparison, baseline, answers).assign(run=lambda table: table["run"].map(names)),
        confidences=_confidences(comparison, names),
        consistency=tuple(_renamed(task, names) for task in comparison.consistency),
    )


def _renamed(task: TaskConsistency, names: Mapping[str, str]) -> TaskConsistency:
    return replace(task, runs=tuple(replace(run, run=names[run.run]) for run in task.runs))


def _confidences(comparison: Comparison, names: Mapping[str, str]) -> dict[str, ConfidenceComparison]:
    found: dict[str, ConfidenceComparison] = {}
    for run in comparison.runs:
        for task in run.reliability:
            about = f"{names[run.label]} · {task.task}" if len(run.reliability) > 1 else names[run.label]
            if task.confidences:
                found[about] = task.confidences[0]
    return found


def _margins(run: str, pairs: PageCollector, baseline: Mapping[str, LogDetails]) -> pd.DataFrame:
    margins: list[float] = []
    flipped: list[bool] = []
    for part in pairs.parts:
        if part.run == run:
            known = baseline[part.task].margin
            margins += [known.get(doc, nan) for doc in part.doc_id.tolist()]
            flipped += (part.flip != 0).tolist()
    known_margins = sum(map(isfinite, margins))
    return flip_rate_by_margin(margins, flipped, bins=max(3, min(10, known_margins // _IN_BIN)))


def _costs(
    comparison: Comparison,
    baseline: Mapping[str, LogDetails],
    answers: Mapping[tuple[str, str], LogDetails],
) -> pd.DataFrame:
    """One row per run: geometric mean of the tasks' speed-ups, mean of kept tokens; nan where a task does not say."""
    import pandas as pd

    rows = []
    for run in comparison.runs:
        last = run.rows[-1]  # the only task, or the average
        logs = [(baseline[row.task], answers[row.task, run.label]) for row in run.rows if row.task != AVERAGE]
        gains = [speedup(base.answer_ms, own.answer_ms) for base, own in logs]
        kept = [_mean(list(own.kept.values())) for _, own in logs]
        rows.append(
            {
                "run": run.label,
                "method": _method(run),
                "speedup": prod(gains) ** (1 / len(gains)),
                "tokens": _mean(kept),
            }
            | {"flops": last.cost.flops_ratio}
            | {f"{name}{end}": last.record()[f"{name}{end}"] for name in ("dr", "ndr") for end in ("", "_low", "_high")}
        )
    table = pd.DataFrame(rows)
    texts = ["run", "method"]
    numbers: pd.DataFrame = table.drop(columns=texts).astype(float)
    return table[texts].join(numbers)


def _method(run: RunComparison) -> str:
    """What runs with other settings share: the model's name, and its quantisation beside it."""
    scheme = str(run.run.model_args.get("quantization", ""))
    return " + ".join(filter(None, (run.run.model or run.label, scheme)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else nan


def figures_of(data: FigureData) -> dict[str, Drawing]:
    """All figures that there is something to draw for: by the name of their files."""
    from ..figures import draw_margin, draw_overlap, draw_score_drop, draw_upset

    found: dict[str, Drawing] = {
        "score_drop": Drawing(
            "Score drop and divergence",
            "Each point is a run on a task, with 95 % intervals. A point far above the dotted line (rate = drop) is a "
            "score that hides changed answers.",
            lambda theme: draw_score_drop(data.records, theme),
        )
    }
    found |= _pareto_figures(data) | _sweep_figures(data)
    if any(len(table) for table in data.margins.values()):
        found["margin"] = Drawing(
            "Flips by margin",
            "Share of samples whose verdict changes, by how close the baseline's first token was to its runner-up.",
            lambda theme: draw_margin(data.margins, theme),
        )
    if data.overlap:
        found["overlap"] = Drawing(
            "Do methods break the same samples?",
            "Negatively diverged samples of the row's run that diverge in the column's run, too, in percent; below, "
            "as a multiple of what independent methods would share. n is the size of each run's set. "
            "Each task by itself.",
            lambda theme: draw_overlap(data.overlap, theme=theme),
        )
        found["upset"] = Drawing(
            "Which methods break a sample together",
            "Negatively diverged samples by the exact combination of runs under which they diverge, task by task."
            + (f" {data.left_out} samples are left out: some run lacks them." if data.left_out else ""),
            lambda theme: draw_upset(data.membership, theme=theme),
        )
    return found | _reliability_figures(data)


def _reliability_figures(data: FigureData) -> dict[str, Drawing]:
    from ..figures import MOST_PANELS, draw_reliability, draw_risk_coverage

    if not data.confidences:
        return {}
    shown = dict(list(data.confidences.items())[:MOST_PANELS])
    left_out = len(data.confidences) - len(shown)
    more = f" {left_out} further runs and tasks are in the tables only." if left_out else ""
    kinds = " or ".join(dict.fromkeys(one.kind for one in shown.values()))
    return {
        "reliability": Drawing(
            "Is confidence the chance to be right?",
            f"Confidence ({kinds}) against accuracy in bins of equal mass, over the same samples for both runs; larger "
            f"points hold more samples. Below the dotted line a model is surer than it is right.{more}",
            lambda theme: draw_reliability(shown, theme),
        ),
        "risk_coverage": Drawing(
            "Does confidence tell right from wrong?",
            f"Errors among the most confident answers, the least confident being left to someone else. A curve that "
            f"starts at 0 and rises late is that of a confidence to act on.{more}",
            lambda theme: draw_risk_coverage(shown, theme),
        ),
    }


def _sweep_figures(data: FigureData) -> dict[str, Drawing]:
    """The frontier, where a method has several settings, and the spectrum against unchanged answers."""
    from ..figures import draw_consistency, draw_frontier

    found: dict[str, Drawing] = {}
    if data.costs["method"].duplicated().any():
        found["frontier"] = Drawing(
            "The frontier: divergence against what is saved",
            "DR and NDR of every run against kept visual tokens, theoretical prefill cost (which does not see bit "
            "widths) and measured speed (comparable only if all ran alone on one device). Lines join the settings of "
            "one method. Filled: no other run is better on both axes of the panel; the dashed line joins these.",
            lambda theme: draw_frontier(data.costs, theme),
        )
    methods = dict(zip(data.costs["run"], data.costs["method"], strict=True))
    for number, task in enumerate(data.consistency):
        if len(task.runs) > 1:
            found["consistency" + (f"_{number + 1}" if number else "")] = Drawing(
                f"Does the spectrum tell which answers stay? {task.task}",
                "Mean change of the inverse participation ratio of the visual tokens, by run, against the share of "
                "unchanged answers, with 95 % intervals; p of a two-sided permutation test.",
                lambda theme, task=task: draw_consistency(task, methods, theme),  # type: ignore[misc]
            )
    return found


def _pareto_figures(data: FigureData) -> dict[str, Drawing]:
    from ..figures import draw_pareto

    words = {
        "tokens": "visual tokens kept, mean over decoder layers",
        "speedup": "speed, as the logs have it: median time of an answer (prefill and decoding) in the baseline over "
        "that in the run; comparable only if both ran alone on the same device with the same batch size",
    }
    return {
        f"pareto_{axis}": Drawing(
            f"Divergence against {'kept tokens' if axis == 'tokens' else 'measured speed'}",
            f"NDR against {about}. Filled: no other run is better on both axes.",
            lambda theme, axis=axis: draw_pareto(data.costs, axis, theme=theme),  # type: ignore[misc]
        )
        for axis, about in words.items()
        if any(isfinite(value) for value in data.costs[axis])
    }
