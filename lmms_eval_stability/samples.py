"""A samples file of lmms-eval, read line by line into one table with only the columns that a comparison needs.

The reader never raises for a bad line and never skips one quietly: it counts it and keeps where and why.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .consistency import IprColumns
from .cost import TokenTotals
from .errors import RunFormatError
from .harness_logs import RESULTS as HARNESS_RESULTS
from .harness_logs import SAMPLES as HARNESS_SAMPLES
from .log_lines import Row, is_deep, rows_of
from .problems import EXAMPLES

if TYPE_CHECKING:
    import pandas as pd

    from .reliability_columns import LogProbabilities, LogProbabilityColumns
    from .verdicts.base import Adapter

#: Names of dimensions -> categories of one line, see `categories.labeller`.
Labeller = Callable[[Row], Mapping[str, str]]

#: Keys of a sample line that are never a metric.
RESERVED = frozenset(
    {"doc_id", "target", "filtered_resps", "resps", "token_counts", "doc_hash", "input", "input_media", "submission"}
)
_REQUIRED = ("doc_id", "target", "input", "filtered_resps")
_TOO_DEEP = "nested too deeply"


@dataclass(frozen=True)
class BadLine:
    """A line that is no sample record: its number (from 1) and what is wrong with it."""

    line: int
    reason: str


@dataclass(frozen=True)
class SampleTable:
    """The samples of one task of one run.

    `frame` has one row per usable line in the order of the file: doc_id (int64), line (int64), target, input, response
    (text as logged), logged_prediction (text or None: the benchmark's own normalised answer), score (float64, nan when
    missing), fingerprint (text or None), error (text or None), and extra where the adapter wants more of each line.

    Attributes:
        metric: key of the lines from which `score` was taken; empty when no line was usable.
        n_bad: number of lines that are no sample record; `bad_lines` holds the first few.
        facts: what the run wrote about itself (versions, dtype, kernel, device), from the first line that carries it.
        n_choices: rows whose answer is the choice that log-likelihoods make, see `answer_of`.
        first_list: number of the first line whose answer is neither a text nor a choice; 0 for none.
        n_measured: rows that carry measurements of their model.
        totals: sums of the rows' counts of tokens, for the cost of their prompts.
        labels: one column per dimension that any line names (text, or None), index doc_id, one row per document; None
            where nobody asked for them.
        adapter: name of the rules by which the answers were judged; empty before that.
        parses: these rules look for a choice in an answer and may find none.
        logprobs: how sure the model was, see `reliability_columns`; None where nobody asked for it.
        ipr: how far the spectrum of each sample's visual tokens changed, see `consistency`.
    """

    task: str
    path: Path
    metric: str
    frame: pd.DataFrame
    n_bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    n_choices: int = 0
    first_list: int = 0
    n_measured: int = 0
    adapter: str = ""
    parses: bool = False
    totals: TokenTotals = field(default_factory=TokenTotals)
    labels: pd.DataFrame | None = None
    logprobs: LogProbabilities | None = None
    ipr: IprColumns = field(default_factory=IprColumns)


class _Columns:
    """Growing columns. Texts go through `pool`, so that a text repeated in this or another run is stored once."""

    def __init__(self, adapter: Adapter, pool: Mapping[str, str], labeller: Labeller | None = None) -> None:
        self.doc_id, self.line, self.score = array("q"), array("q"), array("d")
        self.target: list[str] = []
        self.input: list[str] = []
        self.response: list[str] = []
        self.prediction: list[str | None] = []
        self.fingerprint: list[str | None] = []
        self.error: list[str | None] = []
        self.extra: list[Any] = []
        self.labels: dict[str, list[str | None]] = {}
        self.facts: dict[str, Any] = {}
        self.totals, self.ipr = TokenTotals(), IprColumns()
        self.n_choices = self.first_list = self.n_measured = 0
        self.metric = ""
        self.logprobs: LogProbabilityColumns | None = None
        self._labeller, self._categories = labeller, dict[str, str]()
        self._adapter, self._logged, self._extra = adapter, adapter.logged_prediction, adapter.extra
        self._intern: Callable[[str, str], str] = pool.setdefault if isinstance(pool, dict) else pool.get

    def add(self, number: int, row: Row) -> None:
        """Append one line. Raises KeyError, TypeError or ValueError, before any change, when it is no sample record."""
        doc_id = row["doc_id"]
        if type(doc_id) is not int or not -(2**63) <= doc_id < 2**63:
            raise ValueError("doc_id is not an integer")
        target, prompt, response = row["target"], row["input"], row["filtered_resps"]
        if not (type(target) is type(prompt) is str):
            target, prompt = as_text(target), as_text(prompt)
        score = row.get(self.metric)
        if type(score) is not float:
            score = score_of(row, self.metric, self._adapter)
        prediction = None if self._logged is None else self._logged(row)
        extra = None if self._extra is None else self._extra(row)
        labels = None if self._labeller is None else self._labeller(row)
        counts = row.get("token_counts")
        measured = counts[0] if type(counts) is list and counts and type(counts[0]) is dict else {}
        error = as_text(measured["error"]) if measured.get("error") else None
        if "run" in measured and is_deep(measured["run"]):
            raise ValueError(_TOO_DEEP)
        kind = TEXT
        if type(response) is not str:
            response, kind = answer_of(response)
        # from here on nothing is raised: a line is in all columns or in none
        self.n_choices += kind == CHOICE
        if kind == LIST and prediction is None:
            self.first_list = self.first_list or number
        intern = self._intern
        self.doc_id.append(doc_id)
        self.line.append(number)
        self.score.append(score)
        self.target.append(intern(target, target))
        self.input.append(intern(prompt, prompt))
        self.response.append(intern(response, response))
        self.prediction.append(prediction if prediction is None else intern(prediction, prediction))
        self.error.append(error)
        if self._extra is not None:
            self.extra.append(extra)
        if labels is not None:
            self._label(labels)
        self._measure(measured, counts)

    def _label(self, found: Mapping[str, str]) -> None:
        for name in found:
            if name not in self.labels:
                self.labels[name] = [None] * (len(self.doc_id) - 1)
        for name, column in self.labels.items():
            category = found.get(name)
            column.append(category if category is None else self._categories.setdefault(category, category))

    def _measure(self, measured: Row, counts: Any) -> None:
        """The first request's measurements; models that log none write `[null]`, `[]`, other keys or nothing."""
        fingerprint = None
        if measured:
            self.n_measured += 1
            self.totals.add(measured)
            self.ipr.add(self.doc_id[-1], measured.get("diagnostics"))
            # of several requests, the choices of a question, none is the answer
            if self.logprobs is not None and len(counts) == 1:
                self.logprobs.add(self.doc_id[-1], measured)
            fingerprint = measured.get("input_fingerprint")
            if not self.facts and isinstance(measured.get("run"), dict):
                self.facts = measured["run"]
        self.fingerprint.append(self._intern(fingerprint, fingerprint) if type(fingerprint) is str else None)

    def label_frame(self) -> pd.DataFrame | None:
        """The labels by document; of several lines of a document the first counts, as in pairing."""
        if self._labeller is None:
            return None
        import numpy as np
        import pandas as pd

        docs = pd.Index(np.array(self.doc_id, dtype=np.int64), name="doc_id")
        columns = {name: np.array(values, dtype=object) for name, values in self.labels.items()}
        labels = pd.DataFrame(columns, index=docs, dtype=object)
        return labels[~docs.duplicated()]

    def frame(self) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        texts = {
            "target": self.target,
            "input": self.input,
            "response": self.response,
            "logged_prediction": self.prediction,
            "fingerprint": self.fingerprint,
            "error": self.error,
        }
        if self._extra is not None:
            texts["extra"] = self.extra
        # object columns on purpose: interned texts compare by identity, and pandas 2 and 3 then behave alike
        objects = {name: pd.Series(np.array(values, dtype=object), dtype=object) for name, values in texts.items()}
        numbers = {
            "doc_id": np.frombuffer(self.doc_id, dtype=np.int64).copy() if self.doc_id else np.empty(0, np.int64),
            "line": np.frombuffer(self.line, dtype=np.int64).copy() if self.line else np.empty(0, np.int64),
            "score": np.frombuffer(self.score, dtype=np.float64).copy() if self.score else np.empty(0, np.float64),
        }
        return pd.DataFrame({**numbers, **objects})


def read_samples(
    path: Path,
    task: str,
    adapter: Adapter,
    candidates: tuple[str, ...] = (),
    pool: Mapping[str, str] | None = None,
    only: bool = False,
    labeller: Labeller | None = None,
    logprobs: bool = False,
) -> SampleTable:
    """Read a `*_samples_<task>.jsonl` file.

    Args:
        path: the file.
        task: lmms-eval task name.
        adapter: says where the benchmark's own normalised answer and score stand, if not in the usual place.
        candidates: metric names in order of preference.
        pool: texts seen so far; pass the same one for both runs of a comparison to hold common texts once. A dict
            grows by the texts of this file, any other mapping is only looked at.
        only: nothing but the candidates can be the score; otherwise the only number of the lines counts, too.
        labeller: finds the categories of a line, for `SampleTable.labels`.
        logprobs: read how sure the model was, for `SampleTable.logprobs`.

    Raises RunFormatError when it is not clear which number is the score.
    """
    columns = _Columns(adapter, {} if pool is None else pool, labeller)
    if logprobs:
        from .reliability_columns import LogProbabilityColumns

        columns.logprobs = LogProbabilityColumns()
    columns.metric = find_metric(path, candidates, only, f"task {task}, {path}")
    bad: list[BadLine] = []
    n_bad = 0
    for number, row in rows_of(path):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            columns.add(number, row)
        except (KeyError, TypeError, ValueError) as problem:
            n_bad += 1
            if len(bad) < EXAMPLES:
                bad.append(BadLine(number, _reason(problem)))
    return SampleTable(
        task,
        path,
        columns.metric,
        columns.frame(),
        n_bad,
        tuple(bad),
        columns.facts,
        columns.n_choices,
        columns.first_list,
        columns.n_measured,
        totals=columns.totals,
        labels=columns.label_frame(),
        logprobs=None if columns.logprobs is None else columns.logprobs.table(),
        ipr=columns.ipr,
    )


def _reason(problem: Exception) -> str:
    return f"no {problem.args[0]!r}" if isinstance(problem, KeyError) else str(problem)


def find_metric(path: Path, candidates: tuple[str, ...], only: bool, where: str) -> str:
    """The metric key to read scores from: the first candidate that any line has, else the only number of the lines.

    Tasks with several metrics may log another one in every line (MME does), so that no single line decides. The search
    ends at the first line that has the first candidate, which normally is the first line.

    Raises RunFormatError when there is nothing to choose; its message lists the numbers there are. An empty text stands
    for a log without any usable line.
    """
    found: set[str] = set()
    numbers: dict[str, None] = {}
    for _, row in rows_of(path):
        if isinstance(row, str) or any(name not in row for name in _REQUIRED):
            continue
        if candidates and candidates[0] in row:
            return candidates[0]
        found |= row.keys()
        for name, value in row.items():
            # a float is a score even when it is NaN: the row then counts as unscored, and the metric is still known
            if name not in RESERVED and (isinstance(value, float) or not math.isnan(as_number(value))):
                numbers.setdefault(name)
    for name in candidates:
        if name in found:
            return name
    if not found:
        return ""
    if not only and len(numbers) == 1:
        return next(iter(numbers))
    if not numbers:
        keys = ", ".join(sorted(found - RESERVED)) or "none"
        raise RunFormatError(f"{where}: no numeric metric in the log (keys: {keys})")
    names = " or ".join(map(repr, dict.fromkeys(candidates)))
    wanted = f"no metric {names} in the log" if only else "several numbers in the log"
    raise RunFormatError(f"{where}: {wanted}, which has {', '.join(numbers)}; name one with --metric")


def score_of(row: Row, metric: str, adapter: Adapter) -> float:
    """The score of a line: by the adapter's rule where the benchmark logs no number, else the number; nan for none."""
    by_rule = adapter.logged_score(row) if adapter.logged_score and metric in adapter.metrics else None
    return as_number(row.get(metric)) if by_rule is None else by_rule


def as_number(value: Any) -> float:
    """A logged score as a float: numbers, booleans (also as the text "True"), dicts with a `score`; else nan."""
    if isinstance(value, dict):
        value = value.get("score")
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.nan
    return {"True": 1.0, "False": 0.0}.get(value, math.nan) if isinstance(value, str) else math.nan


#: Kinds of answers: a text, the choice that log-likelihoods make, several answers that no rule here reduces to one.
TEXT, CHOICE, LIST = "text", "choice", "list"


def answer_of(value: Any) -> tuple[str, str]:
    """A logged answer as text, and its kind.

    Lists of one stand for their item; null, empty lists and lists of blanks for no answer. Multiple choice by
    log-likelihood is logged as one [number, greedy] pair per choice. The numbers differ in their last digits between
    any two runs; the answer is the choice with the least of them, as lmms-eval scores it (its models log losses).
    """
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value, TEXT
    if value is None or (isinstance(value, list) and all(_is_blank(item) for item in value)):
        return "", TEXT
    if not isinstance(value, (list, dict)):
        return as_text(value), TEXT
    if isinstance(value, list) and all(_is_likelihood(item) for item in value):
        numbers = [_loss(item[0]) for item in value]
        return f"choice {numbers.index(min(numbers)) + 1}", CHOICE
    return as_text(value), LIST


def _is_blank(item: Any) -> bool:
    return item is None or item == [] or (isinstance(item, str) and not item.strip())


def _is_likelihood(item: Any) -> bool:
    """Whether this is [number, whether greedy decoding gives this choice]; lmms-eval logs both as texts."""
    if not (isinstance(item, list) and len(item) == 2):
        return False
    number, greedy = item
    return not math.isnan(_loss(number)) and (isinstance(greedy, bool) or greedy in ("True", "False"))


def _loss(value: Any) -> float:
    """A logged loss; nan if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def as_text(value: Any) -> str:
    """A logged value as text: a str as it is, anything else as JSON. Raises ValueError for thousands of levels."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


_SAMPLES = re.compile(r"^(?P<run_id>.+?)_samples_(?P<task>.+)\.jsonl$")
_RESULTS = re.compile(r"^(?P<run_id>.+?)_results\.json$")


def samples_name(name: str) -> re.Match[str] | None:
    """Parts `run_id` and `task` of the name of a samples file; None when it is another file."""
    return HARNESS_SAMPLES.match(name) or _SAMPLES.match(name)


def results_name(name: str) -> re.Match[str] | None:
    """Part `run_id` of the name of a results file; None when it is another file."""
    return HARNESS_RESULTS.match(name) or _RESULTS.match(name)
