"""What an adapter is, and how logged lines become verdicts.

A *verdict* is a prediction (the answer as the benchmark compares it), its score on the benchmark's own scale, whether
that counts as correct, and a status. Scores are taken from the log wherever a line holds one. Benchmarks that log only
what they score later (MMMU, MMBench) get theirs by the benchmark's rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..samples import answer_of, score_of

if TYPE_CHECKING:
    import pandas as pd

    from ..log_lines import Row
    from ..samples import SampleTable
    from .pair_metrics import PairMetric

OK, EMPTY, UNPARSABLE, FAILED, UNSCORED = "ok", "empty", "unparsable", "failed", "unscored"

#: Scores are sums of thirds and tenths: 0.9 may be logged as 0.8999999999999999.
TOLERANCE = 1e-6

#: A number beyond this is no score, and sums of such numbers overflow.
LARGEST_SCORE = 1e15


@dataclass(frozen=True)
class Adapter:
    """How one family of benchmarks logs its answers.

    Attributes:
        name: what a report calls it.
        normalise: raw answer -> the answer as the benchmark compares it; pure, called once per distinct text.
        tasks: lmms-eval task names; each also stands for every name that goes on with "_" (lite and perturbed twins),
            but not for `_reasoning` twins, which a language model judges.
        metrics: metric keys to look for first.
        logged_prediction: where the log holds the benchmark's own normalised answer; None where it holds none. The
            text `UNPARSABLE` stands for an answer that the benchmark can make nothing of.
        logged_score: the score of a line, 0 or 1, where the log holds no number; None where the number counts.
        parses: the benchmark looks for a choice in the answer and may find none.
        extra: what the benchmark's own metrics need to know of a line beside its verdict.
        pair_metrics: the benchmark's own metrics from a frame of pairs (`pairing.PairedSamples`), which has the columns
            extra_baseline and extra_run where there is an `extra`.
    """

    name: str
    normalise: Callable[[str], str]
    tasks: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    logged_prediction: Callable[[Row], str | None] | None = None
    logged_score: Callable[[Row], float | None] | None = None
    parses: bool = False
    extra: Callable[[Row], Any] | None = None
    pair_metrics: Callable[[pd.DataFrame], tuple[PairMetric, ...]] | None = None

    def matches(self, task: str) -> int:
        """Length of the longest of `tasks` that stands for this task name; 0 when none does."""
        if task.endswith("_reasoning"):
            return 0
        return max((len(name) for name in self.tasks if task == name or task.startswith(f"{name}_")), default=0)


@dataclass(frozen=True)
class Verdict:
    """One answer, judged. `correct` is False when `status` is "failed" or "unscored"; without a score that is nan."""

    prediction: str
    score: float
    correct: bool
    status: str


def judge_line(row: dict[str, Any], adapter: Adapter, metric: str, correct_at: float = 0.9) -> Verdict:
    """The verdict on one line of a samples file, e.g. to look at a single document."""
    response, _ = answer_of(row["filtered_resps"])
    prediction = adapter.logged_prediction(row) if adapter.logged_prediction else None
    if prediction is None:
        prediction = adapter.normalise(response)
    counts = row.get("token_counts") or [None]
    failed = isinstance(counts[0], dict) and bool(counts[0].get("error"))
    score = score_of(row, metric, adapter)
    finite = abs(score) <= LARGEST_SCORE  # False for nan, too
    parsed = UNPARSABLE if adapter.parses and prediction == UNPARSABLE else OK
    status = FAILED if failed else UNSCORED if not finite else parsed if response.strip() else EMPTY
    correct = status not in (FAILED, UNSCORED) and score >= correct_at - TOLERANCE
    return Verdict(prediction, score, correct, status)


def judge(table: SampleTable, adapter: Adapter, correct_at: float = 0.9) -> SampleTable:
    """The table with the verdicts as further columns of its frame: prediction, correct (bool) and status.

    Args:
        table: samples as read from the log.
        adapter: the benchmark's rules.
        correct_at: least score that counts as correct, on the benchmark's own scale; 1e-6 of tolerance.
    """
    import numpy as np
    import pandas as pd

    frame = table.frame
    responses: list[str] = frame["response"].tolist()
    normal = {text: adapter.normalise(text) for text in set(responses)}
    blank = {text for text in normal if not text.strip()}
    predictions = [
        normal[response] if logged is None else logged
        for response, logged in zip(responses, frame["logged_prediction"].tolist(), strict=True)
    ]
    score = frame["score"].to_numpy()
    scored = np.abs(score) <= LARGEST_SCORE  # False for nan, too
    status = np.full(len(frame), OK, dtype=object)
    if adapter.parses:
        unread = (text == UNPARSABLE for text in predictions)
        status[np.fromiter(unread, dtype=bool, count=len(predictions))] = UNPARSABLE
    status[np.fromiter((text in blank for text in responses), dtype=bool, count=len(responses))] = EMPTY
    status[~scored] = UNSCORED
    status[frame["error"].notna().to_numpy()] = FAILED
    with np.errstate(invalid="ignore"):
        correct = scored & (score >= correct_at - TOLERANCE) & (status != FAILED)
    judged = frame.assign(
        prediction=pd.Series(np.array(predictions, dtype=object), index=frame.index, dtype=object),
        correct=correct,
        status=pd.Series(status, index=frame.index, dtype=object),
    )
    return replace(table, frame=judged, adapter=adapter.name, parses=adapter.parses)
