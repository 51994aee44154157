"""Reads the policy of `gate` from its YAML. Every complaint names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import StabilityError
from .gate import (
    EVERY_TASK,
    INCONCLUSIVE_IF_MISSING,
    INTERVAL,
    METRICS,
    POINT,
    REFUSE,
    GatePolicy,
    GateReport,
    Limit,
    Limits,
)

if TYPE_CHECKING:
    import yaml

    Entries = dict[str, tuple[yaml.Node, yaml.Node]]

#: A percentage in decimal notation; YAML's other notations (010, 1_0, 1:30, 1e1) are too easily misread.
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?)\s*(%?)")


class GatePolicyError(StabilityError):
    """A policy file says something that cannot be judged."""


def read_policy(path: str | Path) -> GatePolicy:
    """Read a policy; docs/commands/gate.md describes its keys.

    Raises GatePolicyError with FILE:LINE for unknown or repeated keys, impossible limits, numbers that may be
    fractions, and a policy without any limit.
    """
    import yaml

    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise GatePolicyError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        raise GatePolicyError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise GatePolicyError(f"{name}: not a policy: nested too deeply") from error
    return _Reader(name).policy(root)


def check_names(policy: GatePolicy, report: GateReport) -> None:
    """Refuse tasks and runs that the report does not know at all, unless the policy says `missing: inconclusive`.

    Raises GatePolicyError with FILE:LINE.
    """
    if policy.missing == INCONCLUSIVE_IF_MISSING:
        return
    runs = list(dict.fromkeys(name for run in report.runs for name in (run.label, run.model) if name))
    for run, line in policy.lines.items():
        if run not in runs:
            _unknown(policy, line, "run", run, runs)
    for limits in (policy.limits, *policy.runs.values()):
        for task in limits.named:
            if task not in report.tasks:
                _unknown(policy, limits.lines[task], "task", task, report.tasks)


def _unknown(policy: GatePolicy, line: int, what: str, name: str, known: list[str]) -> NoReturn:
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise GatePolicyError(
        f"{policy.name}:{line}: the report has no {what} {name!r}, only {', '.join(map(repr, known))}{hint} "
        f"(missing: {INCONCLUSIVE_IF_MISSING} in the policy makes its limits INCONCLUSIVE instead)"
    )


class _Reader:
    """Walks the nodes of one file, which know their lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.judge = INTERVAL

    def policy(self, root: yaml.Node | None) -> GatePolicy:
        if root is None:
            raise GatePolicyError(f"{self.name}: empty; a policy has the keys average, tasks or runs")
        entries = self.mapping(root, "the policy", {"judge", "missing", "average", "tasks", "runs"})
        self.judge = self.choice(entries, "judge", (INTERVAL, POINT), INTERVAL)
        runs, lines = {}, {}
        if "runs" in entries:
            for run, (key, node) in self.mapping(entries["runs"][1], "'runs'").items():
                inner = self.mapping(node, f"run {run!r}", {"average", "tasks"})
                runs[run], lines[run] = self.limits(inner), key.start_mark.line + 1
                if not runs[run].average and not runs[run].tasks:
                    self.fail(key, f"run {run!r} has no limit")
        limits = self.limits(entries)
        if not (limits.average or limits.tasks or runs):
            self.fail(root, "no limit; a policy has the keys average, tasks or runs")
        missing = self.choice(entries, "missing", (REFUSE, INCONCLUSIVE_IF_MISSING), REFUSE)
        return GatePolicy(self.name, limits, runs, missing, lines)

    def limits(self, entries: Entries) -> Limits:
        average = self.metrics(entries["average"][1], "'average'") if "average" in entries else {}
        tasks, lines = {}, {}
        if "tasks" in entries:
            for task, (key, node) in self.mapping(entries["tasks"][1], "'tasks'").items():
                what = "every task" if task == EVERY_TASK else f"task {task!r}"
                tasks[task], lines[task] = self.metrics(node, what), key.start_mark.line + 1
        return Limits(average, tasks, lines)

    def metrics(self, node: yaml.Node, what: str) -> Mapping[str, Limit]:
        entries = self.mapping(node, what, set(METRICS))
        return {metric: self.limit(metric, key, value) for metric, (key, value) in entries.items()}

    def limit(self, metric: str, key: yaml.Node, node: yaml.Node) -> Limit:
        import yaml

        judge, end = self.judge, metric.endswith(("_low", "_high"))
        if isinstance(node, yaml.MappingNode):
            entries = self.mapping(node, metric, {"max", "judge"})
            if "max" not in entries:
                self.fail(node, f"{metric} lacks 'max', its limit in percent points")
            if end and "judge" in entries:
                self.fail(entries["judge"][0], f"{metric} is the end of an interval, and compared as it is: no 'judge'")
            judge, node = self.choice(entries, "judge", (INTERVAL, POINT), judge), entries["max"][1]
        maximum = self.percentage(metric, node)
        if maximum == 0 and (metric.endswith("_high") or (not end and judge == INTERVAL)):
            self.fail(
                node, f"{metric}: no number of samples can show 0; 'judge: point' asks that none of them diverges"
            )
        return Limit(metric, maximum, judge, key.start_mark.line + 1)

    def percentage(self, metric: str, node: yaml.Node) -> float:
        """A limit in percent points. Between 0 and 1 only with a "%", since it may be meant as a fraction."""
        text = getattr(node, "value", None)
        match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            self.fail(
                node, f"{metric}: the limit is a number of percent points such as 2, 2.5 or 0.5%, not {_show(node)}"
            )
        value = float(match[1])
        if value < 0 or match[1].startswith("-"):
            self.fail(node, f"{metric}: no rate is shown to be below 0: a limit is at least 0, not {text}")
        if value >= 100:
            self.fail(node, f"{metric}: a limit of 100 % or more cannot be exceeded, not {text}")
        if 0 < value < 1 and not match[2]:
            self.fail(
                node,
                f"{metric}: is {text} a fraction? Limits are in percent points: write {100 * value:g} "
                f"for {100 * value:g} of 100 samples, or {text}% for less than one in 100",
            )
        return value

    def choice(self, entries: Entries, key: str, choices: tuple[str, ...], default: str) -> str:
        if key not in entries:
            return default
        node = entries[key][1]
        value = getattr(node, "value", None)
        if value not in choices:
            self.fail(node, f"'{key}' is {' or '.join(choices)}, not {_show(node)}")
        assert isinstance(value, str)
        return value

    def mapping(self, node: yaml.Node, what: str, known: set[str] | None = None) -> Entries:
        """The entries of a mapping by key, none twice, none unknown, at least one."""
        import yaml

        if not isinstance(node, yaml.MappingNode) or not node.value:
            keys = f" with the keys {', '.join(sorted(known))}" if known else ""
            self.fail(node, f"{what} must be a mapping{keys}, not {_show(node)}")
        entries: Entries = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fail(key, f"{what}: a key must be a name, not {_show(key)}")
            if known is not None and key.value not in known:
                self.fail(key, f"{what} does not know {key.value!r}; its keys are {', '.join(sorted(known))}")
            if key.value in entries:
                self.fail(key, f"{what} has {key.value!r} twice")
            entries[key.value] = (key, value)
        return entries

    def fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise GatePolicyError(f"{self.name}:{node.start_mark.line + 1}: {message}")


def _show(node: Any) -> str:
    """A node in a message."""
    if isinstance(node.value, str):
        return repr(node.value[:60]) if node.value else "nothing"
    return "a list" if node.id == "sequence" else "a mapping" if node.value else "an empty mapping"
