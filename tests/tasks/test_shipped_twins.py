"""The shipped twins of lmms-eval's own tasks, and MMMU's, on data of the hub's layout made here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import pytest
from lmms_eval import tasks as lmms_eval_tasks
from lmms_eval.tasks import TaskManager
from PIL import Image

from lmms_eval_stability import plugin
from tests.model_wrappers.documents import draw

plugin.wrap_task_manager(lmms_eval_tasks)

QUESTIONS = [f"What is the color of the small car on the left side of picture number {n}?" for n in range(6)]


def gqa(name: str) -> dict[str, list[dict[str, Any]]]:
    if name == "testdev_balanced_images":
        return {"testdev": [{"id": f"n{n}", "image": draw(n)} for n in range(3)]}
    rows = [{"id": f"20{n}", "imageId": f"n{n // 2}", "question": q, "answer": "red"} for n, q in enumerate(QUESTIONS)]
    return {"testdev": rows}


def vqav2(_name: str) -> dict[str, list[dict[str, Any]]]:
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    return {
        "validation": [
            {"question_id": 100 + n, "image_id": n // 2, "question": q, "answers": answers, "image": draw(n // 2)}
            | {"question_type": "what color", "answer_type": "other", "multiple_choice_answer": "red"}
            for n, q in enumerate(QUESTIONS)
        ]
    }


def mmmu(_name: str) -> dict[str, list[dict[str, Any]]]:
    rows = []
    for n, question in enumerate(QUESTIONS):
        row: dict[str, Any] = {"id": f"validation_Art_{n}", "question": f"<image 1> {question} <image 2>"}
        row |= {"question_type": "multiple-choice", "options": "['red car', 'blue <image 3>']", "answer": "A"}
        rows.append(row | {f"image_{i}": draw(n + i) if i <= 3 else None for i in range(1, 8)})
    return {"validation": rows}


HUB = {"lmms-lab-encoder/GQA": gqa, "lmms-lab-encoder/VQAv2": vqav2, "lmms-lab-encoder/MMMU": mmmu}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskManager]:
    """Return a task manager whose hub has the three data sets, and which knows twins of MMMU."""

    def load(path: str, name: str | None = None, split: str | None = None, **_: Any) -> Any:
        made = HUB[path](name or "")
        loaded = datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key, rows in made.items()})
        for column in next(iter(loaded.values())).column_names:
            if column == "image" or (column.startswith("image_") and column != "image_id"):
                loaded = loaded.cast_column(column, datasets.Image())
        return loaded if split is None else loaded[split]

    folder = tmp_path_factory.mktemp("twins")
    for modality, what in (("image", "set: paper-96"), ("text", "method: shuffle_order")):
        (folder / f"{modality}.yaml").write_text(
            f"task: mmmu_val_{modality}\nbase_task: mmmu_val\nperturbation: {{{what}}}\n"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load)
        yield TaskManager(include_path=str(folder), model_name="llava_fastv")


def shown(task: Any, doc: dict[str, Any]) -> tuple[list[bytes], list[str]]:
    content = [part for turn in task.doc_to_messages(doc) for part in turn["content"]]
    images = [part["url"].convert("RGB").tobytes() for part in content if part["type"] == "image"]
    return images, [part["text"] for part in content if part["type"] == "text"]


@pytest.mark.parametrize(
    ("base", "image", "text"),
    [
        ("gqa", "gqa_image_perturbed", "gqa_text_perturbed"),
        ("vqav2_val", "vqav2_val_image_perturbed", "vqav2_val_text_perturbed"),
        ("mmmu_val", "mmmu_val_image", "mmmu_val_text"),
    ],
)
def test_twins_change_what_they_say_and_nothing_else(manager: TaskManager, base: str, image: str, text: str) -> None:
    tasks = manager.load_task_or_group([base, image, text], "chat")
    changed = dict.fromkeys((image, text), 0)
    for doc in tasks[base].eval_docs:
        clean = shown(tasks[base], doc)
        noisy, worded = shown(tasks[image], doc), shown(tasks[text], doc)
        assert clean[0]
        assert len(noisy[0]) == len(clean[0])
        assert noisy[1] == clean[1]
        assert worded[0] == clean[0]
        assert len(worded[1]) == len(clean[1])
        for name, same in ((image, noisy == clean), (text, worded == clean)):
            record = tasks[name].process_results(doc, ["red"])["perturbation"]
            assert record["changed"] == (not same)
            changed[name] += record["changed"]
        assert worded[1][-1].splitlines()[-1] == clean[1][-1].splitlines()[-1]  # the post prompt
    assert changed[image] >= 5
    assert changed[text] >= 3


def test_options_and_their_images_stay_where_they_are(manager: TaskManager) -> None:
    task = manager.load_task_or_group(["mmmu_val_text"], "chat")["mmmu_val_text"]
    for doc in task.eval_docs:
        prompt = task.doc_to_text(doc)
        question, _, options = prompt.partition("\nA. ")
        assert options.startswith("red car\nB. blue <image 3>\n\nAnswer with the option's letter")
        assert question.startswith("<image 1> ")
        assert question.endswith(" <image 2>")
        words = sorted(question.split())
        assert words == sorted(doc["question"].split())
        assert question != doc["question"]


def test_the_group_has_the_three_tasks(manager: TaskManager) -> None:
    (tasks,) = manager.load_task_or_group(["gqa_perturbed"], "chat").values()
    assert set(tasks) == {"gqa", "gqa_image_perturbed", "gqa_text_perturbed"}
    assert isinstance(tasks["gqa_image_perturbed"].doc_to_visual(tasks["gqa"].eval_docs[0])[0], Image.Image)
