"""What must hold for every method inside the language model, on every family; FastV has its own files of these."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from lmms_eval_stability.model_wrappers.token_reduction import PyramidDrop, SparseVLM
from lmms_eval_stability.model_wrappers.token_reduction.errors import NothingPrunedError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from tests.model_wrappers.token_reduction.conftest import (
    QUESTION,
    Tiny,
    check_answers_without_cache,
    check_rows_against_single_prompts,
)
from tests.model_wrappers.token_reduction.test_attach import fail, traces
from tests.model_wrappers.token_reduction.test_attention_tap import StubFlash
from tests.model_wrappers.token_reduction.test_batches import RAGGED, padded_right
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE, extended, kept_columns


@dataclass(frozen=True)
class Case:
    """A method with parameters that change something, and with parameters that must not."""

    on: InsideLLM
    off: InsideLLM


CASES = {
    "pyramiddrop": Case(PyramidDrop(), PyramidDrop(ratios="1-1-1")),
    "pyramiddrop_original_positions": Case(PyramidDrop(renumber=False), PyramidDrop(ratios="1-1-1", renumber=False)),
    "sparsevlm": Case(SparseVLM(), SparseVLM(tokens="576-576-576")),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def kernel(request: pytest.FixtureRequest, tiny: Tiny) -> Any:
    tiny.model.set_attn_implementation(request.param)
    yield request.param
    tiny.model.set_attn_implementation("sdpa")


def test_off_is_bit_equal(tiny: Tiny, kernel: str, case: Case):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes or no?", [(56, 84)]))
    logits, ids = tiny.logits(inputs), tiny.generate(inputs)
    with case.off.attach(tiny.model, tiny.family) as session:
        assert torch.equal(tiny.logits(inputs), logits)
        assert torch.equal(tiny.generate(inputs), ids)
    assert all(len(set(row.visual_tokens)) == 1 and row.visual_tokens[0] for row in session.rows)
    session.require_pruned(expect_images=True)


@pytest.mark.parametrize("use_cache", [True, False])
def test_ragged_rows_equal_single_prompts(tiny: Tiny, kernel: str, case: Case, use_cache: bool):
    rows = check_rows_against_single_prompts(tiny, case.on, RAGGED, CLOSE, use_cache=use_cache)
    assert set(rows[1].visual_tokens) == {0}
    assert len({row.visual_tokens[-1] for row in rows}) >= 3


def test_padding_side_does_not_matter(tiny: Tiny, case: Case):
    left = tiny.inputs(*RAGGED)
    right = padded_right(left)
    with case.on.attach(tiny.model, tiny.family) as session:
        one = tiny.logits(left)
        rows = session.rows
        other = tiny.logits(right)
        assert session.rows == rows
    for row in range(len(RAGGED)):
        real = left["attention_mask"][row].bool()
        torch.testing.assert_close(one[row, real], other[row, right["attention_mask"][row].bool()], **CLOSE)


def test_answers_do_not_depend_on_the_cache(tiny: Tiny, case: Case):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes or no?", [(56, 140)]))
    check_answers_without_cache(tiny, case.on, inputs, CLOSE)


def test_cache_holds_what_each_layer_saw(tiny: Tiny, case: Case):
    inputs = tiny.one()
    text = inputs["input_ids"].shape[1] - int(tiny.visual(inputs).sum())
    with case.on.attach(tiny.model, tiny.family) as session:
        out = tiny.generate_raw(inputs, new=4)
    row = session.rows[0]
    borders = (*row.layers, len(tiny.layers))
    expected: list[int] = []
    for index, count in enumerate(row.visual_tokens):
        expected += [text + count + 3] * (borders[index + 1] - borders[index])
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == expected


def test_statistics_add_up(tiny: Tiny, case: Case):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes?", []), ("no", [(56, 140), (84, 84)]))
    counts = tiny.visual(inputs).sum(dim=1).tolist()
    with case.on.attach(tiny.model, tiny.family) as session:
        for _ in range(2):
            tiny.generate(inputs, new=3)
            assert [row.visual_tokens[0] for row in session.rows] == counts
            for row in session.rows:
                assert list(row.visual_tokens) == sorted(row.visual_tokens, reverse=True)
    assert session.prefills == session.prefills_with_images == 2
    assert session.tokens_seen == 2 * sum(counts)
    assert session.tokens_dropped == 2 * sum(row.dropped for row in session.rows) > 0
    session.require_pruned(expect_images=True)


def test_text_only_prompts_are_untouched(tiny: Tiny, case: Case):
    inputs = tiny.inputs(("What color is the car?", []), ("Yes?", []))
    logits, ids = tiny.logits(inputs), tiny.generate(inputs)
    with case.on.attach(tiny.model, tiny.family) as session:
        assert torch.equal(tiny.logits(inputs), logits)
        assert torch.equal(tiny.generate(inputs), ids)
    assert session.prefills_with_images == 0
    session.require_pruned()


def test_images_that_were_not_recognised_are_an_error(llava: Tiny, case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(llava.family), "placeholder_ids", lambda _self, _config: (10**6,))
    with case.on.attach(llava.model, llava.family) as session:
        llava.generate(llava.one(), new=2)
    with pytest.raises(NothingPrunedError, match="saw no visual token"):
        session.require_pruned(expect_images=True)


def test_nothing_is_left_behind(tiny: Tiny, case: Case):
    inputs = tiny.one()
    logits = tiny.logits(inputs)  # first: transformers leaves hooks of its own in the vision tower
    before = traces(tiny)
    with case.on.attach(tiny.model, tiny.family):
        assert traces(tiny) != before
        tiny.generate(inputs, new=2)
    assert traces(tiny) == before
    assert torch.equal(tiny.logits(inputs), logits)


@pytest.mark.parametrize("where", ["q_proj", "v_proj", "mlp"])
def test_an_exception_leaves_nothing_behind(llava: Tiny, case: Case, where: str, monkeypatch: pytest.MonkeyPatch):
    inputs = llava.one()
    logits = llava.logits(inputs)
    before = traces(llava)
    layer = llava.layers[case.on.stages(len(llava.layers))[0].attention_layer]
    with case.on.attach(llava.model, llava.family) as session:
        good = llava.logits(inputs)
        with monkeypatch.context() as patch:
            patch.setattr(layer.mlp if where == "mlp" else getattr(layer.self_attn, where), "forward", fail)
            with pytest.raises(RuntimeError, match="boom"):
                llava.logits(inputs)
        assert torch.equal(llava.logits(inputs), good)
        assert session.prefills == 2
    assert traces(llava) == before
    assert torch.equal(llava.logits(inputs), logits)


def test_scoring_an_answer_does_not_leak_it_into_the_ranking(tiny: Tiny, case: Case):
    inputs = tiny.one()
    prompt = inputs["input_ids"].shape[1]
    kept, firsts = [], []
    with case.on.attach(tiny.model, tiny.family) as session:
        for answer in ([[40, 41, 42, 43]], [[300, 55, 120, 9]]):
            with session.pin_query([prompt - 1]):
                logits = tiny.logits(extended(inputs, torch.tensor(answer)))
            kept.append([column for column in kept_columns(tiny, logits)[0] if column < prompt])
            firsts.append(logits[0, prompt - 1])
        torch.testing.assert_close(firsts[0], tiny.logits(inputs)[0, -1], **CLOSE)
    assert kept[0] == kept[1]
    torch.testing.assert_close(*firsts, **CLOSE)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
def test_beam_search(tiny: Tiny, case: Case, options: dict[str, Any]):
    batch = tiny.inputs(*RAGGED[:3])
    with case.on.attach(tiny.model, tiny.family) as session:
        together = tiny.generate(batch, new=4, **options)
        assert len(session.rows) == 3  # per prompt, not per beam
        for row, spec in enumerate(RAGGED[:3]):
            assert tiny.generate(tiny.inputs(spec), new=4, **options)[0].tolist() == together[row].tolist()


def test_flash_kernels(tiny: Tiny, case: Case):
    kernel = StubFlash()
    AttentionInterface.register("stub_flash", kernel)
    AttentionMaskInterface.register("stub_flash", flash_attention_mask)
    inputs = tiny.inputs(*RAGGED[:3])
    with case.on.attach(tiny.model, tiny.family):
        expected = tiny.generate_raw(inputs, new=4)
    config = tiny.family.decoder(tiny.model).config
    before, config._attn_implementation = config._attn_implementation, "stub_flash"
    try:
        with case.on.attach(tiny.model, tiny.family):
            out = tiny.generate_raw(inputs, new=4)
    finally:
        config._attn_implementation = before
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(out.logits[0], expected.logits[0], atol=2e-4, rtol=1e-4)
    assert len(kernel.names) == 4 * len(tiny.layers)  # computing a ranking runs no kernel


def test_a_dispatched_model(llava: Tiny, case: Case):
    """With ``device_map`` accelerate replaces the ``forward`` of modules, also of those that a ranking calls."""
    inputs = llava.one()
    with case.on.attach(llava.model, llava.family):
        expected = llava.generate_raw(inputs, new=3)
    model = copy.deepcopy(llava.model)
    for module in (model, *model.modules()):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    other = Tiny(llava.kind, model, llava.processor, llava.family)
    with case.on.attach(model, llava.family) as session:
        got = other.generate_raw(inputs, new=3)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.logits[2], expected.logits[2], **CLOSE)
    session.require_pruned(expect_images=True)


def test_a_picture_after_the_query_stays_whole(tiny: Tiny, case: Case):
    inputs = tiny.inputs((QUESTION, [(84, 56), (56, 112)]))
    visual = tiny.visual(inputs)[0]
    columns = visual.nonzero().squeeze(1).tolist()
    query = next(column for column in columns if not visual[column + 1]) + 1  # right behind the first picture
    first = int(visual[:query].sum())
    with case.on.attach(tiny.model, tiny.family) as session, session.pin_query([query]):
        logits = tiny.logits(inputs)
    assert session.rows[0].visual_tokens[0] == first > session.rows[0].visual_tokens[-1]
    assert set(columns[first:]) <= set(kept_columns(tiny, logits)[0])


def test_a_generated_placeholder_is_an_ordinary_token(tiny: Tiny, case: Case):
    inputs = tiny.one()
    prompt = inputs["input_ids"].shape[1]
    placeholder = tiny.family.placeholder_ids(tiny.model.config)[0]

    def force(_row: int, ids: torch.Tensor) -> list[int]:
        return [placeholder if len(ids) == prompt else 7]

    with case.on.attach(tiny.model, tiny.family) as session:
        tiny.generate(inputs, new=3)
        expected = session.rows
        out = tiny.generate_raw(inputs, new=3, prefix_allowed_tokens_fn=force, suppress_tokens=None)
        assert session.rows == expected
    assert out.sequences[0, prompt] == placeholder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(llava: Tiny, case: Case, dtype: torch.dtype):
    inputs = llava.inputs(*RAGGED[:3])
    with case.on.attach(llava.model, llava.family) as session:
        llava.logits(inputs)
    model, half = copy.deepcopy(llava.model).to(dtype), dict(inputs, pixel_values=inputs["pixel_values"].to(dtype))
    with case.on.attach(model, llava.family) as other, torch.no_grad():
        logits = model(**half).logits
        model.generate(**half, max_new_tokens=2, do_sample=False)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert other.rows == session.rows
