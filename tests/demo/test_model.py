"""The shipped model loads cleanly, is a LLaVA in every respect that matters here, and answers held-out questions."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from lmms_eval_stability import demo
from lmms_eval_stability.demo.dataset import HeldOutSet, build_held_out
from lmms_eval_stability.demo.questions import KINDS
from lmms_eval_stability.demo.scenes import COLORS, IMAGE_SIZE
from lmms_eval_stability.demo.training.batches import N_PATCHES
from lmms_eval_stability.demo.training.evaluate import Answerer, predictions, tabulate
from lmms_eval_stability.demo.training.prompts import prompt_text

ANSWERS_CHECKED = 100


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(demo.model_path())


@pytest.fixture(scope="module")
def held_out() -> HeldOutSet:
    return build_held_out()


def test_path_and_what_happens_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert demo.model_path() == demo.MODEL_DIR
    monkeypatch.setitem(demo.SHORT_NAMES, demo.SHORT_NAME, tmp_path)
    with pytest.raises(FileNotFoundError, match="weights are missing"):
        demo.model_path()


def test_loads_without_missing_or_unexpected_weights() -> None:
    model, info = LlavaForConditionalGeneration.from_pretrained(demo.model_path(), output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.text_config.num_hidden_layers >= 8
    assert (model.config.vision_feature_layer, model.config.vision_feature_select_strategy) == (-2, "default")
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id


def test_weights_are_small_and_half_precision() -> None:
    path = demo.model_path() / "model.safetensors"
    assert path.stat().st_size <= 8 * 2**20
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dictionary
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_prompt_is_the_one_it_was_trained_on(answerer: Answerer) -> None:
    question = "What color is the circle?"
    assert answerer.prompt(question) == prompt_text(question)
    inputs = answerer.processor(
        images=[Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))], text=prompt_text(question), return_tensors="pt"
    )
    image_token = answerer.model.config.image_token_id
    assert int((inputs["input_ids"] == image_token).sum()) == N_PATCHES == 144
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_other_picture_sizes_are_resized(answerer: Answerer, held_out: HeldOutSet) -> None:
    picture = Image.open(io.BytesIO(next(iter(held_out.images.values()))))
    inputs = answerer.processor(images=[picture.resize((300, 200))], text=prompt_text("?"), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_accuracy_and_golden_answers(answerer: Answerer, held_out: HeldOutSet) -> None:
    """The first questions of the held-out set, against a bound far above guessing and the answers on record."""
    questions = held_out.questions[:ANSWERS_CHECKED]
    answers = list(predictions(answerer, held_out, questions, batch_size=20))
    results = {result.kind: result for result in tabulate(questions, answers)}
    assert results["all"].n == ANSWERS_CHECKED
    assert results["all"].accuracy >= 0.75
    for kind in KINDS:
        assert results[kind].accuracy > results[kind].majority, kind
    golden = json.loads((Path(__file__).parent / "golden_answers.json").read_text(encoding="utf-8"))
    assert len(golden) == 10
    given = dict(zip((row.question_id for row in questions), answers, strict=True))
    assert {name: given[name] for name in golden} == golden


def test_the_picture_decides(answerer: Answerer) -> None:
    """The same question about discs of the six colours gets six different, right answers."""
    pictures = []
    for color in COLORS.values():
        picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (128, 128, 128))
        picture.paste(color, (34, 34, 62, 62))
        pictures.append(picture)
    answers = answerer(pictures, ["What color is the square?"] * len(pictures))
    assert answers == list(COLORS)


def test_one_answer_alone_equals_the_same_answer_in_a_batch(answerer: Answerer, held_out: HeldOutSet) -> None:
    questions = held_out.questions[:12]
    assert list(predictions(answerer, held_out, questions, batch_size=1)) == list(
        predictions(answerer, held_out, questions, batch_size=12)
    )
