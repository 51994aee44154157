"""The comparison for programs: `summary.json` and `divergence.csv`. Rates are fractions in [0, 1], scores native."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from ..comparison import Comparison, RunComparison
from ..runs import Run
from .sections import category_record, overlap_record

#: Raised when a key changes its meaning or goes; new keys do not raise it.
SCHEMA_VERSION = 1


def to_json(comparison: Comparison) -> str:
    """The whole comparison as JSON. What there is not (an interval of an average, say) is null."""
    reruns = _reruns(comparison)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "correct_at": comparison.correct_at,
        "prediction": comparison.prediction,
        "baseline": _run(comparison.baseline, comparison.label),
        "rerun": next(iter(reruns), None),
        "reruns": reruns,
        "runs": [_compared(run) for run in comparison.runs],
        "comparisons": comparison.records(),
        "overlap": [overlap_record(overlap) for overlap in comparison.overlaps],
        "flip_regressions": [one.record() for one in comparison.flip_regressions],
        "consistency": [one.record() for one in comparison.consistency],
    }
    return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """The records as CSV: same keys and values, empty for null, `accepted` as "kind=count;kind=count"."""
    out = io.StringIO()
    records = comparison.records()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        accepted = ";".join(f"{kind}={count}" for kind, count in record["accepted"].items())
        writer.writerow(record | {"accepted": accepted})
    return out.getvalue()


def _run(run: Run, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "path": run.name,
        "run_id": run.run_id,
        "model": run.model,
        "model_args": dict(run.model_args),
        "lmms_eval_version": run.lmms_eval_version,
        "date": run.date,
    }


def _reruns(comparison: Comparison) -> list[dict[str, Any]]:
    several = len(comparison.reruns) > 1
    return [
        {
            **_run(again.run, f"{comparison.label} (re-run{f' {number}' if several else ''})"),
            "confounders": [asdict(confounder) for confounder in again.confounders],
        }
        for number, again in enumerate(comparison.reruns, 1)
    ]


def _compared(run: RunComparison) -> dict[str, Any]:
    return {
        **_run(run.run, run.label),
        "confounders": [asdict(confounder) for confounder in run.confounders],
        "accepted": [asdict(problem) for problem in run.accepted],
        "warnings": list(run.warnings),
        "benchmark_metrics": [metric.record() for metric in run.metrics],
        "categories": [category_record(one) for one in run.categories],
        "changes": [one.record() for one in run.changes],
        "weighted_average": None if run.weighted is None else run.weighted.record(),
        "reliability": [one.record() for one in run.reliability],
        "ood_detection": [one.record() for one in run.detection],
        "corruption": [one.record() for one in run.corruption],
        "measured": dict(zip(("baseline", "run"), [speed and speed.record() for speed in run.speeds], strict=True)),
    }
