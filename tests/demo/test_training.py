"""The training code: its shortcuts compute what they claim, and a few steps reduce the loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_eval_stability.demo import MODEL_DIR
from lmms_eval_stability.demo.dataset import stream
from lmms_eval_stability.demo.questions import KINDS
from lmms_eval_stability.demo.scenes import COLORS, SHAPES, coverage, draw_scene
from lmms_eval_stability.demo.training import architecture, curve
from lmms_eval_stability.demo.training.__main__ import parse
from lmms_eval_stability.demo.training.batches import (
    GRID,
    N_PATCHES,
    PATCH_SIZE,
    QUESTIONS_PER_IMAGE,
    Batch,
    BatchRequest,
    make_batch,
    patch_targets,
)
from lmms_eval_stability.demo.training.loop import Settings, Trainer
from lmms_eval_stability.demo.training.losses import TensorBatch, answer_logits, packed_mask, see, subset_of_patches
from lmms_eval_stability.demo.training.prompts import ANSWERS, answer_text, build_tokenizer
from lmms_eval_stability.demo.training.schedule import ALL, VISION, difficulty_at, learning_rate_at, phase_at

REQUEST = BatchRequest("train", first=0, n_images=4, difficulty=(0.0, 0.2), seed=3)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(REQUEST)


def test_batches_repeat_and_follow_their_index(batch: Batch) -> None:
    for name, array in dataclasses.asdict(batch).items():
        np.testing.assert_array_equal(array, getattr(make_batch(REQUEST), name))
    tail = make_batch(dataclasses.replace(REQUEST, first=2, n_images=2))
    np.testing.assert_array_equal(tail.pixels, batch.pixels[2:])
    assert not np.array_equal(make_batch(dataclasses.replace(REQUEST, split="validation")).pixels, batch.pixels)


def test_every_answer_is_one_token() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer.encode(answer_text(answer), add_special_tokens=False).ids for answer in ANSWERS]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(ANSWERS)


def test_tokens_decode_to_question_and_answer(batch: Batch) -> None:
    tokenizer = build_tokenizer()
    length = int(batch.prompt_lengths[0, 0])
    text = tokenizer.decode(batch.tokens[0, 0, : length + 1].tolist(), skip_special_tokens=True)
    assert text.endswith(tokenizer.decode([int(batch.answers[0, 0])]))
    assert "?\nAnswer the question using a single word or phrase. ASSISTANT: " in text


def test_patch_targets_agree_with_the_drawing() -> None:
    scene = draw_scene(stream("train", 5), n_objects=3)
    targets = patch_targets(scene)
    for index in range(N_PATCHES):
        row, column = divmod(index, GRID)
        window = np.s_[row * PATCH_SIZE : (row + 1) * PATCH_SIZE, column * PATCH_SIZE : (column + 1) * PATCH_SIZE]
        shares = [coverage(item)[window].mean() for item in scene.objects]
        if max(shares) < 0.25:
            assert targets.shape[index] == targets.color[index] == 0
            continue
        owner = scene.objects[int(np.argmax(shares))]
        assert targets.shape[index] == 1 + SHAPES.index(owner.shape)
        assert targets.color[index] == 1 + list(COLORS).index(owner.color)
        centre = (targets.offset[index] + (column + 0.5, row + 0.5)) * PATCH_SIZE
        np.testing.assert_allclose(centre, (owner.x, owner.y), atol=1e-3)
        inner = targets.silhouette[index].reshape(10, 10)[4:6, 4:6].mean()
        assert inner == pytest.approx(max(shares), abs=1e-6)
    assert (targets.shape > 0).sum() >= 6


def test_pixels_are_prepared_as_the_processor_does(batch: Batch) -> None:
    processor = architecture.build_processor()
    expected = processor.image_processor([Image.fromarray(p) for p in batch.pixels], return_tensors="pt")
    ours = architecture.normalise(torch.from_numpy(batch.pixels))
    torch.testing.assert_close(ours, expected["pixel_values"], atol=1e-5, rtol=0)


def test_packed_questions_equal_questions_asked_one_by_one(batch: Batch) -> None:
    """Eight questions behind one visual prefix give the logits of eight plain forward passes."""
    model = architecture.build_model(architecture.build_processor().tokenizer, seed=0).eval()
    tensors = TensorBatch.of(batch)
    start = architecture.build_processor().tokenizer("USER: ").input_ids
    with torch.no_grad():
        packed = answer_logits(model, see(model, tensors), tensors, keep=None)
        for q in range(QUESTIONS_PER_IMAGE):
            length = int(tensors.prompt_lengths[1, q])
            image_token = model.config.image_token_id
            line_break = build_tokenizer().encode("\n", add_special_tokens=False).ids
            ids = [*start, *[image_token] * N_PATCHES, *line_break, *tensors.tokens[1, q, : length + 1].tolist()]
            plain = model(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=architecture.normalise(tensors.pixels[1:2]),
            ).logits[0, -2:]
            torch.testing.assert_close(packed[1, q], plain, atol=1e-4, rtol=1e-4)


def test_mask_hides_other_questions_and_the_future() -> None:
    visible = packed_mask(2, 2, 2, torch.float32)[0, 0] == 0
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert visible.int().tolist() == expected


def test_subset_keeps_all_object_patches_in_order(batch: Batch) -> None:
    tensors = TensorBatch.of(batch)
    keep = subset_of_patches(tensors, 64)
    assert keep.shape == (4, 64)
    assert bool((keep.diff(dim=1) > 0).all())
    for row, owners in zip(keep.tolist(), tensors.patch_shape, strict=True):
        assert set(owners.nonzero().flatten().tolist()) <= set(row)


def test_heads_start_by_looking_at_their_neighbours() -> None:
    model = architecture.build_model(architecture.build_processor().tokenizer, seed=0)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = model.model.vision_tower(torch.zeros(1, 3, 96, 96), output_attentions=True).attentions[0][0]
    here = 5 * GRID + 5
    for head, (down, right) in enumerate(architecture.SHIFTS[0]):
        there = (5 + down) * GRID + 5 + right
        assert int(seen[head, 1 + here, 1:].argmax()) == there


def test_schedule_covers_the_budget() -> None:
    names = [phase_at(progress).name for progress in np.linspace(0, 1, 101)]
    assert list(dict.fromkeys(names)) == ["vision", "joint, few tokens", "joint, all tokens"]
    assert phase_at(1.0) == ALL
    assert difficulty_at(0.0)[1] < difficulty_at(0.2)[1] < difficulty_at(0.5)[1] == difficulty_at(1.0)[1]
    rates = [learning_rate_at(progress, step=1000) for progress in (0.0, 0.3, 0.7, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert learning_rate_at(0.0, step=0) < rates[0] / 50


def test_a_few_steps_reduce_both_losses(batch: Batch, tmp_path: Path) -> None:
    trainer = Trainer(Settings(tmp_path, steps=100, seed=1, bf16=False))
    vision = [trainer.train_step(batch, VISION, 1e-3)["auxiliary_loss"] for _ in range(8)]
    assert vision[-1] < 0.8 * vision[0]
    joint = [trainer.train_step(batch, ALL, 1e-3)["answer_loss"] for _ in range(10)]
    assert joint[-1] < 0.7 * joint[0]
    assert trainer.step == 18


def test_run_resumes_from_its_checkpoint_and_saves_a_loadable_model(tmp_path: Path) -> None:
    settings = Settings(tmp_path, steps=2, seed=1, bf16=False, n_images=2, validation_images=8)
    Trainer(settings).run()
    half = Trainer(dataclasses.replace(settings, steps=4))
    assert (half.step, half.images, half.progress) == (2, 4, 0.5)
    half.run()
    assert half.step == 4
    log = curve.read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log if "validation" in line] == [2, 4]
    assert set(log[-1]["validation"]) <= {"mean_over_kinds", *KINDS}
    shipped = {path.name for path in MODEL_DIR.iterdir()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == shipped
    curve.draw(log, tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 500


def test_command_line() -> None:
    settings = parse(["--folder", "x", "--minutes", "5", "--steps", "9", "--seed", "4", "--float32"])
    assert settings == Settings(Path("x"), minutes=5, steps=9, seed=4, bf16=False)
    assert parse([]).minutes == Settings(Path("x")).minutes
