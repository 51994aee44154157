"""A published table beside our runs, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

from ..divergence import Rate
from ..errors import OptionError
from .corrections import AVERAGE, AVERAGE_WITHOUT, CORRECTED, PublishedCell, published_cells
from .names import TASKS
from .ours import OurCell, our_cell
from .published import SIZES
from .reports import BaseReport

#: Tables that runs can be put beside; 7 to 9 are lists of benchmarks and perturbations.
COMPARABLE = (1, 2, 3, 4, 5, 6, 10, 11, 12)
_PERTURBED = ("vision", "text")


@dataclass(frozen=True)
class CellPair:
    """A published cell and ours. `within` says whether the published number lies in our interval; None without one."""

    published: PublishedCell
    ours: OurCell

    @property
    def value(self) -> float:
        """The published number; nan for a cell that is left out."""
        return float(self.published.text) if self.published.text else nan

    @property
    def difference(self) -> float:
        """Ours minus the published number."""
        return self.ours.rate.value - self.value

    @property
    def within(self) -> bool | None:
        rate = self.ours.rate
        if isnan(rate.low) or isnan(self.value):
            return None
        # the printed number stands for all that round to it
        digits = len(self.published.text.partition(".")[2])
        half = 0.5 / 10.0**digits + 1e-9
        return rate.low - half <= self.value <= rate.high + half


@dataclass(frozen=True)
class PaperComparison:
    """A table of the paper beside ours.

    Attributes:
        cells: all cells of the published table, in its order.
        pairs: those that we have, too, the ones that are left out included.
        settings: what the paper leaves open, and what it was here, in sentences.
        others: bases and runs of ours that are not in the table.
    """

    table: int
    cells: tuple[PublishedCell, ...]
    pairs: tuple[CellPair, ...]
    settings: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def missing(self) -> tuple[PublishedCell, ...]:
        """Published cells that we have no number for."""
        having = {pair.published for pair in self.pairs}
        return tuple(cell for cell in self.cells if cell not in having)

    def records(self) -> list[dict[str, Any]]:
        """One dict per cell of the published table, None for what there is not."""
        pairs = {pair.published: pair for pair in self.pairs}
        return [_record(cell, pairs.get(cell)) for cell in self.cells]


def compare_table(number: int, reports: Sequence[BaseReport]) -> PaperComparison:
    """Put a table beside the reports.

    Raises OptionError for a table that holds no results, when nothing of the reports is in it, and when two reports
    have the same cell.
    """
    if number not in COMPARABLE:
        known = ", ".join(map(str, COMPARABLE))
        raise OptionError(f"table {number} holds no results of runs; there are tables {known}")
    published = published_cells(number)
    found: dict[PublishedCell, OurCell] = {}
    for cell in published:
        if cell.benchmark != AVERAGE and (ours := _find(cell, reports)) is not None:
            found[cell] = ours
    found |= _averages(number, published, found)
    if not found:
        raise OptionError(_nothing(number, published, reports))
    pairs = tuple(CellPair(cell, found[cell]) for cell in published if cell in found)
    models = {cell.base_model for cell in published}
    used = [report for report in reports if report.base_model in models]
    settings, others = _settings(pairs, used), _others(published, reports)
    return PaperComparison(number, tuple(published), pairs, tuple(settings), tuple(others))


def _find(cell: PublishedCell, reports: Iterable[BaseReport]) -> OurCell | None:
    having = [
        (report, ours)
        for report in reports
        if report.base_model == cell.base_model
        and (ours := our_cell(report, cell.method, cell.benchmark, cell.perturbation, cell.metric)) is not None
    ]
    if len(having) > 1 and cell.method != "baseline":
        files = " and ".join(str(report.file) for report, _ in having)
        raise OptionError(
            f"{files} both have {cell.base_model} {cell.method} on {having[0][1].task}; compare them one by one"
        )
    return max((ours for _, ours in having), key=lambda ours: ours.n, default=None)


def _averages(
    number: int, published: Sequence[PublishedCell], found: Mapping[PublishedCell, OurCell]
) -> dict[PublishedCell, OurCell]:
    """Unweighted means, as the paper has them, of rows of which we have every benchmark."""
    without = AVERAGE_WITHOUT.get(number, frozenset())
    averages = {}
    for cell in (one for one in published if one.benchmark == AVERAGE):
        row = [one for one in published if one.row == cell.row and one.benchmark not in {AVERAGE, *without}]
        if row and all(one in found for one in row):
            cells = [found[one] for one in row]
            mean = sum(one.rate.value for one in cells) / len(cells)
            averages[cell] = OurCell(Rate(mean, nan, nan), sum(one.n for one in cells), "")
    return averages


def _nothing(number: int, published: Sequence[PublishedCell], reports: Sequence[BaseReport]) -> str:
    models = ", ".join(dict.fromkeys(cell.base_model for cell in published))
    methods = ", ".join(dict.fromkeys(cell.method for cell in published if cell.method != "baseline"))
    have = "; ".join(
        f"{report.base_model or report.name or report.file} with "
        f"{', '.join([*report.runs, *report.other_runs]) or 'no run'}"
        for report in reports
    )
    return (
        f"nothing here is in table {number}, which is about {methods} on {models}; there is {have}. "
        "--as FOLDER=NAME says which base model or method of the paper a folder stands for"
    )


def _others(published: Sequence[PublishedCell], reports: Sequence[BaseReport]) -> list[str]:
    models = {cell.base_model for cell in published}
    methods = {(cell.base_model, cell.method) for cell in published}
    others = []
    for report in reports:
        name = report.base_model or report.name or str(report.file)
        if report.base_model not in models:
            others.append(f"{name} (all runs)")
            continue
        others += [f"{name} {run}" for run in report.other_runs]
        others += [f"{name} {method}" for method in report.runs if (report.base_model, method) not in methods]
    return others


def _settings(pairs: Sequence[CellPair], reports: Sequence[BaseReport]) -> list[str]:
    """What the paper does not say, each with what it was here."""
    thresholds = ", ".join(dict.fromkeys(f"{report.correct_at:g}" for report in reports))
    policies = ", ".join(dict.fromkeys(report.prediction or "not recorded" for report in reports))
    lines = [
        f"least soft score that counts as correct: {thresholds} here, not stated in the paper",
        f"answers compared as: {policies} here; not stated in the paper (raw, filtered or extracted)",
    ]
    perturbed = {pair.ours.task for pair in pairs if pair.published.perturbation in _PERTURBED}
    for task in sorted(perturbed):
        lines.append(f"{task}: {_seed(task, reports)}; the paper states neither seed nor assignment")
    for report in reports:
        lines.append(f"{report.base_model} is {report.name}")
        lines += [f"{report.base_model} {run.method} is {run.name}" for run in report.runs.values()]
        differing = [run.method for run in report.runs.values() if run.confounders]
        if differing:
            names = ", ".join(differing)
            lines.append(
                f"{report.base_model}: {names} differ from the baseline in more than the method, see the report"
            )
    return [*lines, *_baselines(pairs, reports), *_sizes(pairs)]


def _baselines(pairs: Sequence[CellPair], reports: Sequence[BaseReport]) -> list[str]:
    """Scores of a baseline that is in several reports and not the same in all: the one over more samples is shown."""
    lines = []
    for cell in (pair.published for pair in pairs if pair.published.method == "baseline"):
        own = [report for report in reports if report.base_model == cell.base_model]
        found = [our_cell(report, "baseline", cell.benchmark, cell.perturbation, cell.metric) for report in own]
        values = [
            f"{ours.rate.value:.2f} ({report.file.parent})" for report, ours in zip(own, found, strict=True) if ours
        ]
        if len({value.partition(" ")[0] for value in values}) > 1:
            lines.append(
                f"{cell.base_model} baseline on {cell.benchmark} is not the same in all reports: {', '.join(values)}"
            )
    return lines


def _sizes(pairs: Sequence[CellPair]) -> list[str]:
    """Benchmarks of which we asked another number of samples than the paper; MMBench's score is over questions."""
    asked: dict[str, set[int]] = {}
    for pair in pairs:
        cell, n = pair.published, pair.ours.n
        if cell.benchmark in SIZES and not (cell.benchmark == "MMBench" and cell.metric in ("score", "drop")):
            asked.setdefault(cell.benchmark, set()).add(n)
    return [
        f"{benchmark}: {', '.join(map(str, sorted(sizes)))} samples here, {SIZES[benchmark]} in the paper"
        for benchmark, sizes in asked.items()
        if sizes != {SIZES[benchmark]}
    ]


def _seed(task: str, reports: Iterable[BaseReport]) -> str:
    """Set and seed of a perturbed task, as the results JSON of a baseline has them."""
    for report in reports:
        for folder in _folders(report):
            for file in sorted(folder.rglob("*_results.json")):
                plan = _plan(file, task)
                if plan is not None:
                    return f"set {plan.get('set', 'not recorded')}, seed {plan.get('seed', 'not recorded')} here"
    return "seed not recorded here (no results JSON of the baseline was found)"


def _folders(report: BaseReport) -> list[Path]:
    """Where the baseline's run may be: as it was named, or in the study's folder after that was moved."""
    home = report.file.parent
    named = Path(report.folder.partition("@")[0])
    candidates = [home.parents[1] / "runs" / home.name / "baseline"] if len(home.parents) > 1 else []
    return [folder for folder in (*candidates, named) if report.folder and folder.is_dir()]


def _plan(file: Path, task: str) -> dict[str, Any] | None:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))["configs"][task]["metadata"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    entries = metadata if isinstance(metadata, list) else [metadata]
    plans = (entry.get("perturbation") for entry in entries if isinstance(entry, dict))
    return next((plan for plan in plans if isinstance(plan, dict)), None)


def _record(cell: PublishedCell, pair: CellPair | None) -> dict[str, Any]:
    """A cell for programs. `status` is "compared", "corrected", "left out" or "missing"."""
    ours = pair.ours if pair else None
    status = "missing" if ours is None else "left out" if cell.left_out else "compared"
    if status == "compared" and any(remark.kind == CORRECTED for remark in cell.remarks):
        status = CORRECTED
    tasks = TASKS.get((cell.benchmark, cell.perturbation), ())
    numbers = (
        (ours.rate.value, ours.rate.low, ours.rate.high, pair.difference) if ours and pair else (nan, nan, nan, nan)
    )
    ours_value, low, high, difference = (None if isnan(number) else number for number in numbers)
    return {
        "table": cell.table,
        "base_model": cell.base_model,
        "method": cell.method,
        "perturbation": cell.perturbation,
        "benchmark": cell.benchmark,
        "metric": cell.metric,
        "task": ours.task if ours else (tasks[0] if tasks else ""),
        "n": ours.n if ours else None,
        "ours": ours_value,
        "ours_low": low,
        "ours_high": high,
        "published": float(cell.text) if cell.text else None,
        "printed": cell.printed,
        "difference": difference,
        "within": pair.within if pair else None,
        "status": status,
        "note": "; ".join(remark.why for remark in cell.remarks),
    }
