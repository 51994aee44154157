"""What else must hold for every method inside the language model, on every family; see test_matrix.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from lmms_eval_stability.model_wrappers.token_reduction import FastV, PyramidDrop, RandomInside, SparseVLM
from lmms_eval_stability.model_wrappers.token_reduction.errors import NothingPrunedError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from tests.model_wrappers.token_reduction.conftest import (
    QUESTION,
    Tiny,
)
from tests.model_wrappers.token_reduction.lvpruning_untrained import LVPruning
from tests.model_wrappers.token_reduction.test_attach import fail, traces
from tests.model_wrappers.token_reduction.test_batches import RAGGED, padded_right
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE, extended, kept_columns

CASES = {
    "fastv": FastV(k=2, r=0.7),
    "pyramiddrop": PyramidDrop(),
    "pyramiddrop_original_positions": PyramidDrop(renumber=False),
    "sparsevlm": SparseVLM(),
    "lvpruning": LVPruning(),
    "random_inside": RandomInside(),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def method(request: pytest.FixtureRequest) -> InsideLLM:
    return request.param


def test_padding_side_does_not_matter(tiny: Tiny, method: InsideLLM):
    left = tiny.inputs(*RAGGED)
    right = padded_right(left)
    with method.attach(tiny.model, tiny.family) as session:
        one = tiny.logits(left)
        rows = session.rows
        other = tiny.logits(right)
        assert session.rows == rows
    for row in range(len(RAGGED)):
        real = left["attention_mask"][row].bool()
        torch.testing.assert_close(one[row, real], other[row, right["attention_mask"][row].bool()], **CLOSE)


def test_statistics_add_up(tiny: Tiny, method: InsideLLM):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes?", []), ("no", [(56, 140), (84, 84)]))
    counts = tiny.visual(inputs).sum(dim=1).tolist()
    with method.attach(tiny.model, tiny.family) as session:
        for _ in range(2):
            tiny.generate(inputs, new=3)
            assert [row.visual_tokens[0] for row in session.rows] == counts
            for row in session.rows:
                assert list(row.visual_tokens) == sorted(row.visual_tokens, reverse=True)
    assert session.prefills == session.prefills_with_images == 2
    assert session.tokens_seen == 2 * sum(counts)
    assert session.tokens_dropped == 2 * sum(row.dropped for row in session.rows) > 0
    session.require_pruned(expect_images=True)


def test_images_that_were_not_recognised_are_an_error(llava: Tiny, method: InsideLLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(llava.family), "placeholder_ids", lambda _self, _config: (10**6,))
    with method.attach(llava.model, llava.family) as session:
        llava.generate(llava.one(), new=2)
    with pytest.raises(NothingPrunedError, match="saw no visual token"):
        session.require_pruned(expect_images=True)


@pytest.mark.parametrize("where", ["q_proj", "v_proj", "mlp"])
def test_an_exception_leaves_nothing_behind(
    llava: Tiny, method: InsideLLM, where: str, monkeypatch: pytest.MonkeyPatch
):
    inputs = llava.one()
    logits = llava.logits(inputs)
    before = traces(llava)
    stage = method.stages(len(llava.layers))[0]
    layer = llava.layers[stage.layer if stage.attention_layer is None else stage.attention_layer]
    with method.attach(llava.model, llava.family) as session:
        good = llava.logits(inputs)
        with monkeypatch.context() as patch:
            patch.setattr(layer.mlp if where == "mlp" else getattr(layer.self_attn, where), "forward", fail)
            with pytest.raises(RuntimeError, match="boom"):
                llava.logits(inputs)
        assert torch.equal(llava.logits(inputs), good)
        assert session.prefills == 2
    assert traces(llava) == before
    assert torch.equal(llava.logits(inputs), logits)


def test_scoring_an_answer_does_not_leak_it_into_the_ranking(tiny: Tiny, method: InsideLLM):
    inputs = tiny.one()
    prompt = inputs["input_ids"].shape[1]
    kept, firsts = [], []
    with method.attach(tiny.model, tiny.family) as session:
        for answer in ([[40, 41, 42, 43]], [[300, 55, 120, 9]]):
            with session.pin_query([prompt - 1]):
                logits = tiny.logits(extended(inputs, torch.tensor(answer)))
            kept.append([column for column in kept_columns(tiny, logits)[0] if column < prompt])
            firsts.append(logits[0, prompt - 1])
        torch.testing.assert_close(firsts[0], tiny.logits(inputs)[0, -1], **CLOSE)
    assert kept[0] == kept[1]
    torch.testing.assert_close(*firsts, **CLOSE)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
def test_beam_search(tiny: Tiny, method: InsideLLM, options: dict[str, Any]):
    batch = tiny.inputs(*RAGGED[:3])
    with method.attach(tiny.model, tiny.family) as session:
        together = tiny.generate(batch, new=4, **options)
        assert len(session.rows) == 3  # per prompt, not per beam
        for row, spec in enumerate(RAGGED[:3]):
            assert tiny.generate(tiny.inputs(spec), new=4, **options)[0].tolist() == together[row].tolist()


def test_a_dispatched_model(llava: Tiny, method: InsideLLM):
    """With ``device_map`` accelerate replaces the ``forward`` of modules, also of those that a ranking calls."""
    inputs = llava.one()
    with method.attach(llava.model, llava.family):
        expected = llava.generate_raw(inputs, new=3)
    model = copy.deepcopy(llava.model)
    for module in (model, *model.modules()):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    other = Tiny(llava.kind, model, llava.processor, llava.family)
    with method.attach(model, llava.family) as session:
        got = other.generate_raw(inputs, new=3)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.logits[2], expected.logits[2], **CLOSE)
    session.require_pruned(expect_images=True)


def test_a_picture_after_the_query_stays_whole(tiny: Tiny, method: InsideLLM):
    inputs = tiny.inputs((QUESTION, [(84, 56), (56, 112)]))
    visual = tiny.visual(inputs)[0]
    columns = visual.nonzero().squeeze(1).tolist()
    query = next(column for column in columns if not visual[column + 1]) + 1  # right behind the first picture
    first = int(visual[:query].sum())
    with method.attach(tiny.model, tiny.family) as session, session.pin_query([query]):
        logits = tiny.logits(inputs)
    assert session.rows[0].visual_tokens[0] == first > session.rows[0].visual_tokens[-1]
    assert set(columns[first:]) <= set(kept_columns(tiny, logits)[0])


def test_a_generated_placeholder_is_an_ordinary_token(tiny: Tiny, method: InsideLLM):
    inputs = tiny.one()
    prompt = inputs["input_ids"].shape[1]
    placeholder = tiny.family.placeholder_ids(tiny.model.config)[0]

    def force(_row: int, ids: torch.Tensor) -> list[int]:
        return [placeholder if len(ids) == prompt else 7]

    with method.attach(tiny.model, tiny.family) as session:
        tiny.generate(inputs, new=3)
        expected = session.rows
        out = tiny.generate_raw(inputs, new=3, prefix_allowed_tokens_fn=force, suppress_tokens=None)
        assert session.rows == expected
    assert out.sequences[0, prompt] == placeholder
