"""The held-out set: exact make-up, reproducible from its seed, and equal to the file that is shipped."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from lmms_eval_stability.demo.dataset import (
    KIND_QUOTA,
    N_IMAGES,
    N_QUESTIONS,
    SEED,
    HeldOutSet,
    build_held_out,
    stream,
    write_parquet,
)
from lmms_eval_stability.demo.questions import all_questions
from lmms_eval_stability.demo.scenes import draw_scene
from lmms_eval_stability.plugin import task_dir

SHIPPED = task_dir() / "shapes_vqa" / "shapes_vqa.parquet"
TEXT_COLUMNS = ["question_id", "image_id", "question", "answer", "kind"]


@pytest.fixture(scope="module")
def held_out() -> HeldOutSet:
    return build_held_out()


def load(path: Path, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files={"test": str(path)}, split="test", cache_dir=str(cache))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return load(SHIPPED, tmp_path_factory.mktemp("cache"))


def test_make_up(held_out: HeldOutSet) -> None:
    assert len(held_out.questions) == N_QUESTIONS == 2000
    assert Counter(row.kind for row in held_out.questions) == KIND_QUOTA
    assert len({row.question_id for row in held_out.questions}) == N_QUESTIONS
    assert len({(row.image_id, row.question) for row in held_out.questions}) == N_QUESTIONS
    per_image = Counter(row.image_id for row in held_out.questions)
    assert len(per_image) == N_IMAGES == len(held_out.images)
    assert set(per_image.values()) == {4, 5}
    ids = [row.image_id for row in held_out.questions]
    assert ids == sorted(ids), "the questions of one picture stand together"


def test_no_answer_dominates(held_out: HeldOutSet) -> None:
    most = {"color": 0.22, "shape": 0.25, "count": 0.27, "exist": 0.5, "relation_shape": 0.30, "relation_color": 0.26}
    for kind, bound in most.items():
        answers = Counter(row.answer for row in held_out.questions if row.kind == kind)
        assert max(answers.values()) / answers.total() <= bound, kind


def test_the_first_questions_are_like_the_rest(held_out: HeldOutSet) -> None:
    """`--limit 500` takes the first rows; they must be no easier a set than the whole."""
    first = Counter(row.kind for row in held_out.questions[:500])
    for kind, quota in KIND_QUOTA.items():
        assert first[kind] / 500 == pytest.approx(quota / N_QUESTIONS, abs=0.05)


def test_every_row_is_a_question_of_its_scene(held_out: HeldOutSet) -> None:
    for row in held_out.questions:
        possible = all_questions(held_out.scenes[row.image_id])[row.kind]
        assert (row.question, row.answer) in {(question.text, question.answer) for question in possible}


def test_no_training_scene_is_held_out(held_out: HeldOutSet) -> None:
    ours = {scene.texture_seed for scene in held_out.scenes.values()}
    assert len(ours) == N_IMAGES
    for split in ("train", "validation"):
        assert ours.isdisjoint(draw_scene(stream(split, index)).texture_seed for index in range(2000))


def test_seed_decides(held_out: HeldOutSet) -> None:
    assert build_held_out(SEED) == held_out
    other = build_held_out(SEED + 1)
    assert set(other.images.values()).isdisjoint(held_out.images.values())
    assert len(other.questions) == N_QUESTIONS


def test_shipped_file_is_the_held_out_set(shipped: datasets.Dataset, held_out: HeldOutSet) -> None:
    assert shipped.num_rows == N_QUESTIONS
    assert shipped.column_names == ["image", *TEXT_COLUMNS]
    text = shipped.select_columns(TEXT_COLUMNS).to_list()
    assert text == [{name: getattr(row, name) for name in TEXT_COLUMNS} for row in held_out.questions]


def test_shipped_pictures_decode_to_the_drawn_ones(shipped: datasets.Dataset, held_out: HeldOutSet) -> None:
    """Up to the rounding that may differ between builds of the JPEG library."""
    for index in range(0, N_QUESTIONS, 25):
        row = shipped[index]
        assert isinstance(row["image"], Image.Image)
        drawn = np.asarray(Image.open(io.BytesIO(held_out.images[row["image_id"]])), dtype=float)
        assert np.abs(np.asarray(row["image"].convert("RGB"), dtype=float) - drawn).max() <= 4


def test_file_stores_each_picture_once(held_out: HeldOutSet, tmp_path: Path) -> None:
    path = tmp_path / "again.parquet"
    write_parquet(held_out, path)
    pictures = sum(map(len, held_out.images.values()))
    assert path.stat().st_size < 1.1 * pictures
    assert SHIPPED.stat().st_size < 3 * 2**20
    assert load(path, tmp_path / "cache")[3]["question"] == held_out.questions[3].question
