"""What `vizwiz_vqa_val_answerability` logs beside what lmms-eval's `vizwiz_vqa_val` does.

lmms-eval's log of VizWiz holds neither the ten answers of a question nor the data's `category`, and "answer" as the
target of every sample. Here the target is the most frequent answer, and `vizwiz_record` says whether that is
"unanswerable" (Gurari et al., VizWiz Grand Challenge, CVPR 2018).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lmms_eval.tasks.vizwiz_vqa.utils import vizwiz_vqa_process_results

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


def doc_to_target(doc: dict[str, Any]) -> str:
    """Return the most frequent of the given answers, of equally frequent ones the first; empty without any."""
    counted = Counter(str(answer).strip().lower() for answer in doc.get("answers") or ())
    return counted.most_common(1)[0][0] if counted else ""


def answerability(doc: dict[str, Any]) -> str | None:
    """Return "unanswerable" where more people gave that answer than any other one; None where no answers are known.

    A tie counts as answerable: as many people agree on an answer.
    """
    counted = Counter(str(answer).strip().lower() for answer in doc.get("answers") or ())
    if not counted:
        return None
    unable = counted.pop(UNANSWERABLE, 0)
    return UNANSWERABLE if unable > max(counted.values(), default=0) else ANSWERABLE


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score one answer.

    Returns:
        What lmms-eval's own task returns, and `vizwiz_record` with `answerability`, "answerable" or "unanswerable".
    """
    # asked first: scoring cleans the document's answers up, in place
    record = {"answerability": answerability(doc)}
    return {**vizwiz_vqa_process_results(doc, results), "vizwiz_record": record}
