"""Shards of one run in one folder: scores that are means over some of the documents only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmms_eval_stability.runs import load_run
from lmms_eval_stability.study.jobs import CellState
from lmms_eval_stability.study.merge import merge_run
from lmms_eval_stability.study.plan import plan_study
from lmms_eval_stability.study.schema import load_study
from lmms_eval_stability.study.store import RESULTS, SAMPLES, Finished, Span, Store

STUDY = """
name: small
tasks: [{task: vqa_rad_test, samples: 6, shard: 4}]
bases: {demo: {family: llava, model_args: {pretrained: demo}}}
"""
METRICS = ("vqa_rad_score", "vqa_rad_open_recall", "vqa_rad_closed_accuracy")


def line(document: int, kind: str, score: float) -> dict[str, Any]:
    own = "vqa_rad_open_recall" if kind == "open" else "vqa_rad_closed_accuracy"
    return {"doc_id": document, "filtered_resps": "x", "target": "y", "vqa_rad_score": score, own: score}


def results(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """As lmms-eval writes them: the mean over the documents that have a metric, nothing where none has it."""
    values = {name: [one[name] for one in lines if name in one] for name in METRICS}
    scores = {f"{name},none": sum(found) / len(found) for name, found in values.items() if found}
    return {
        "results": {"vqa_rad_test": scores},
        "configs": {"vqa_rad_test": {"metric_list": [{"metric": name, "aggregation": "mean"} for name in METRICS]}},
        "date": "20260101_000000",
    }


def test_means_over_some_documents_are_weighted_by_these(tmp_path: Path) -> None:
    lines = [line(0, "open", 1.0), *(line(n, "closed", n % 2) for n in (1, 2, 3)), line(4, "open", 0.25)]
    lines.append(line(5, "open", 0.5))
    store = Store(str(tmp_path / "store"))
    (tmp_path / "study.yaml").write_text(STUDY)
    (cell,) = plan_study(load_study(tmp_path / "study.yaml")).cells
    shards = []
    for span in (Span(0, 4), Span(4, 6)):
        part, folder = lines[span.first : span.stop], tmp_path / span.name
        folder.mkdir()
        (folder / SAMPLES).write_text("".join(json.dumps(one) + "\n" for one in part))
        (folder / RESULTS).write_text(json.dumps(results(part)))
        sizes = {name: (folder / name).stat().st_size for name in (SAMPLES, RESULTS)}
        shards.append(Finished(cell.key, span, span.first + len(part), 6, 1.0, None, cell.name, "host", sizes))
        store.publish(folder, shards[-1])
    merge_run(store, [CellState(cell, tuple(shards), ())], tmp_path / "run", None)
    assert load_run(tmp_path / "run").task("vqa_rad_test").native == {
        name.partition(",")[0]: value for name, value in results(lines)["results"]["vqa_rad_test"].items()
    }
