"""`pair_samples()`: the only place where two runs are joined. All statistics take its result.

Rows are joined by document, whatever their order: logs of several processes are not in document order. Every way in
which two logs can fail to describe the same samples is counted and, unless accepted by name, refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import PairingError
from .problems import EXAMPLES, Problem, show
from .samples import SampleTable
from .verdicts.base import EMPTY, FAILED, UNPARSABLE, UNSCORED

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]


#: Of the difference of two prompts: lines shown, and characters of each.
_DIFF_LINES, _DIFF_WIDTH = 8, 100
#: Longer texts are not compared line by line.
_DIFF_LIMIT = 20_000


@dataclass(frozen=True)
class PairedSamples:
    """The documents that two runs of one task have in common.

    `frame` has one row per pair in ascending order of doc_id: doc_id, target, prediction_baseline, prediction_run,
    score_baseline, score_run, correct_baseline, correct_run, changed (predictions differ) and flip ("negative": right
    in the baseline and wrong in the run; "positive": the other way round; "" otherwise); and extra_baseline, extra_run
    where the benchmark's own metrics need more.

    Attributes:
        metric: the logged number that the scores are. `adapter`: name of the rules that made the predictions.
        problems: what was found and accepted, with counts.
        complete: every row of both logs is in `frame`, so the runs' native scores are over the same documents.
        mean_baseline, mean_run: mean score over all scored documents of each log, paired or not; nan for none.
        unparsable: answers of the baseline and of the run, among the pairs, in which the benchmark finds no choice;
            None where it looks for none.
        fingerprints_compared: pairs in which both logs carry an input fingerprint; `fingerprints_equal` of them agree.
    """

    task: str
    metric: str
    frame: pd.DataFrame
    problems: tuple[Problem, ...] = ()
    complete: bool = True
    mean_baseline: float = float("nan")
    mean_run: float = float("nan")
    fingerprints_compared: int = 0
    fingerprints_equal: int = 0
    adapter: str = ""
    unparsable: tuple[int, int] | None = None


def pair_samples(baseline: SampleTable, run: SampleTable, accept: Collection[str] = ()) -> PairedSamples:
    """Join the judged samples of two runs of one task by doc_id.

    Args:
        baseline, run: tables that went through `verdicts.judge`.
        accept: kinds of problems (`problems.KINDS`) to count instead of refusing.

    Raises PairingError, with all problems found in this task, when one of them is not accepted.
    """
    problems = [*_line_problems(baseline), *_line_problems(run)]
    left, right = _distinct(baseline, problems), _distinct(run, problems)
    for table, frame in ((baseline, left), (run, right)):
        _status_problems(table, frame, problems)
    means = _mean_score(left), _mean_score(right)
    whole = len(left), len(right)
    left, right = _join(baseline, run, left, right, problems)
    known, equal = _compare_inputs(baseline, run, left, right, problems)
    refused = [problem for problem in problems if problem.kind not in accept]
    if refused:
        raise PairingError(refused)
    left_out = left["status"].isin([FAILED, UNSCORED]) | right["status"].isin([FAILED, UNSCORED])
    usable: Mask = ~left_out.to_numpy()
    if not usable.all():
        left, right = (side[usable].reset_index(drop=True) for side in (left, right))
    frame = _pairs(left, right)
    return PairedSamples(
        task=baseline.task,
        metric=baseline.metric,
        frame=frame,
        problems=tuple(problems),
        complete=whole == (len(frame), len(frame)) and not (baseline.n_bad or run.n_bad),
        mean_baseline=means[0],
        mean_run=means[1],
        fingerprints_compared=int((known & usable).sum()),
        fingerprints_equal=int((equal & usable).sum()),
        adapter=baseline.adapter,
        unparsable=(_unparsable(left), _unparsable(right)) if baseline.parses else None,
    )


def _unparsable(frame: pd.DataFrame) -> int:
    """Answers without a choice, the empty ones among them."""
    return int((frame["prediction"].to_numpy() == UNPARSABLE).sum())


def _line_problems(table: SampleTable) -> list[Problem]:
    """Lines that are no sample records, and a log without any that is one."""
    found = []
    if table.n_bad:
        examples = tuple(f"line {bad.line}: {bad.reason}" for bad in table.bad_lines)
        found.append(Problem("unparsable", table.task, str(table.path), table.n_bad, examples))
    if table.frame.empty:
        found.append(Problem("no samples", table.task, str(table.path), 0))
    return found


def _distinct(table: SampleTable, problems: list[Problem]) -> pd.DataFrame:
    """The table with one row per document (the first line of each), sorted by doc_id."""
    frame = table.frame
    if not frame["doc_id"].is_monotonic_increasing:
        frame = frame.sort_values("doc_id", kind="stable", ignore_index=True)
    again = frame["doc_id"].duplicated()
    if again.any():
        repeated = frame[again]
        times = frame["doc_id"].value_counts()
        if times.min() == times.max():
            examples: tuple[str, ...] = (
                f"every document is there {times.max()} times: a second run was appended, or several filters logged",
            )
        else:
            pairs = zip(repeated["doc_id"], repeated["line"], strict=True)
            examples = tuple(f"doc {doc} again in line {line}" for doc, line in list(pairs)[:EXAMPLES])
        problems.append(Problem("duplicate", table.task, str(table.path), len(repeated), examples))
        frame = frame[~again].reset_index(drop=True)
    return frame


def _status_problems(table: SampleTable, frame: pd.DataFrame, problems: list[Problem]) -> None:
    describe: dict[str, Callable[[Any], str]] = {
        FAILED: lambda row: f"doc {row.doc_id} (line {row.line}): {show(row.error)}",
        EMPTY: lambda row: f"doc {row.doc_id} (line {row.line})",
        UNSCORED: lambda row: f"doc {row.doc_id} (line {row.line}): {table.metric} is {row.score}",
    }
    for status, words in describe.items():
        rows = frame[frame["status"] == status]
        if len(rows):
            examples = tuple(words(row) for row in rows.head(EXAMPLES).itertuples())
            problems.append(Problem(status, table.task, str(table.path), len(rows), examples))


def _join(
    baseline: SampleTable, run: SampleTable, left: pd.DataFrame, right: pd.DataFrame, problems: list[Problem]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both frames with the documents that both have, row by row; documents of one frame only become a problem."""
    import numpy as np

    # without duplicates and sorted, both joins are index look-ups: far faster and leaner than a merge of object columns
    _, at_left, at_right = np.intersect1d(left["doc_id"], right["doc_id"], assume_unique=True, return_indices=True)
    for frame, kept, has, lacks in ((left, at_left, baseline, run), (right, at_right, run, baseline)):
        if len(kept) < len(frame):
            missing = np.delete(frame["doc_id"].to_numpy(), kept)
            examples = (f"not in {lacks.path}: doc {', '.join(map(str, missing[:EXAMPLES]))}",)
            problems.append(Problem("unpaired", baseline.task, str(has.path), len(missing), examples))
    # a copy of millions of references is the largest thing in memory: only where rows are missing
    if len(at_left) < len(left):
        left = left.iloc[at_left].reset_index(drop=True)
    if len(at_right) < len(right):
        right = right.iloc[at_right].reset_index(drop=True)
    return left, right


def _compare_inputs(
    baseline: SampleTable, run: SampleTable, left: pd.DataFrame, right: pd.DataFrame, problems: list[Problem]
) -> tuple[Mask, Mask]:
    """Check that both runs saw the same thing. Returns which rows have fingerprints in both logs, and equal ones."""
    where = f"{baseline.path} and {run.path}"
    for column in ("input", "target"):
        a, b = left[column].to_numpy(), right[column].to_numpy()
        differs: Mask = a != b
        if differs.any():
            first = [int(i) for i in differs.nonzero()[0][:EXAMPLES]]
            examples = tuple(f"doc {left['doc_id'].iloc[i]}: {_difference(a[i], b[i])}" for i in first)
            details = tuple(line for i in first for line in _line_diff(int(left["doc_id"].iloc[i]), a[i], b[i]))
            problems.append(Problem(column, baseline.task, where, int(differs.sum()), examples, details))
    before, after = left["fingerprint"], right["fingerprint"]
    known = (before.notna() & after.notna()).to_numpy()
    differs = known & (before.to_numpy() != after.to_numpy())
    if differs.any():
        docs = left["doc_id"].to_numpy()[differs]
        examples = tuple(f"doc {doc}" for doc in docs[:EXAMPLES])
        problems.append(Problem("fingerprint", baseline.task, where, len(docs), examples))
    return known, known & ~differs


def _difference(a: str, b: str) -> str:
    """Both texts from shortly before the first place where they differ."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - 15)
    return f"{show(a[start:])} against {show(b[start:])}"


def _line_diff(doc_id: int, a: str, b: str) -> list[str]:
    """The lines in which two texts differ, "-" those of the baseline and "+" those of the run.

    Nothing for texts of one line, which the example shows from their first difference on, and for huge ones.
    """
    if ("\n" not in a and "\n" not in b) or len(a) + len(b) > _DIFF_LIMIT:
        return []
    unified = list(difflib.unified_diff(a.split("\n"), b.split("\n"), n=0, lineterm=""))[2:]
    changed = [line for line in unified if not line.startswith("@@")]
    shown = [f"  {line[0]} {show(line[1:], _DIFF_WIDTH)}" for line in changed[:_DIFF_LINES]]
    more = [f"  ... and {len(changed) - _DIFF_LINES} lines more"] if len(changed) > _DIFF_LINES else []
    return [f"doc {doc_id}", *shown, *more]


def _pairs(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    right_before, right_after = left["correct"].to_numpy(), right["correct"].to_numpy()
    flip = np.full(len(left), "", dtype=object)
    flip[right_before & ~right_after] = "negative"
    flip[~right_before & right_after] = "positive"
    columns = {"doc_id": left["doc_id"], "target": left["target"]}
    for name in ("prediction", "score", "correct", *(("extra",) if "extra" in left and "extra" in right else ())):
        columns |= {f"{name}_baseline": left[name], f"{name}_run": right[name]}
    changed = left["prediction"].to_numpy() != right["prediction"].to_numpy()
    return pd.DataFrame({**columns, "changed": changed, "flip": pd.Series(flip, dtype=object)})


def _mean_score(frame: pd.DataFrame) -> float:
    """Mean of the finite scores of rows that did not fail; nan for none."""
    scores = frame["score"][~frame["status"].isin([FAILED, UNSCORED])]
    return float(scores.mean()) if len(scores) else float("nan")
