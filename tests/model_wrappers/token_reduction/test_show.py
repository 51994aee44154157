"""What is drawn of a method: fates of tokens, answers, and the counts of the sample log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_eval_stability.demo import MODEL_DIR
from lmms_eval_stability.model_wrappers.errors import CheckpointError, WrongFamilyError
from lmms_eval_stability.model_wrappers.loading import LoadedModel
from lmms_eval_stability.model_wrappers.token_reduction import Downsample, FastV, PyramidDrop, SparseVLM, VisionZip
from lmms_eval_stability.model_wrappers.token_reduction.base import TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.show import Fates, Shown, load_any, make_method, show
from lmms_eval_stability.model_wrappers.token_reduction.trace import StageTrace
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.tiny_models import KINDS, picture


def loaded(tiny: Tiny) -> LoadedModel:
    return LoadedModel(tiny.model, tiny.processor, tiny.family, torch.device("cpu"))


def shown(tiny: Tiny, *methods: TokenReducer) -> list[Shown]:
    return list(show(loaded(tiny), picture(3, 140, 84), QUESTION, methods, max_new_tokens=4))


def test_fates_of_a_trace():
    trace = (
        StageTrace(0, (0, 1, 2, 3, 4, 5)),
        StageTrace(2, (0, 1), ((2, 3),)),  # 4 and 5 are dropped
        StageTrace(4, (0, 1), ((2, 3),)),  # a stage that does nothing
        StageTrace(6, (1,), ((0, 2),), others=3),  # 3 is dropped
    )
    fates = Fates.of(trace)
    assert fates.dropped_at.tolist() == [0, 0, 0, 3, 1, 1]
    assert fates.merged.tolist() == [True, False, True, False, False, False]
    assert (fates.stages, fates.merged_tokens, fates.others) == (3, 1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_answers_and_counts(load: Any, kind: str):
    tiny: Tiny = load(kind)
    methods = [FastV(k=2, r=0.6), PyramidDrop(), SparseVLM(), VisionZip(dominant=150, contextual=90)]
    baseline, *others = shown(tiny, *methods)
    assert not baseline.fates.dropped_at.any()
    assert baseline.tokens.visual_tokens == (len(baseline.canvas.boxes),)
    for method, one in zip(methods, others, strict=True):
        left = int(((one.fates.dropped_at == 0) & ~one.fates.merged).sum())
        assert left + one.fates.merged_tokens + one.fates.others == one.tokens.visual_tokens[-1]
        assert one.fates.stages == len(one.tokens.visual_tokens) - 1
        assert len(one.fates.dropped_at) == len(one.canvas.boxes) == one.tokens.visual_tokens[0]
        assert one.canvas is baseline.canvas
        # the answer is that of the method alone, on the same prompt
        content = [{"type": "image", "url": picture(3, 140, 84)}, {"type": "text", "text": QUESTION}]
        prompt = tiny.family.build_prompt(tiny.processor, [{"role": "user", "content": content}], QUESTION)
        inputs = dict(tiny.family.encode(tiny.processor, [prompt]))
        with method.attach(tiny.model, tiny.family):
            ids = tiny.model.generate(
                **inputs, max_new_tokens=4, do_sample=False, eos_token_id=tiny.processor.tokenizer.eos_token_id
            )[0, inputs["input_ids"].shape[1] :]
        assert (
            one.answer
            == tiny.processor.tokenizer.decode(ids, skip_special_tokens=True, **tiny.family.decode_arguments).strip()
        )
    if kind == "llava":
        assert others[3].fates.others == 1  # the class token
    assert others[3].fates.merged.any()


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_a_smaller_image_is_drawn_instead(load: Any, kind: str):
    tiny: Tiny = load(kind)
    baseline, small = shown(tiny, Downsample(tokens=250))
    assert small.canvas.picture.size < baseline.canvas.picture.size
    assert len(small.canvas.boxes) == small.tokens.visual_tokens[-1] < len(baseline.canvas.boxes)
    assert not small.fates.dropped_at.any()
    height, width = small.canvas.picture.shape[:2]
    full = Image.fromarray(baseline.canvas.picture).resize((width, height), Image.Resampling.BICUBIC)
    assert np.abs(small.canvas.picture.astype(int) - np.asarray(full)).mean() < 5


def test_a_method_that_cannot_work_is_refused_before_any_answer(llava: Tiny):
    answers = show(loaded(llava), picture(3), QUESTION, [FastV(), Downsample()], max_new_tokens=2)
    with pytest.raises(UnsupportedModelError, match="Downsample"):
        next(answers)  # the first would be the baseline's


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_found_by_the_checkpoint(kind: str, tiny_folder: Any):
    assert load_any(tiny_folder(kind)).family.model_type == kind


def test_the_embedded_model_by_its_name():
    assert load_any("demo").model.config._name_or_path == str(MODEL_DIR)


def test_checkpoints_that_cannot_be_loaded(tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_any(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WrongFamilyError, match="'bert' are not served"):
        load_any(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(CheckpointError, match="no such"):
        load_any(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint could be loaded"):
        load_any(str(tmp_path))


def test_broken_weights(tmp_path: Path, tiny_folder: Any):
    for file in Path(tiny_folder("llava")).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="no checkpoint could be loaded"):
        load_any(str(tmp_path))


def test_methods_by_name():
    assert make_method("fastv", {"r": 0.75}) == FastV(r=0.75)
    assert make_method("sparsevlm", {"tokens": "200-100-50"}) == SparseVLM(tokens="200-100-50")
