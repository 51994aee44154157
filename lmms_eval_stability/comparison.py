"""Runs compared with a baseline: the study behind the `compare` command, as a Python function.

One task at a time is in memory: the baseline's samples and those of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .averages import weighted_average
from .categories import CategoryRow, all_categories, labeller
from .changes import TaskChanges, changes
from .choices import Choices
from .clusters import Clusters, find_clusters, with_clusters
from .compared import Comparison, Rerun, RunComparison
from .confounders import Confounder, confounders, labels, other_subject
from .consistency import ConsistencyStudy
from .cost import Geometry
from .divergence import Divergence, average, diverge
from .doubts import doubtful_logs, doubtful_metrics, doubtful_scores, short_log
from .errors import OptionError, PairingError, RunFormatError
from .multiplicity import adjust_rows
from .noise import with_floor
from .overlap import DivergedSet, TaskOverlap, task_overlaps
from .pairing import PairedSamples, pair_samples
from .problems import Problem
from .runs import Run, load_run
from .samples import SampleTable
from .speed import Speed
from .verdicts import CHOICE, SCORED, Adapter, PairMetric, adapter_for, judge, with_policy

if TYPE_CHECKING:
    from .reliability_study import ReliabilityStudy

#: Called with (label of the run, its pairs) as soon as a task of a run is paired.
PairSink = Callable[[str, PairedSamples], None]

__all__ = ["Comparison", "PairSink", "Rerun", "RunComparison", "compare_runs"]


def compare_runs(
    baseline: str | Path | Run,
    runs: Sequence[str | Path | Run],
    *,
    rerun: str | Path | Run | Sequence[str | Path | Run] | None = None,
    correct_at: float = 0.9,
    accept: Collection[str] = (),
    tasks: Sequence[str] = (),
    metric: Sequence[str] = (),
    prediction: str = SCORED,
    reliability: bool = False,
    ood: Sequence[str] = (),
    on_pairs: PairSink | None = None,
) -> Comparison:
    """Compare runs with a baseline, sample by sample.

    Args:
        baseline: the unaccelerated run: a path as `load_run` takes it, or a loaded run.
        runs: the runs to compare with it.
        rerun: the baseline run a second time, or several of its re-runs, as the noise floor of DR.
        correct_at: least score that counts as correct, on the benchmark's own scale.
        accept: kinds of problems to count instead of refusing, see `problems.KINDS`.
        tasks: compare these tasks only; all by default.
        metric: names of the score, "NAME" for all tasks or "TASK=NAME" for one.
        prediction: which text of an answer is compared: "scored", "filtered" or "raw", see `verdicts.POLICIES`.
        reliability: read log-probabilities, too, and say how far confidence can be relied on, see `reliability`.
        ood: pairs "ID:OOD" that confidence should tell apart, see `detection_study.OodPair`; needs `reliability`.
        on_pairs: receives the pairs of each task and run; they are not kept otherwise.

    Raises PairingError with every problem of every task and run that is not accepted, and other `StabilityError`s
    for paths and options.
    """
    if not runs:
        raise OptionError("name at least one RUN to compare with the baseline")
    if ood and not reliability:
        raise OptionError("--ood is part of --reliability: add it")
    choices = Choices.checked(correct_at, accept, tasks, metric, prediction)
    base, *others = [_load(run, choices) for run in (baseline, *runs)]
    named = [rerun] if isinstance(rerun, (str, Path, Run)) else list(rerun or ())
    again = [_load(run, choices) for run in named]
    for seen, run in enumerate(others, 1):
        _refuse_twin(run, [base, *others[: seen - 1]])
    for seen, run in enumerate(again):
        _refuse_twin(run, [base, *others, *again[:seen]])
        if differs := other_subject(base, run):
            raise OptionError(f"--rerun {run.name}: no re-run of {base.name}: {differs}")
    return _Comparer(base, others, again, choices, on_pairs, reliability, ood).compare()


def _load(run: str | Path | Run, choices: Choices) -> Run:
    return run if isinstance(run, Run) else load_run(run, broken_results="results" in choices.accept)


def _refuse_twin(run: Run, others: Sequence[Run]) -> None:
    """A run compared with itself shows no divergence and proves nothing."""
    for other in others:
        if (run.folder.resolve(), run.run_id) == (other.folder.resolve(), other.run_id):
            raise OptionError(
                f"{run.name} and {other.name} are the same run ({run.run_id}); FOLDER@TIMESTAMP names another one"
            )


class _Comparer:
    """The state of one comparison: labels, rows and problems so far."""

    def __init__(
        self,
        base: Run,
        runs: Sequence[Run],
        reruns: Sequence[Run],
        choices: Choices,
        on_pairs: PairSink | None,
        reliability: bool,
        ood: Sequence[str],
    ) -> None:
        self.base, self.runs, self.reruns, self.choices, self.on_pairs = base, runs, reruns, choices, on_pairs
        self.base_label, *self.labels = labels([base, *runs])
        self.problems: list[Problem] = []
        self.rows: list[list[Divergence]] = [[] for _ in runs]
        self.accepted: list[list[Problem]] = [[] for _ in runs]
        self.warnings: list[list[str]] = [[] for _ in runs]
        self.metrics: list[list[PairMetric]] = [[] for _ in runs]
        self.categories: list[list[CategoryRow]] = [[] for _ in runs]
        self.changes: list[list[TaskChanges]] = [[] for _ in runs]
        self.right: list[list[int]] = [[] for _ in runs]
        self.overlaps: list[TaskOverlap] = []
        self.consistency = ConsistencyStudy()
        self.reliability: ReliabilityStudy | None = None
        if reliability:
            from .reliability_study import ReliabilityStudy

            self.reliability = ReliabilityStudy(len(runs), ood)
        self.facts: dict[str, Mapping[str, Any]] = {}

    def compare(self) -> Comparison:
        self._check_results_files()
        tasks = self._tasks()
        if self.reliability is not None:
            self.reliability.check_tasks(tasks)
        for task in tasks:
            self._compare_task(task)
        if self.problems:
            raise PairingError(list(dict.fromkeys(self.problems)))
        if not any(self.rows):
            raise OptionError(f"{self.base.name}: no task in common with {', '.join(run.name for run in self.runs)}")
        if self.reliability is not None:
            self.reliability.check()
        self.rows = adjust_rows(self.rows)
        finished = tuple(self._finish(i) for i in range(len(self.runs)))
        return Comparison(
            self.base_label,
            self.base,
            finished,
            self.choices.correct_at,
            tuple(map(self._finish_rerun, self.reruns)),
            self.choices.prediction,
            tuple(self.overlaps),
            tuple(self.reliability.pooled) if self.reliability is not None else (),
            consistency=self.consistency.tasks(),
        )

    def _check_results_files(self) -> None:
        for run in (self.base, *self.runs, *self.reruns):
            if run.results_file is None:
                where = str(run.folder / f"{run.run_id}_results.json")
                examples = (run.results_error,) if run.results_error else ("missing",)
                self._report(Problem("results", "", where, 1, examples), run)

    def _check_described(self, task: str, run: Run) -> None:
        """A results JSON of another run, say, leaves version, settings and native scores of this task unchecked."""
        if run.results_file is not None and task not in run.tasks:
            example = f"it describes {', '.join(run.tasks) or 'no task'}"
            self._report(Problem("results", task, str(run.results_file), 1, (example,)), run)

    def _report(self, problem: Problem, run: Run) -> None:
        """Refuse a problem, or note it as accepted for the comparisons that it concerns."""
        if problem.kind not in self.choices.accept:
            self.problems.append(problem)
            return
        for i, other in enumerate(self.runs):
            if run is other or run is self.base or run in self.reruns:
                self.accepted[i].append(problem)

    def _tasks(self) -> list[str]:
        """The tasks to compare: those asked for, or all of the baseline's and, as a problem, of the others."""
        known = dict.fromkeys(task for run in (self.base, *self.runs) for task in run.sample_files)
        unknown = [task for task in self.choices.tasks if task not in known]
        if unknown:
            raise OptionError(f"--task {', '.join(unknown)}: not in these runs; they have {', '.join(known)}")
        unknown = [task for task in self.choices.metrics if task and task not in known]
        if unknown:
            raise OptionError(f"--metric for {', '.join(unknown)}: not in these runs; they have {', '.join(known)}")
        return [task for task in known if not self.choices.tasks or task in self.choices.tasks]

    def _compare_task(self, task: str) -> None:
        pool: dict[str, str] = {}
        compared = [(i, run) for i, run in enumerate(self.runs) if self._has_task(task, run)]
        if not compared:
            return
        base = self._read(self.base, task, pool, labelled=True)
        clusters = find_clusters(base.labels)
        # the other runs share the baseline's texts, and do not keep their own beyond their turn
        shared = MappingProxyType(pool)
        self._check_described(task, self.base)
        notes = short_log(self.base, base)
        floors = self._pair_reruns(base, shared, notes)
        negative: dict[str, DivergedSet] = {}
        changed: dict[str, DivergedSet] = {}
        for i, run in compared:
            table = self._read(run, task, shared)
            if run is compared[-1][1]:
                pool.clear()
            pairs = self._pair(base, table, run)
            if pairs is None:
                continue
            row = with_clusters(self._measure(i, pairs), pairs, clusters)
            row = replace(row, cost=table.totals.mean_cost(Geometry.from_facts(run.facts or table.facts)))
            codes = None if clusters is None else clusters.codes
            self.rows[i].append(with_floor(row, pairs, floors, codes) if floors else row)
            at = self.choices.correct_at
            self.categories[i] += all_categories(pairs, base.labels, self.base_label, self.labels[i], at)
            self.changes[i].append(TaskChanges(task, changes(pairs)))
            self.right[i].append(int(pairs.frame["correct_baseline"].sum()))
            self.consistency.add(self.labels[i], pairs, table.ipr)
            self._measure_reliability(i, pairs, base, table, clusters)
            self.warnings[i] += [*notes, *short_log(run, table), *doubtful_logs(self.base, base, run, table)]
            negative[self.labels[i]], changed[self.labels[i]] = DivergedSet.negative(pairs), DivergedSet.changed(pairs)
            if self.on_pairs is not None:
                self.on_pairs(self.labels[i], pairs)
            del table, pairs  # before the next run's are read
        self.overlaps += task_overlaps(task, negative, changed)
        if self.reliability is not None:
            self.reliability.end_task(task)

    def _measure_reliability(
        self, i: int, pairs: PairedSamples, base: SampleTable, table: SampleTable, clusters: Clusters | None
    ) -> None:
        if self.reliability is None or base.logprobs is None or table.logprobs is None:
            return
        from .reliability import Side

        sides = []
        for run, label, own in ((self.base, self.base_label, base), (self.runs[i], self.labels[i], table)):
            assert own.logprobs is not None
            geometry = Geometry.from_facts(run.facts or own.facts)
            sides.append(Side(label, own.logprobs, None if geometry is None else geometry.layers))
        clean = next(iter(self._perturbed(pairs.task)), "")
        self.reliability.add(i, pairs, sides[0], sides[1], clusters, base.labels, clean)

    def _pair_reruns(self, base: SampleTable, pool: Mapping[str, str], notes: list[str]) -> list[PairedSamples]:
        """The baseline's re-runs paired with it, with no more columns than the noise floor needs."""
        floors = []
        for run in self.reruns:
            if not self._has_task(base.task, run):
                continue
            table = self._read(run, base.task, pool, rerun=True)
            notes += doubtful_logs(self.base, base, run, table)
            pairs = self._pair(base, table, run)
            if pairs is not None:
                floors.append(replace(pairs, frame=pairs.frame[["doc_id", "changed"]].copy()))
        return floors

    def _measure(self, i: int, pairs: PairedSamples) -> Divergence:
        """All numbers of one task of one run; its benchmark's own metrics, and doubts, go where they belong."""
        run, adapter = self.runs[i], self._rules(pairs.task)
        offered = adapter.pair_metrics(pairs.frame) if adapter.pair_metrics else ()
        metrics = [replace(metric, task=pairs.task) for metric in offered]
        # where the benchmark's score is no mean over its samples, its own metric is the score
        own = next(((one.baseline, one.run) for one in metrics if one.native == pairs.metric), None)
        native = None if adapter.logged_score else _native(self.base, run, pairs)
        row = diverge(pairs, self.base_label, self.labels[i], self.choices.correct_at, native, own)
        self.metrics[i] += metrics
        self.warnings[i] += doubtful_metrics(metrics, pairs, self.base, run)
        self.warnings[i] += doubtful_scores(row, pairs, self.base, run, by_rule=own is not None)
        return replace(row, prediction=self.choices.prediction)

    def _has_task(self, task: str, run: Run) -> bool:
        """Whether both the baseline and the run hold the task; otherwise, and for other versions, a problem."""
        pair = (self.base, run)
        holders = [one for one in pair if task in one.sample_files]
        if len(holders) == 1:
            missing = next(one for one in pair if one is not holders[0])
            other = f"; other runs there: {', '.join(missing.other_run_ids)}" if missing.other_run_ids else ""
            example = f"not in {missing.folder} run {missing.run_id}{other}"
            self._report(Problem("task", task, str(holders[0].sample_files[task]), 1, (example,)), run)
        versions = [one.task(task).version for one in pair]
        if len(holders) == 2 and all(versions) and versions[0] != versions[1]:
            example = f"{versions[0]} against {versions[1]}"
            self._report(Problem("version", task, f"{self.base.name} and {run.name}", 1, (example,)), run)
        if len(holders) == 2:
            self._check_described(task, run)
        return len(holders) == 2

    def _read(
        self, run: Run, task: str, pool: Mapping[str, str], labelled: bool = False, rerun: bool = False
    ) -> SampleTable:
        rules = with_policy(self._rules(task), self.choices.prediction)
        # whatever the categories and images of a document are, one run's log says it
        find = labeller(task, *self._perturbed(task)) if labelled else None
        sure = self.reliability is not None and not rerun
        table = run.samples(task, self.choices.metric(task), pool, rules, find, sure)
        if table.metric in run.task(task).lower_is_better:
            raise OptionError(f"task {task}, {run.name}: less {table.metric} is better; name another one with --metric")
        if table.facts:
            self.facts.setdefault(run.name, table.facts)
        if table.first_list:
            raise RunFormatError(
                f"task {task}, {table.path}: the answer in line {table.first_list} is a list, and no adapter says what "
                "its prediction is; compare the other tasks by name with --task"
            )
        judged = judge(table, self._adapter(task, table), self.choices.correct_at)
        # the raw answers have done their work, and their texts may be most of what is in memory
        return replace(judged, frame=judged.frame.drop(columns=["response", "logged_prediction"]))

    def _rules(self, task: str, exact_match: Mapping[str, Any] | None = None) -> Adapter:
        """The rules of a task, or of the one that it perturbs: the same ones for the baseline and all runs."""
        return adapter_for(next(iter(self._perturbed(task)), task), exact_match)

    def _perturbed(self, task: str) -> list[str]:
        """The task that this one perturbs, if a results JSON says so."""
        stated = (run.task(task).base_task for run in (self.base, *self.runs))
        return [name for name in stated if name][:1]

    def _adapter(self, task: str, table: SampleTable) -> Adapter:
        """The rules for the answers of a table, where no adapter names the task by what is in it."""
        stated = (run.task(task).exact_match for run in (self.base, *self.runs))
        options = next((one for one in stated if one is not None), None)
        adapter = self._rules(task, options if table.metric == "exact_match" else None)
        all_choices = 0 < table.n_choices == len(table.frame)
        return with_policy(CHOICE if all_choices and not adapter.tasks else adapter, self.choices.prediction)

    def _pair(self, base: SampleTable, other: SampleTable, run: Run) -> PairedSamples | None:
        """The pairs; None when they are refused. Problems go where they belong."""
        if base.metric and other.metric and base.metric != other.metric:
            raise OptionError(
                f"task {base.task}: {base.path} logs {base.metric}, {other.path} logs {other.metric}; "
                "choose with --metric"
            )
        try:
            pairs = pair_samples(base, other, self.choices.accept)
        except PairingError as error:
            self.problems += error.problems
            return None
        for problem in pairs.problems:
            self._report(problem, run)
        if pairs.frame.empty:
            self.problems.append(Problem("no pairs", base.task, f"{base.path} and {other.path}", 0))
            return None
        return pairs

    def _finish(self, i: int) -> RunComparison:
        run, rows, notes = self.runs[i], self.rows[i], list(self.warnings[i])
        for one in (self.base, run):
            if one.other_run_ids:
                others = ", ".join(one.other_run_ids)
                notes.append(f"{one.name} holds other runs too ({others}); compared is {one.run_id}")
        for again in self.reruns:
            if more := sorted(again.sample_files.keys() - self.base.sample_files.keys()):
                notes.append(f"{again.name} (re-run) holds tasks that the baseline lacks: {', '.join(more)}")
        unchecked = [one.name for one in (self.base, run, *self.reruns) if one.results_file is None]
        if unchecked:
            notes.append(f"settings not checked: no results JSON for {', '.join(unchecked)}")
        tasks = tuple(row.task for row in rows)
        return RunComparison(
            label=self.labels[i],
            run=run,
            rows=(*rows, average(rows)) if len(rows) > 1 else tuple(rows),
            confounders=self._confounders(run, tasks),
            accepted=tuple(dict.fromkeys(self.accepted[i])),
            warnings=tuple(dict.fromkeys(notes)),
            metrics=tuple(self.metrics[i]),
            categories=tuple(self.categories[i]),
            changes=tuple(self.changes[i]),
            weighted=weighted_average(rows, self.right[i]) if len(rows) > 1 else None,
            reliability=() if self.reliability is None else tuple(self.reliability.tasks[i]),
            speeds=(self._speed(self.base), self._speed(run)),
            detection=() if self.reliability is None else self.reliability.detection.finish(i),
            corruption=() if self.reliability is None else self.reliability.corruption.finish(i),
        )

    def _finish_rerun(self, run: Run) -> Rerun:
        compared = (row.task for rows in self.rows for row in rows)
        tasks = tuple(task for task in dict.fromkeys(compared) if task in run.sample_files)
        return Rerun(run, self._confounders(run, tasks))

    def _speed(self, run: Run) -> Speed | None:
        return Speed.from_facts(run.facts or self.facts.get(run.name, {}))

    def _confounders(self, run: Run, tasks: tuple[str, ...]) -> tuple[Confounder, ...]:
        facts = (self.facts.get(self.base.name, {}), self.facts.get(run.name, {}))
        return confounders(self.base, run, facts, tasks)


def _native(base: Run, run: Run, pairs: PairedSamples) -> tuple[float, float] | None:
    """lmms-eval's own scores of both runs, when it reported both."""
    scores = [one.task(pairs.task).native.get(pairs.metric, math.nan) for one in (base, run)]
    return (scores[0], scores[1]) if all(math.isfinite(score) for score in scores) else None
