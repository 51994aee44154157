"""The tasks beyond the training pictures: what is new in them, what stays, and that the shipped files are these."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from lmms_eval.tasks import TaskManager, get_task_dict

from lmms_eval_stability.demo.dataset import HeldOutSet, build_held_out
from lmms_eval_stability.demo.scenes import BACKGROUNDS, COLORS, SHAPES, coverage, render
from lmms_eval_stability.demo.variants import ALIGNED, CONFLICTING, UNSEEN, VARIANTS
from lmms_eval_stability.plugin import task_dir
from lmms_eval_stability.tasks.shapes_vqa_variants.utils import process_results, worst_group_accuracy


@pytest.fixture(scope="module")
def made() -> dict[str, HeldOutSet]:
    return {name: make(20261120) for name, make in VARIANTS.items()}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_shipped_file_is_what_the_seed_makes(name: str, made: dict[str, HeldOutSet], tmp_path: Path) -> None:
    file = task_dir() / "shapes_vqa_variants" / f"shapes_vqa_{name}.parquet"
    rows = datasets.load_dataset("parquet", data_files={"test": str(file)}, split="test", cache_dir=str(tmp_path))
    assert rows["question_id"] == [row.question_id for row in made[name].questions]
    assert rows["question"] == [row.question for row in made[name].questions]
    assert rows["answer"] == [row.answer for row in made[name].questions]
    stored = rows.cast_column("image", datasets.Image(decode=False))
    assert [image["bytes"] for image in stored["image"]] == [
        made[name].images[row.image_id] for row in made[name].questions
    ]
    assert ("group" in rows.column_names) == (name == "spurious")


def test_nothing_in_the_out_of_distribution_pictures_was_trained(made: dict[str, HeldOutSet]) -> None:
    for scene in made["ood"].scenes.values():
        assert scene.background not in BACKGROUNDS
        for item in scene.objects:
            assert item.color not in COLORS
            assert item.shape not in SHAPES
    assert {item.shape for scene in made["ood"].scenes.values() for item in scene.objects} == set(UNSEEN.shapes)
    # Colours of the two worlds differ by more than the most that pictures jitter them by.
    for new in UNSEEN.colors.values():
        assert min(np.abs(np.subtract(new, old)).max() for old in COLORS.values()) > 22
    assert Counter(row.kind for row in made["ood"].questions)["color"] == 250
    assert len(made["ood"].questions) == 1000


@pytest.mark.parametrize("shape", list(UNSEEN.shapes))
def test_an_unseen_shape_stays_inside_its_circle_and_is_no_speck(shape: str, made: dict[str, HeldOutSet]) -> None:
    item = next(item for scene in made["ood"].scenes.values() for item in scene.objects if item.shape == shape)
    covered = coverage(item)
    rows, columns = np.nonzero(covered > 0.5)
    reach = np.hypot(columns + 0.5 - item.x, rows + 0.5 - item.y)
    assert reach.max() <= item.radius + 1
    assert 0.2 < covered.sum() / (np.pi * item.radius**2) < 0.9


def test_a_shifted_picture_shows_the_same_objects_in_other_textures(made: dict[str, HeldOutSet]) -> None:
    original, shifted = build_held_out(), made["shift"]
    assert shifted.questions == original.questions
    for name, scene in original.scenes.items():
        other = shifted.scenes[name]
        assert [(item.shape, item.color, item.x, item.y) for item in other.objects] == [
            (item.shape, item.color, item.x, item.y) for item in scene.objects
        ]
        assert other.background not in BACKGROUNDS
        assert all(item.hatch > 0 for item in other.objects)
    name = next(iter(original.scenes))
    assert (render(original.scenes[name]) != render(shifted.scenes[name])).mean() > 0.5


def test_three_of_four_backgrounds_have_the_answers_colour(made: dict[str, HeldOutSet]) -> None:
    spurious = made["spurious"]
    groups = Counter((row.answer, row.group) for row in spurious.questions)
    assert groups == {(color, group): n for color in COLORS for group, n in ((ALIGNED, 60), (CONFLICTING, 20))}
    for row in spurious.questions:
        same = spurious.scenes[row.image_id].tint == COLORS[row.answer]
        assert same == (row.group == ALIGNED)


def test_the_worst_group_is_found_and_logged() -> None:
    doc = {"question_id": "q", "image_id": "i", "kind": "color", "question": "?", "answer": "red", "group": "aligned"}
    right, wrong = process_results(doc, ["Red."]), process_results({**doc, "group": "conflicting"}, ["blue"])
    assert right["shapes_record"]["group"] == "aligned"
    items = [right["worst_group_accuracy"]] * 3 + [
        wrong["worst_group_accuracy"],
        {**wrong["worst_group_accuracy"], "score": 1.0},
    ]
    assert worst_group_accuracy(items) == 0.5
    assert worst_group_accuracy(items[:3]) == 1.0


def test_lmms_eval_loads_the_tasks_with_the_prompt_of_shapes_vqa() -> None:
    names = ["shapes_vqa", *(f"shapes_vqa_{name}" for name in VARIANTS)]
    manager = TaskManager(include_path=str(task_dir()), model_name="llava_hf")
    tasks = get_task_dict(names, manager, task_type="chat")
    original = tasks["shapes_vqa"].doc_to_messages(tasks["shapes_vqa"].eval_docs[3])
    shifted = tasks["shapes_vqa_shift"].doc_to_messages(tasks["shapes_vqa_shift"].eval_docs[3])
    assert shifted[0]["content"][1] == original[0]["content"][1]
    assert [len(tasks[name].eval_docs) for name in names] == [2000, 1000, 2000, 480]
    assert set(tasks["shapes_vqa_spurious"].aggregation()) == {"exact_match", "worst_group_accuracy"}
