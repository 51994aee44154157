"""`vizwiz_vqa_val_answerability` is lmms-eval's own task with a fuller log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmms_eval.tasks
import pytest
import yaml
from lmms_eval.tasks.vizwiz_vqa.utils import vizwiz_vqa_process_results

from lmms_eval_stability.categories import labels_of
from lmms_eval_stability.plugin import task_dir
from lmms_eval_stability.tasks.vizwiz_vqa.utils import answerability, doc_to_target, process_results
from lmms_eval_stability.verdicts import adapter_for

TASK = "vizwiz_vqa_val_answerability"


def doc(*answers: str) -> dict[str, Any]:
    return {"question_id": "VizWiz_val_0", "question": "what is this", "answers": list(answers)}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["unanswerable"] * 10, "unanswerable"),
        (["unanswerable"] * 4 + ["Unanswerable "] + ["a cup", "mug", "cup", "cup", "glass"], "unanswerable"),
        (["unanswerable"] * 5 + ["cup"] * 5, "answerable"),  # a tie
        (["unanswerable"] * 3 + ["cup"] * 4 + ["mug"] * 3, "answerable"),
        (["cup"] * 10, "answerable"),
        ([], None),
    ],
)
def test_a_question_is_unanswerable_if_that_is_its_most_frequent_answer(
    answers: list[str], expected: str | None
) -> None:
    assert answerability(doc(*answers)) == expected


def test_scores_are_lmms_evals_own_and_the_record_names_the_part() -> None:
    given = ["Two."] * 4 + ["unanswerable"] * 6
    found = process_results(doc(*given), ["two"])
    own = vizwiz_vqa_process_results(doc(*given), ["two"])
    assert {name: found[name] for name in own} == own
    assert own["exact_match"] == 1.0
    assert labels_of(TASK, found) == {"answerability": "unanswerable"}
    assert doc_to_target(doc(*given)) == "unanswerable"
    assert adapter_for(TASK) is adapter_for("vizwiz_vqa_val")


def load(path: Path) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node).rpartition(".")[2])
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    return {**(load(path.parent / config.pop("include")) if "include" in config else {}), **config}


def test_everything_else_is_lmms_evals_own_task() -> None:
    theirs = load(Path(lmms_eval.tasks.__file__).parent / "vizwiz_vqa" / "vizwiz_vqa_val.yaml")
    ours = load(task_dir() / "vizwiz_vqa" / f"{TASK}.yaml")
    different = {name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)}
    assert different == {"task", "doc_to_target", "process_results"}
