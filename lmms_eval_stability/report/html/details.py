"""What the logs say beyond the pairs: question, answer as it was given, margin, categories, time and kept tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import Any

from ...categories import CLUSTER, IMAGE, labels_of
from ...cost import Geometry, kept_share
from ...log_lines import Row, rows_of
from ...samples import answer_of, as_text


@dataclass(frozen=True)
class SampleDetails:
    """Of one document in one log: prompt, answer after lmms-eval's filters, and category by dimension."""

    question: str
    answer: str
    categories: Mapping[str, str]


@dataclass
class LogDetails:
    """Of one samples file.

    Attributes:
        samples: of the documents that were asked for.
        margin: per document, log-probability of the first token minus that of the second, in nats.
        answer_ms: per document, milliseconds of prefill and decoding.
        kept: per document, visual tokens that enter a decoder layer, mean over layers, as a share of the prompt's.

    Documents whose line does not say are missing in the last three.
    """

    samples: dict[int, SampleDetails] = field(default_factory=dict)
    margin: dict[int, float] = field(default_factory=dict)
    answer_ms: dict[int, float] = field(default_factory=dict)
    kept: dict[int, float] = field(default_factory=dict)


def read_details(path: Path, task: str, wanted: Collection[int], geometry: Geometry | None) -> LogDetails:
    """Read a `*_samples_<task>.jsonl` file once more; of several lines of a document the first counts.

    Lines that are no sample records are passed over: the comparison has counted them.

    Args:
        path, task: the file.
        wanted: documents whose question and answer are kept.
        geometry: of the language model, for the mean over its layers.
    """
    found, seen = LogDetails(), set()
    for _, row in rows_of(path):
        doc_id = None if isinstance(row, str) else row.get("doc_id")
        if type(doc_id) is not int or doc_id in seen:
            continue
        if doc_id in wanted:
            try:
                found.samples[doc_id] = _sample(task, row)
            except ValueError:  # no sample record for the comparison, either
                continue
        seen.add(doc_id)
        counts = row.get("token_counts")
        if type(counts) is list and counts and type(counts[0]) is dict:
            _measured(found, doc_id, counts[0], geometry)
    return found


def _sample(task: str, row: Row) -> SampleDetails:
    labels = labels_of(task, row)
    for name in (CLUSTER, IMAGE):
        labels.pop(name, None)
    answer, _ = answer_of(row.get("filtered_resps"))
    return SampleDetails(as_text(row.get("input", "")), answer, labels)


def _measured(found: LogDetails, doc_id: int, counts: Mapping[str, Any], geometry: Geometry | None) -> None:
    if (margin := _margin(counts.get("first_token_logprobs"))) is not None:
        found.margin[doc_id] = margin
    prefill, decode = (_milliseconds(counts.get(name)) for name in ("prefill_ms", "decode_ms"))
    if prefill is not None:
        found.answer_ms[doc_id] = prefill + (decode or 0.0)
    visual, layers = counts.get("visual_tokens"), counts.get("visual_token_layers")
    if geometry is not None and type(visual) is list and type(layers) is list:
        share = kept_share(geometry.layers, layers, visual)
        if isfinite(share):
            found.kept[doc_id] = share


def _margin(logged: Any) -> float | None:
    """Of the two most probable first tokens; None where the log names fewer, or something else."""
    try:
        best = sorted((float(logprob) for _, _, logprob in logged), reverse=True)
    except (TypeError, ValueError, OverflowError):
        return None
    margin = best[0] - best[1] if len(best) > 1 else nan
    return margin if isfinite(margin) else None


def _milliseconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None


def speedup(baseline: Mapping[int, float], run: Mapping[int, float]) -> float:
    """Median time of an answer in the baseline over that in the run, over documents that both have; nan for none."""
    common = baseline.keys() & run.keys()
    if not common:
        return nan
    before, after = (median(times[doc] for doc in common) for times in (baseline, run))
    return before / after if after > 0 else nan
