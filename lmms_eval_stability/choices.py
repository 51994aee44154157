"""What a comparison is asked for, beside the runs: thresholds, policies, tasks, metrics, what to accept."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import OptionError
from .problems import parse_accept
from .verdicts import POLICIES, SCORED


@dataclass(frozen=True)
class Choices:
    """The options of `comparison.compare_runs`, checked."""

    correct_at: float = 0.9
    accept: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    prediction: str = SCORED

    @classmethod
    def checked(
        cls,
        correct_at: float,
        accept: Collection[str],
        tasks: Sequence[str],
        metric: Sequence[str],
        prediction: str,
    ) -> Choices:
        """The options as given. Raises OptionError, naming the option, for one that makes no sense."""
        if not math.isfinite(correct_at):
            raise OptionError(f"--correct-at {correct_at}: must be a finite number")
        if prediction not in POLICIES:
            raise OptionError(f"--prediction {prediction}: expected one of {', '.join(POLICIES)}")
        return cls(correct_at, parse_accept(accept), tuple(tasks), _metrics(metric), prediction)

    def metric(self, task: str) -> str | None:
        """The metric asked for, for this task or for all ("")."""
        return self.metrics.get(task, self.metrics.get(""))


def _metrics(values: Sequence[str]) -> dict[str, str]:
    """["a", "gqa=b"] -> {"": "a", "gqa": "b"}."""
    chosen = {}
    for value in values:
        task, _, name = value.rpartition("=")
        if not name:
            raise OptionError(f"--metric {value!r}: names no metric; expected NAME or TASK=NAME")
        chosen[task] = name
    return chosen
