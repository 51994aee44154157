"""Shards and tasks of one run into one folder of lmms-eval's layout, which `load_run` reads.

Samples are concatenated in the order of their documents. The results JSON keeps what lmms-eval wrote where a task was
run in one piece. Of a task that was run in shards, a score whose aggregation is the mean is recomputed, weighted by the
documents that have it (VQA-RAD averages open and closed questions apart); every other score (F1, circular accuracy, a
language model's judgement) and every standard error is left out, since it cannot be had from those of the parts, and
`merged_from_shards` says so.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ..log_lines import python_json
from .jobs import CellState
from .store import RESULTS, SAMPLES, Finished, Store

#: Sections of a results JSON by task, to be put together from those of the tasks.
_BY_TASK = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
#: Sums and hashes of one process, which nothing here recomputes.
_OF_A_PROCESS = ("efficiency", "usage", "task_hashes", "throughput", "start_time", "end_time")
_SECONDS = "total_evaluation_time_seconds"
MERGED = "merged_from_shards"


def merge_run(store: Store, states: Sequence[CellState], folder: Path, limit: int | None) -> None:
    """Write one run into `folder`, replacing what was there.

    Args:
        store: where the shards lie.
        states: the complete cells of the run, at least one.
        folder: as `--output_path` of lmms-eval.
        limit: documents per task, as the study says.

    Raises:
        OSError: the folder cannot be written; the old one is then still there.
    """
    described = {state.cell.task: [_results(store, shard) for shard in state.done] for state in states}
    merged = _merge(store, described, {state.cell.task: state.done for state in states}, limit)
    begun = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    home = begun / str(merged.get("model_name_sanitized") or "model")
    try:
        home.mkdir(parents=True)
        stamp = merged["date"]
        for state in states:
            with (home / f"{stamp}_samples_{state.cell.task}.jsonl").open("wb") as file:
                for shard in state.done:
                    file.write(store.read(shard, SAMPLES))
        (home / f"{stamp}_results.json").write_text(json.dumps(merged, indent=2, ensure_ascii=False), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        begun.replace(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _results(store: Store, shard: Finished) -> dict[str, Any]:
    parsed = python_json(store.read(shard, RESULTS))
    assert isinstance(parsed, dict)  # it was read before it was stored
    return parsed


def _merge(
    store: Store,
    described: Mapping[str, Sequence[Mapping[str, Any]]],
    shards: Mapping[str, Sequence[Finished]],
    limit: int | None,
) -> dict[str, Any]:
    first = next(iter(described.values()))[0]
    merged = {name: value for name, value in first.items() if name not in (*_BY_TASK, *_OF_A_PROCESS)}
    merged["date"] = min(str(results.get("date") or "") for parts in described.values() for results in parts)
    merged["config"] = _config(first, limit)
    merged[_SECONDS] = str(sum(shard.seconds for parts in shards.values() for shard in parts))
    for section in _BY_TASK:
        merged[section] = {}
    notes: dict[str, Any] = {}
    for task, parts in described.items():
        for section in _BY_TASK:
            value = parts[0].get(section)
            if isinstance(value, dict) and task in value:
                merged[section][task] = value[task]
        if len(parts) > 1:
            merged["results"][task], left_out = _scores(store, task, parts, shards[task])
            done = sum(shard.documents for shard in shards[task])
            merged["n-samples"][task] = {"original": shards[task][0].total, "effective": done}
            notes[task] = {"shards": [[s.span.first, s.stop] for s in shards[task]], "scores_left_out": left_out}
    return {**merged, MERGED: notes}


def _config(results: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """The configuration of a run without shards: the documents are those of the whole run."""
    config = dict(results.get("config") or {})
    config.pop("resolved_cli_args", None)  # of one process, with its own folder
    return {**config, "limit": None if limit is None else float(limit), "offset": 0}


def _scores(
    store: Store, task: str, parts: Sequence[Mapping[str, Any]], shards: Sequence[Finished]
) -> tuple[dict[str, Any], list[str]]:
    """Scores of a task that was run in shards, and the names of those that the parts do not tell."""
    scores = [_section(results.get("results"), task) for results in parts]
    means = _means(_section(parts[0].get("configs"), task))
    counts = [_counts(store.read(shard, SAMPLES), means) for shard in shards]
    merged: dict[str, Any] = {}
    left_out = []
    for key in dict.fromkeys(name for part in scores for name in part):
        metric, comma, _ = key.partition(",")
        weighted = [(part.get(key), count[metric]) for part, count in zip(scores, counts, strict=True) if count[metric]]
        if not comma:
            merged[key] = scores[0].get(key)  # the task's alias
        elif metric in means and weighted and all(_is_number(value) for value, _ in weighted):
            total = math.fsum(value * count for value, count in weighted)  # type: ignore[operator]
            merged[key] = total / sum(count for _, count in weighted)
        else:
            left_out.append(key)
    return merged, left_out


def _counts(samples: bytes, metrics: set[str]) -> Counter[str]:
    """How many samples of a shard have each of these metrics."""
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        try:
            row = orjson.loads(line)
        except ValueError:
            row = python_json(line)
        counts.update(metrics & row.keys())  # all lines were read before they were stored
    return counts


def _means(config: Mapping[str, Any]) -> set[str]:
    """Metrics whose score is the plain mean over documents, as the task's configuration says.

    A task with clusters or repeated answers averages otherwise; its means are not recomputed.
    """
    if config.get("cluster_key") or config.get("repeats") not in (None, 1):
        return set()
    listed = config.get("metric_list")
    entries = listed if isinstance(listed, list) else []
    return {str(e.get("metric")) for e in entries if isinstance(e, dict) and e.get("aggregation") == "mean"}


def _section(value: Any, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
