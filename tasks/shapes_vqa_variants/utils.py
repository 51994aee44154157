"""Scoring of `shapes_vqa_spurious`: as `shapes_vqa`, and accuracy group by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lmms_eval_stability.tasks.shapes_vqa import utils


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score one answer.

    Returns:
        What `shapes_vqa` returns, the record with the document's `group`; and `worst_group_accuracy`, the group's name
        (answer and group) with the score.
    """
    scored = utils.process_results(doc, results)
    scored["shapes_record"]["group"] = doc["group"]
    group = f"{utils.normalize(utils.doc_to_target(doc))} {doc['group']}"
    return {**scored, "worst_group_accuracy": {"group": group, "score": scored["exact_match"]}}


def worst_group_accuracy(items: Sequence[dict[str, Any]]) -> float:
    """Return the least accuracy of a group; groups are answer x (background aligned or conflicting)."""
    scores: dict[str, list[float]] = defaultdict(list)
    for item in items:
        scores[item["group"]].append(float(item["score"]))
    return min(sum(group) / len(group) for group in scores.values())
