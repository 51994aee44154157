"""Is a comparison within its limits? Policies, and PASS / FAIL / INCONCLUSIVE for every limit of every run and task.

Pure functions of a `GatePolicy` (read by `gate_policy`) and a `GateReport` (read by `gate_report`). All rates here are
in percent, limits in percent points, as the reports print them. What is not known is never a PASS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, isnan, nan

from .divergence import AVERAGE, NO_RATE, Rate

#: Key of the limits for every task.
EVERY_TASK = "*"
#: Rates that can be limited, in the words of the tables, and the number of each that `judge: interval` looks at.
RATES = {"dr": "DR", "ndr": "NDR", "excess_dr": "excess DR"}
#: What a limit can be on: a rate, or one end of its interval.
METRICS = {
    **RATES,
    **{f"{rate}_{end}": f"{name} ({end} end)" for rate, name in RATES.items() for end in ("low", "high")},
}
INTERVAL, POINT = "interval", "point"
REFUSE, INCONCLUSIVE_IF_MISSING = "refuse", "inconclusive"
#: Square of the 97.5 % quantile of the normal distribution, as in the Wilson intervals of the report.
_Z2 = 3.8414588206941254


class Verdict(Enum):
    """Of one limit, and of all of them. The values are the exit codes of the command."""

    PASS = 0
    FAIL = 1
    INCONCLUSIVE = 3


@dataclass(frozen=True)
class Limit:
    """The most that a rate may be.

    Attributes:
        metric: a key of `METRICS`.
        maximum: in percent points; a rate that equals it is within it.
        judge: "interval" or "point", for a rate; the end of an interval is always compared as it is.
        line: where the policy says so.
    """

    metric: str
    maximum: float
    judge: str = INTERVAL
    line: int = 0

    @property
    def rate(self) -> str:
        """The rate that the limit is about: a key of `RATES`."""
        return self.metric.removesuffix("_low").removesuffix("_high")

    @property
    def is_end(self) -> bool:
        """Whether the limit is on one end of the interval."""
        return self.metric != self.rate

    @property
    def needed(self) -> int:
        """Fewest samples with which a rate of 0 has an interval within the limit; 0 for the limit 0."""
        # no log has 1e15 samples, and some limits would take more of them than there are numbers
        return ceil(min(_Z2 * (100 - self.maximum) / self.maximum - 1e-9, 1e15)) if self.maximum else 0

    def __str__(self) -> str:
        how = f", by {self.judge}" if not self.is_end else ""
        return f"{METRICS[self.metric]} ≤ {self.maximum:g} %{how}"


@dataclass(frozen=True)
class Limits:
    """Limits on the average of a run and on its tasks, by metric; `lines` says where a task is named."""

    average: Mapping[str, Limit] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Limit]] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def on(self, task: str) -> dict[str, Limit]:
        """The limits on a task (or on `AVERAGE`): its own, and those on every task that it does not replace."""
        if task == AVERAGE:
            return dict(self.average)
        return {**self.tasks.get(EVERY_TASK, {}), **self.tasks.get(task, {})}

    @property
    def named(self) -> list[str]:
        """Tasks that are named."""
        return [task for task in self.tasks if task != EVERY_TASK]


@dataclass(frozen=True)
class GatePolicy:
    """What a comparison has to satisfy.

    Attributes:
        name: the file, as the user gave it.
        limits: of every run. runs: limits of single runs, by label or model; they replace those on the same rate.
        missing: "refuse" or "inconclusive": what to make of a task or run that the report does not know at all.
        lines: where a run is named.
    """

    name: str
    limits: Limits
    runs: Mapping[str, Limits] = field(default_factory=dict)
    missing: str = REFUSE
    lines: Mapping[str, int] = field(default_factory=dict)

    def on(self, names: Iterable[str], task: str) -> dict[str, Limit]:
        """The limits on a task of the run that goes by these names, the more specific one first."""
        scopes = [self.runs[name] for name in names if name in self.runs]
        found: dict[str, Limit] = {}
        for scope in (self.limits, *reversed(scopes)):
            found |= scope.on(task)
        return found

    def named_tasks(self, names: Iterable[str]) -> list[str]:
        """Tasks that the policy names for a run."""
        scopes = [self.limits, *(self.runs[name] for name in names if name in self.runs)]
        return list(dict.fromkeys(task for scope in scopes for task in scope.named))


@dataclass(frozen=True)
class ReportRow:
    """One task (or the average) of one run: rates in percent, nan for what the report lacks; keys of `RATES`."""

    task: str
    n: int
    rerun_n: int = 0
    rates: Mapping[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportRun:
    """One run of the report. `rows` has its tasks by name; its average is under `AVERAGE` if it has several."""

    label: str
    model: str = ""
    rows: Mapping[str, ReportRow] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """Its tasks, without the average."""
        return [task for task in self.rows if task != AVERAGE]


@dataclass(frozen=True)
class GateReport:
    """What `compare -o` found. `name` is the file; `notes` of a run say what was accepted or is doubtful."""

    name: str
    baseline: str
    runs: tuple[ReportRun, ...]
    correct_at: float = nan
    prediction: str = ""

    @property
    def tasks(self) -> list[str]:
        """All tasks of all runs."""
        return list(dict.fromkeys(task for run in self.runs for task in run.tasks))


@dataclass(frozen=True)
class Check:
    """One limit on one task of one run, and its verdict.

    Attributes:
        rate: what was judged, in percent, with its interval; nan for what there is not.
        n: pairs; for excess DR the fewer of the run's and the re-run's.
        reason: why, in one sentence.
    """

    run: str
    task: str
    limit: Limit
    verdict: Verdict
    reason: str
    rate: Rate = NO_RATE
    n: int = 0


@dataclass(frozen=True)
class GateResult:
    """All checks. `unjudged`: runs, and tasks as "run: task", of the report on which the policy has no limit."""

    policy: str
    report: GateReport
    checks: tuple[Check, ...]
    unjudged: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """FAIL if any check fails, else INCONCLUSIVE if any is, else PASS; nothing checked is INCONCLUSIVE."""
        verdicts = {check.verdict for check in self.checks}
        if Verdict.FAIL in verdicts:
            return Verdict.FAIL
        return Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.INCONCLUSIVE


def judge(policy: GatePolicy, report: GateReport) -> GateResult:
    """Hold a report against a policy.

    Names that the report does not know are INCONCLUSIVE here; `gate_policy.check_names` refuses them where the policy
    does not say otherwise.
    """
    checks: list[Check] = []
    unjudged: list[str] = []
    for run in report.runs:
        found = _judge_run(policy, run, report.tasks)
        judged = {check.task for check in found}
        left = [f"{run.label}: {task}" for task in run.tasks if task not in judged and AVERAGE not in judged]
        unjudged += left if found else [run.label]
        checks += found
    known = {name for run in report.runs for name in _names(run)}
    for name in policy.runs:
        if name not in known:
            checks += _judge_run(policy, ReportRun(name), report.tasks)
    return GateResult(policy.name, report, tuple(checks), tuple(unjudged))


def _names(run: ReportRun) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (run.label, run.model))))


def _judge_run(policy: GatePolicy, run: ReportRun, all_tasks: Sequence[str]) -> list[Check]:
    """Every limit on the run: on all tasks of the report and of the policy, then on the average."""
    names = _names(run)
    tasks = dict.fromkeys([*all_tasks, *policy.named_tasks(names)])
    checks = []
    for task in (*tasks, AVERAGE):
        for limit in policy.on(names, task).values():
            checks.append(_judge_average(run, limit, all_tasks) if task == AVERAGE else _check(run, task, limit))
    return checks


def _check(run: ReportRun, task: str, limit: Limit) -> Check:
    row = run.rows.get(task)
    if row is None:
        what = f"the report has no {task} of this run" if run.rows else "the report does not have this run"
        return Check(run.label, task, limit, Verdict.INCONCLUSIVE, what)
    verdict, reason = judge_limit(limit, row)
    return Check(run.label, task, limit, verdict, reason, row.rates.get(limit.rate, NO_RATE), _n(limit, row))


def _judge_average(run: ReportRun, limit: Limit, all_tasks: Sequence[str]) -> Check:
    """The average of a run with one task is that task; an average over other tasks than asked for says nothing."""
    missing = [task for task in all_tasks if task not in run.rows]
    if run.rows and missing:
        reason = f"the average leaves out {', '.join(missing)}, which the report has of other runs"
        return Check(run.label, AVERAGE, limit, Verdict.INCONCLUSIVE, reason)
    if AVERAGE not in run.rows and len(run.tasks) == 1:
        run = ReportRun(run.label, run.model, {AVERAGE: run.rows[run.tasks[0]]})
    return _check(run, AVERAGE, limit)


def _n(limit: Limit, row: ReportRow) -> int:
    return min(row.n, row.rerun_n) if limit.rate == "excess_dr" else row.n


def judge_limit(limit: Limit, row: ReportRow) -> tuple[Verdict, str]:
    """The verdict of one limit on one row, and why."""
    rate, n = row.rates.get(limit.rate, NO_RATE), _n(limit, row)
    value = getattr(rate, limit.metric.rpartition("_")[2]) if limit.is_end else rate.value
    name = METRICS[limit.metric]
    if isnan(value):
        remedy = "; compare with --rerun" if limit.rate == "excess_dr" and isnan(rate.value) else ""
        return Verdict.INCONCLUSIVE, f"the report has no {name} here{remedy}"
    if limit.is_end or limit.judge == POINT:
        return _judge_number(limit, name, value, rate, n)
    return _judge_interval(limit, name, rate, n)


def _judge_number(limit: Limit, name: str, value: float, rate: Rate, n: int) -> tuple[Verdict, str]:
    """A number against the limit. Where n is too small for any result to show the limit, nothing is a PASS."""
    small = n < limit.needed
    if not _beyond(value, limit):
        if small:
            return Verdict.INCONCLUSIVE, _too_few(limit, n)
        return Verdict.PASS, f"{name} {value:.4g} % is within the limit"
    if small and limit.metric.endswith("_high") and not _beyond(rate.low, limit):
        return Verdict.INCONCLUSIVE, _too_few(limit, n)
    return Verdict.FAIL, f"{name} {value:.4g} % is beyond the limit"


def _judge_interval(limit: Limit, name: str, rate: Rate, n: int) -> tuple[Verdict, str]:
    """The whole interval against the limit."""
    if isnan(rate.low) or isnan(rate.high):
        return Verdict.INCONCLUSIVE, f"the report has no interval of {name} here; judge: {POINT} takes the estimate"
    ends = f"[{rate.low:.4g}, {rate.high:.4g}]"
    if _beyond(rate.low, limit):
        return Verdict.FAIL, f"the whole interval {ends} is beyond the limit"
    if n < limit.needed:
        return Verdict.INCONCLUSIVE, _too_few(limit, n)
    if _beyond(rate.high, limit):
        return Verdict.INCONCLUSIVE, f"the limit lies within the interval {ends}"
    return Verdict.PASS, f"the whole interval {ends} is within the limit"


def _beyond(value: float, limit: Limit) -> bool:
    # the noise of a multiplication by 100 is no divergence
    return not isnan(value) and value > limit.maximum + 1e-9


def _too_few(limit: Limit, n: int) -> str:
    return f"n = {n} is too small to show this limit, whatever the answers: it takes at least {limit.needed}"
