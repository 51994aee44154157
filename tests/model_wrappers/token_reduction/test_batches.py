"""Rows of a batch must be answered like single prompts, whatever they keep, and however they are padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction import FastV
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedCallError
from tests.model_wrappers.token_reduction.conftest import QUESTION, Spec, Tiny, check_rows_against_single_prompts
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE

#: Different lengths of text, different pictures, none, and two: rows keep different numbers of tokens.
RAGGED: tuple[Spec, ...] = (
    (QUESTION, [(84, 56)]),
    ("Yes?", []),
    ("Which of the two pictures shows a cat at night?", [(56, 140), (112, 112)]),
    ("no", [(168, 56)]),
)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_ragged_rows_equal_single_prompts(tiny: Tiny, kernel: str, use_cache: bool):
    tiny.model.set_attn_implementation(kernel)
    try:
        rows = check_rows_against_single_prompts(tiny, FastV(k=2, r=0.7), RAGGED, CLOSE, use_cache=use_cache)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert rows[1].visual_tokens == (0, 0)
    assert len({row.visual_tokens[1] for row in rows}) >= 3


def padded_right(inputs: dict[str, Any]) -> dict[str, Any]:
    """Move the padding of every row from the left to the right."""
    moved = dict(inputs)
    shifts = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            rows = [row.roll(-shift) for row, shift in zip(inputs[name], shifts, strict=True)]
            moved[name] = torch.stack(rows)
    return moved


def test_padding_side_does_not_matter(tiny: Tiny):
    left = tiny.inputs(*RAGGED)
    right = padded_right(left)
    assert not torch.equal(left["input_ids"], right["input_ids"])
    with FastV(k=2, r=0.7).attach(tiny.model, tiny.family) as session:
        one = tiny.logits(left)
        rows = session.rows
        other = tiny.logits(right)
        assert session.rows == rows
    for row in range(len(RAGGED)):
        real = left["attention_mask"][row].bool()
        torch.testing.assert_close(one[row, real], other[row, right["attention_mask"][row].bool()], **CLOSE)


def test_generating_after_padding_is_refused(llava: Tiny):
    right = padded_right(llava.inputs(*RAGGED))
    match = "padded on the left"
    with FastV().attach(llava.model, llava.family), pytest.raises(UnsupportedCallError, match=match):
        llava.generate(right)


def test_rows_of_equal_length_need_no_mask(tiny: Tiny):
    specs = [(QUESTION, [(84, 56)])] * 2
    batch = tiny.inputs(*specs)
    assert batch["attention_mask"].all()
    with FastV().attach(tiny.model, tiny.family):
        masks: list[Any] = []
        hook = tiny.layers[5].register_forward_pre_hook(
            lambda _m, _a, kw: masks.append(kw["attention_mask"]), with_kwargs=True
        )
        try:
            together = tiny.generate_raw(batch, new=2)
        finally:
            hook.remove()
        alone = tiny.generate_raw(tiny.inputs(specs[0]), new=2)
    assert masks == [None, None]
    torch.testing.assert_close(together.logits[1][1], alone.logits[1][0], **CLOSE)


def test_text_only_prompts_are_untouched(tiny: Tiny):
    inputs = tiny.inputs(("What color is the car?", []), ("Yes?", []))
    logits, ids = tiny.logits(inputs), tiny.generate(inputs)
    with FastV().attach(tiny.model, tiny.family) as session:
        assert torch.equal(tiny.logits(inputs), logits)
        assert torch.equal(tiny.generate(inputs), ids)
    assert (session.prefills, session.prefills_with_images) == (4 - 2, 0)
    assert all(row.visual_tokens == (0, 0) for row in session.rows)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
def test_beam_search(tiny: Tiny, options: dict[str, Any]):
    batch = tiny.inputs(*RAGGED[:3])
    with FastV(k=2, r=0.7).attach(tiny.model, tiny.family) as session:
        together = tiny.generate(batch, new=4, **options)
        assert len(session.rows) == 3  # per prompt, not per beam
        assert session.prefills == 1
        for row, spec in enumerate(RAGGED[:3]):
            assert tiny.generate(tiny.inputs(spec), new=4, **options)[0].tolist() == together[row].tolist()


def test_several_samples_per_prompt(tiny: Tiny):
    batch = tiny.inputs(*RAGGED[:2])
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 1.0}
    with FastV(k=2, r=0.7).attach(tiny.model, tiny.family) as session:
        torch.manual_seed(0)
        cached = tiny.generate(batch, **options)
        rows = session.rows
        torch.manual_seed(0)
        assert torch.equal(tiny.generate(batch, use_cache=False, **options), cached)
    assert len(rows) == 2
    assert len({tuple(row) for row in cached.tolist()}) == 4
