"""Numbers as people read them: rates and scores in percent, intervals in brackets, a dash for what there is not."""

from __future__ import annotations

from math import isnan

from ..categories import CHANGED, INPUT, UNCHANGED
from ..clusters import REPLICATES, SEED
from ..comparison import Comparison, RunComparison
from ..cost import describe
from ..divergence import AVERAGE, Divergence, Rate
from ..speed import describe_speeds
from ..verdicts import GENERIC, SCORED, PairMetric
from ..verdicts.policies import FILTERED, RAW

NOTHING = "–"
#: Of the tests that a report counts as small.
LEVEL = 0.05
_POLICY_WORDS = {RAW: "answers as the model wrote them", FILTERED: "answers as filtered"}
#: Columns of the table of the benchmarks' own metrics.
METRIC_COLUMNS = ("benchmark metric", "n", "baseline", "run", "drop", "DR", "NDR", "PDR")


def printable(text: str) -> str:
    """The text without lone surrogates, which stand for bytes of odd file names and which no file or font takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def decimals(rows: tuple[Divergence, ...]) -> int:
    """Digits after the point of percentages: two once a task has so many samples that the second one counts."""
    return 2 if max((row.n for row in rows), default=0) >= 2000 else 1


def percent(value: float, digits: int) -> str:
    """A fraction as a percentage without its sign, "-0.0" never."""
    return NOTHING if isnan(value) else f"{round(100 * value, digits) + 0.0:.{digits}f}"


def rate(value: Rate, digits: int) -> str:
    """A rate with its interval, "12.6 [10.0, 15.8]"; the rate alone where there is no interval."""
    if isnan(value.low):
        return percent(value.value, digits)
    return f"{percent(value.value, digits)} [{percent(value.low, digits)}, {percent(value.high, digits)}]"


def score(value: float, unit: str, digits: int) -> str:
    """A score or a drop: percent where the scale is 0 to 1, the native number otherwise."""
    if unit == "fraction":
        return percent(value, digits)
    return NOTHING if isnan(value) else f"{round(value, 4) + 0.0:g}"


def p_value(value: float) -> str:
    """Two significant digits."""
    return NOTHING if isnan(value) else f"{value:.2g}"


def heading(run: RunComparison, baseline: str, correct_at: float) -> str:
    """What is compared with what, and how answers became right or wrong."""
    soft = any(row.soft for row in run.rows)
    tasks = [row for row in run.rows if row.task != AVERAGE]
    unknown = [row.task for row in tasks if row.adapter == GENERIC.name]
    policy = tasks[0].prediction
    if policy != SCORED:
        answers = _POLICY_WORDS[policy]
    elif not unknown:
        answers = "answers as scored"
    elif len(unknown) == len(tasks):
        answers = f"answers as text (no adapter for {', '.join(unknown)})"
    else:
        answers = f"answers as scored, those of {', '.join(unknown)} as text (no adapter)"
    return f"{run.label} against {baseline} · {answers}" + (f" · soft scores correct at {correct_at:g}" if soft else "")


def mcnemar_line(comparison: Comparison) -> str:
    """How many of all McNemar tests are small, and how many still are when their number is known; "" for one test."""
    rows = [row for run in comparison.runs for row in run.rows if not isnan(row.mcnemar_p_holm)]
    if not rows:
        return ""
    p, by_holm, by_fdr = (
        sum(getattr(row, name) <= LEVEL for row in rows) for name in ("mcnemar_p", "mcnemar_p_holm", "mcnemar_p_fdr")
    )
    return (
        f"McNemar tests: {len(rows)}; p <= {LEVEL:g} in {p}, adjusted for their number in {by_holm} (Holm) and "
        f"{by_fdr} (false discovery rate)"
    )


def floor_lines(run: RunComparison, comparison: Comparison) -> list[str]:
    """The noise floor of each task, where the baseline was run again, and what else differs in that re-run."""
    digits = decimals(run.rows)
    with_rerun = [row for row in run.rows if not isnan(row.rerun_dr.value)]
    lines = [
        f"{'re-run' if row.reruns == 1 else f'{row.reruns} re-runs'} of the baseline"
        f"{f' ({row.task})' if len(run.rows) > 1 else ''}: DR {rate(row.rerun_dr, digits)}"
        f" -> excess DR {rate(Rate(row.excess_dr, row.excess_dr_low, row.excess_dr_high), digits)}"
        for row in with_rerun
    ]
    several = len(comparison.reruns) > 1
    for again in comparison.reruns:
        name = f" of {again.run.name}" if several else ""
        lines.append(f"re-run confounders{name}: {'; '.join(map(str, again.confounders)) or 'none'}")
    return lines


def cost_lines(run: RunComparison) -> list[str]:
    """What the prompts of each task cost in theory, where the log counts their tokens."""
    counted = [row for row in run.rows if row.task != AVERAGE and not isnan(row.cost.flops)]
    several = len(run.rows) > 1
    costs = [f"{describe(row.cost)}{f' ({row.task})' if several else ''}" for row in counted]
    return [f"theoretical cost of a prompt: {'; '.join(costs)}"] if costs else []


def interval_line(run: RunComparison) -> str:
    """How the intervals were made, and over which clusters."""
    rows = [row for row in run.rows if row.task != AVERAGE]
    several = len(rows) > 1
    clustered = [row for row in rows if row.clusters]
    parts = []
    if clustered:
        where = [
            f"{row.clusters} clusters of {row.n} by {row.clustered_by}{f' ({row.task})' if several else ''}"
            for row in clustered
        ]
        parts.append(f"cluster bootstrap ({REPLICATES:,} replicates, seed {SEED}) over {', '.join(where)}")
    if len(clustered) < len(rows):
        alone = f" ({', '.join(row.task for row in rows if not row.clusters)})" if clustered else ""
        parts.append(f"Wilson, samples taken as independent{alone}")
    return f"95 % intervals: {'; '.join(parts)}"


def metric_cells(metric: PairMetric, run: RunComparison) -> list[str]:
    """One line of the table of the benchmarks' own metrics: the texts under `METRIC_COLUMNS`."""
    digits = decimals(run.rows)
    several = sum(row.task != AVERAGE for row in run.rows) > 1
    values = (percent(value, digits) for value in (metric.baseline, metric.run, metric.drop))
    rates = (rate(value, digits) for value in (metric.dr, metric.ndr, metric.pdr))
    return [f"{metric.task} {metric.name}" if several else metric.name, f"{metric.n} {metric.unit}", *values, *rates]


def unparsable_lines(run: RunComparison) -> list[str]:
    """How many answers had no choice that the benchmark could find, where it looks for one and there are any."""
    counted = [
        f"{row.unparsable_baseline} of the baseline, {row.unparsable_run} of the run ({row.task})"
        for row in run.rows
        if row.task != AVERAGE and (row.unparsable_baseline or row.unparsable_run)
    ]
    return [f"unparsable answers, one prediction and wrong: {'; '.join(counted)}"] if counted else []


def unchanged_lines(run: RunComparison) -> list[str]:
    """Per perturbed task, how many inputs its perturbations left as they were, and the rates without them."""
    lines, digits = [], decimals(run.rows)
    parts = [one for one in run.categories if one.dimension == INPUT]
    for task in dict.fromkeys(one.row.task for one in parts):
        rows = {one.category: one.row for one in parts if one.row.task == task}
        unchanged, n = rows.get(UNCHANGED), sum(row.n for row in rows.values())
        if unchanged is None:
            lines.append(f"perturbed inputs ({task}): none of {n} is known to be unchanged")
            continue
        without = ""
        if (changed := rows.get(CHANGED)) is not None:
            without = f"; DR {rate(changed.dr, digits)}, NDR {rate(changed.ndr, digits)} over the changed ones"
        lines.append(f"perturbed inputs ({task}): {unchanged.n} of {n} unchanged{without}")
    return lines


def footnotes(run: RunComparison) -> list[str]:
    """What stands below a table: inputs, confounders, accepted problems, warnings."""
    last = run.rows[-1]
    compared, equal = last.fingerprints_compared, last.fingerprints_equal
    if compared == last.n:
        inputs = f"{equal} of {compared} equal"
    elif compared:
        agree = "all equal" if equal == compared else f"{equal} of them equal"
        inputs = f"{compared} of {last.n} pairs have fingerprints in both logs; {agree}"
    else:
        inputs = "not logged by both runs (prompts and targets were compared as text)"
    different = "; ".join(map(str, run.confounders)) or "none"
    metrics = dict.fromkeys(row.metric for row in run.rows if row.task != AVERAGE)
    if len(metrics) > 1:
        scores = "scores: " + ", ".join(f"{row.metric} ({row.task})" for row in run.rows if row.task != AVERAGE)
    else:
        scores = f"score: {next(iter(metrics))}"
    lines = [f"input fingerprints: {inputs} · confounders: {different}", scores, interval_line(run)]
    lines += unchanged_lines(run)
    lines += unparsable_lines(run)
    lines += cost_lines(run)
    lines += [f"measured: {speeds}"] if (speeds := describe_speeds(*run.speeds)) else []
    lines += [f"accepted: {problem.line()}" for problem in run.accepted]
    return lines + [f"warning: {warning}" for warning in run.warnings]
