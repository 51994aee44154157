"""Verdicts: every rule of docs/commands/gate.md, on numbers worked out by hand."""

from __future__ import annotations

from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms_eval_stability.divergence import AVERAGE, Rate, wilson
from lmms_eval_stability.gate import (
    METRICS,
    GatePolicy,
    GateReport,
    Limit,
    Limits,
    ReportRow,
    ReportRun,
    Verdict,
    judge,
    judge_limit,
)

PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def row(k: int, n: int, task: str = "gqa", rerun_n: int = 0, **rates: Rate) -> ReportRow:
    """A row in which k of n samples diverge, DR and NDR alike."""
    rate = wilson(k, n)
    percent = Rate(100 * rate.value, 100 * rate.low, 100 * rate.high)
    return ReportRow(task, n, rerun_n, {"dr": percent, "ndr": percent, "excess_dr": Rate(nan, nan, nan), **rates})


@pytest.mark.parametrize(
    ("k", "n", "maximum", "verdict"),
    [
        (0, 188, 2, OPEN),  # 0 of 188: [0, 2.002]
        (0, 189, 2, PASS),  # 0 of 189: [0, 1.992]
        (10, 1000, 2, PASS),  # [0.54, 1.83]
        (15, 1000, 2, OPEN),  # [0.91, 2.46]
        (40, 1000, 2, FAIL),  # [2.95, 5.40]
        (1, 5, 2, FAIL),  # [3.6, 62.4]
        (0, 5, 2, OPEN),
    ],
)
def test_by_interval(k: int, n: int, maximum: float, verdict: Verdict) -> None:
    assert judge_limit(Limit("ndr", maximum), row(k, n))[0] is verdict


@pytest.mark.parametrize(
    ("k", "n", "maximum", "verdict"),
    [
        (20, 1000, 2, PASS),  # equal is within
        (21, 1000, 2, FAIL),
        (0, 188, 2, OPEN),  # within, but so it would be by chance
        (0, 189, 2, PASS),
        (1, 5, 2, FAIL),
        (0, 1, 0, PASS),  # nothing diverges in these samples: no n needed
        (1, 100_000, 0, FAIL),
    ],
)
def test_by_point(k: int, n: int, maximum: float, verdict: Verdict) -> None:
    assert judge_limit(Limit("dr", maximum, "point"), row(k, n))[0] is verdict


@pytest.mark.parametrize(
    ("metric", "k", "n", "maximum", "verdict"),
    [
        ("ndr_high", 10, 1000, 2, PASS),
        ("ndr_high", 15, 1000, 2, FAIL),  # where the interval would leave it open
        ("ndr_high", 0, 5, 2, OPEN),  # no answers could have passed
        ("ndr_high", 1, 5, 2, FAIL),  # and these fail all the same
        ("ndr_low", 15, 1000, 2, PASS),
        ("ndr_low", 40, 1000, 2, FAIL),
        ("ndr_low", 0, 5, 2, OPEN),
        ("ndr_low", 1, 5, 2, FAIL),
    ],
)
def test_by_an_end(metric: str, k: int, n: int, maximum: float, verdict: Verdict) -> None:
    assert judge_limit(Limit(metric, maximum), row(k, n))[0] is verdict


def test_fewest_samples() -> None:
    assert [Limit("ndr", maximum).needed for maximum in (1, 2, 5, 10, 50)] == [381, 189, 73, 35, 4]


@given(st.floats(0.01, 99.9))
def test_fewest_samples_are_where_zero_of_n_shows_the_limit(maximum: float) -> None:
    needed = Limit("ndr", maximum).needed
    assert 100 * wilson(0, needed).high <= maximum + 1e-6
    if needed > 1:
        assert 100 * wilson(0, needed - 1).high > maximum - 1e-6


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize("judging", ["interval", "point"])
def test_what_is_missing_is_no_pass(metric: str, judging: str) -> None:
    empty = ReportRow("gqa", 10_000, 10_000, dict.fromkeys(("dr", "ndr", "excess_dr"), Rate(nan, nan, nan)))
    verdict, reason = judge_limit(Limit(metric, 99, judging), empty)
    assert verdict is OPEN
    assert METRICS[metric] in reason
    assert judge_limit(Limit(metric, 99, judging), ReportRow("gqa", 10_000, 10_000))[0] is OPEN


def test_a_rate_without_interval_needs_a_point() -> None:
    bare = row(0, 1, ndr=Rate(0.0, nan, nan))
    verdict, reason = judge_limit(Limit("ndr", 5), bare)
    assert verdict is OPEN
    assert "judge: point" in reason
    assert judge_limit(Limit("ndr", 5, "point"), ReportRow("gqa", 1000, 0, bare.rates))[0] is PASS


def test_excess_needs_enough_samples_in_the_rerun_too() -> None:
    nothing = {"excess_dr": Rate(0.0, 0.0, 0.0)}
    assert judge_limit(Limit("excess_dr", 2), row(0, 1000, rerun_n=1000, **nothing))[0] is PASS
    assert judge_limit(Limit("excess_dr", 2), row(0, 1000, rerun_n=5, **nothing))[0] is OPEN
    assert "--rerun" in judge_limit(Limit("excess_dr", 2), row(0, 1000))[1]


@given(st.integers(0, 400), st.integers(1, 400), st.floats(1e-300, 99), st.floats(1e-300, 99))
def test_a_wider_limit_is_never_harder(k: int, more: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    order = {FAIL: 0, OPEN: 1, PASS: 2}
    for metric, judging in (("ndr", "interval"), ("ndr_low", "interval"), ("ndr_high", "interval"), ("ndr", "point")):
        narrow, wide = (judge_limit(Limit(metric, most, judging), row(k, k + more))[0] for most in (low, high))
        assert order[narrow] <= order[wide], metric


def report(*runs: ReportRun) -> GateReport:
    return GateReport("summary.json", "base", runs)


def run(label: str, *rows: ReportRow, model: str = "") -> ReportRun:
    return ReportRun(label, model, {one.task: one for one in rows})


def on_tasks(**tasks: float) -> Limits:
    return Limits(tasks={task.replace("ANY", "*"): {"ndr": Limit("ndr", most)} for task, most in tasks.items()})


def verdicts(policy: GatePolicy, of: GateReport) -> dict[tuple[str, str], tuple[float, Verdict]]:
    return {(check.run, check.task): (check.limit.maximum, check.verdict) for check in judge(policy, of).checks}


def test_the_more_specific_limit_counts() -> None:
    found = report(
        run("m (r=1)", row(10, 1000), row(10, 1000, "pope"), model="m"),
        run("m (r=2)", row(10, 1000), row(10, 1000, "pope"), model="m"),
        run("x", row(10, 1000), row(10, 1000, "pope")),
    )
    policy = GatePolicy("p", on_tasks(ANY=50, gqa=2), {"m": on_tasks(ANY=40), "m (r=2)": on_tasks(pope=0.1)})
    assert verdicts(policy, found) == {
        ("m (r=1)", "gqa"): (40, PASS),
        ("m (r=1)", "pope"): (40, PASS),
        ("m (r=2)", "gqa"): (40, PASS),
        ("m (r=2)", "pope"): (0.1, FAIL),
        ("x", "gqa"): (2, PASS),
        ("x", "pope"): (50, PASS),
    }


def test_a_task_of_other_runs_is_open() -> None:
    found = report(run("a", row(0, 1000), row(0, 1000, "pope")), run("b", row(0, 1000)))
    policy = GatePolicy("p", on_tasks(ANY=5))
    assert verdicts(policy, found)["b", "pope"] == (5, OPEN)
    assert judge(policy, found).verdict is OPEN


def test_tasks_and_runs_that_nobody_knows_are_open() -> None:
    found = report(run("a", row(0, 1000)))
    policy = GatePolicy("p", on_tasks(gqa=5, nowhere=5), {"b": on_tasks(gqa=3)}, missing="inconclusive")
    assert verdicts(policy, found) == {
        ("a", "gqa"): (5, PASS),
        ("a", "nowhere"): (5, OPEN),
        ("b", "gqa"): (3, OPEN),
        ("b", "nowhere"): (5, OPEN),
    }


def test_averages() -> None:
    average = Limits(average={"ndr": Limit("ndr", 5, "point")})
    mean = ReportRow(AVERAGE, 2000, 0, {"ndr": Rate(1.0, nan, nan)})
    both = run("both", row(10, 1000), row(10, 1000, "pope"), mean)
    single = run("single", row(10, 1000))
    assert judge(GatePolicy("p", average), report(both)).verdict is PASS
    assert judge(GatePolicy("p", average), report(single)).verdict is PASS
    # other tasks than those of the report: no average to speak of
    assert verdicts(GatePolicy("p", average), report(both, single))["single", AVERAGE] == (5, OPEN)
    by_interval = Limits(average={"ndr": Limit("ndr", 5)})
    assert judge(GatePolicy("p", by_interval), report(both)).verdict is OPEN
    # "*" is every task, and not the average
    assert ("both", AVERAGE) not in verdicts(GatePolicy("p", on_tasks(ANY=5)), report(both))


def test_the_whole_fails_before_it_is_open_and_nothing_is_no_pass() -> None:
    found = report(run("a", row(0, 1000), row(0, 5, "few"), row(500, 1000, "bad")))
    assert judge(GatePolicy("p", on_tasks(ANY=5)), found).verdict is FAIL
    assert judge(GatePolicy("p", on_tasks(gqa=5, few=5)), found).verdict is OPEN
    assert judge(GatePolicy("p", on_tasks(gqa=5)), found).verdict is PASS
    assert judge(GatePolicy("p", Limits()), found).verdict is OPEN


def test_what_has_no_limit_is_named() -> None:
    found = report(run("a", row(0, 1000), row(0, 1000, "pope")), run("b", row(0, 1000), row(0, 1000, "pope")))
    assert judge(GatePolicy("p", Limits(), {"a": on_tasks(gqa=5)}), found).unjudged == ("a: pope", "b")
