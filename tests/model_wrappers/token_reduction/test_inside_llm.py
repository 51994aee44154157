"""FastV in real forward passes of the four families, against the untouched model and against a plain implementation."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from lmms_eval_stability.model_wrappers.token_reduction import FastV
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import Stage
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny, check_answers_without_cache
from tests.model_wrappers.token_reduction.fastv_oracle import run as oracle

#: fp32 on CPU, logits of size about 10: kernels differ by a few 1e-5.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def kept_columns(tiny: Tiny, logits: torch.Tensor) -> list[list[int]]:
    """Return the columns of each row that reached the last layer: at all others the logits are zero."""
    return [row.abs().amax(dim=-1).nonzero().squeeze(1).tolist() for row in logits]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_keep_ratio_one_is_bit_equal(tiny: Tiny, kernel: str):
    tiny.model.set_attn_implementation(kernel)
    try:
        inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes or no?", [(56, 84)]))
        logits, ids = tiny.logits(inputs), tiny.generate(inputs)
        with FastV(k=2, r=0).attach(tiny.model, tiny.family) as session:
            assert torch.equal(tiny.logits(inputs), logits)
            assert torch.equal(tiny.generate(inputs), ids)
        assert all(row.visual_tokens[0] == row.visual_tokens[1] > 0 for row in session.rows)
    finally:
        tiny.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(("k", "r"), [(1, 0.5), (3, 0.75), (7, 0.9)])
def test_oracle(tiny: Tiny, kernel: str, k: int, r: float):
    inputs = tiny.one()
    last = inputs["input_ids"].shape[1] - 1
    n = int(tiny.visual(inputs).sum())
    keep = round(n * (1 - r))
    expected = oracle(tiny, inputs, {k: keep}, last)
    gap = expected.scores.sort(descending=True).values
    assert gap[keep - 1] - gap[keep] > 1e-6  # otherwise the case says nothing about the ranking
    tiny.model.set_attn_implementation(kernel)
    try:
        with FastV(k=k, r=r).attach(tiny.model, tiny.family) as session:
            logits = tiny.logits(inputs)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert kept_columns(tiny, logits) == [expected.columns.tolist()]
    torch.testing.assert_close(logits[0, expected.columns], expected.logits, **CLOSE)
    assert session.rows[0].layers == (0, k)
    assert session.rows[0].visual_tokens == (n, keep)
    assert (tiny.logits(inputs)[0, -1] - expected.logits[-1]).abs().max() > 1e-2  # dropping does change the answer


def test_two_images_are_ranked_together(tiny: Tiny):
    inputs = tiny.inputs((QUESTION, [(84, 56), (56, 112)]))
    visual = tiny.visual(inputs)[0]
    keep = round(int(visual.sum()) * 0.5)
    expected = oracle(tiny, inputs, {3: keep}, len(visual) - 1)
    with FastV().attach(tiny.model, tiny.family) as session:
        logits = tiny.logits(inputs)
    assert kept_columns(tiny, logits) == [expected.columns.tolist()]
    torch.testing.assert_close(logits[0, -1], expected.logits[-1], **CLOSE)
    assert session.rows[0].visual_tokens == (int(visual.sum()), keep)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_decoding_step_equals_a_full_recompute(tiny: Tiny, kernel: str):
    inputs = tiny.one()
    prompt = inputs["input_ids"].shape[1]
    n = int(tiny.visual(inputs).sum())
    tiny.model.set_attn_implementation(kernel)
    try:
        with FastV().attach(tiny.model, tiny.family):
            out = tiny.generate_raw(inputs, new=4)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    full = extended(inputs, out.sequences[:, prompt:-1])
    expected = oracle(tiny, full, {3: round(n * 0.5)}, prompt - 1)
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(logits[0], expected.logits[len(expected.logits) - 4 + step], **CLOSE)


def extended(inputs: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """Return the inputs with ``ids`` (B, new) appended to every row."""
    longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], ids], dim=1))
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], dim=1)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    return longer


def test_cache_holds_what_each_layer_saw(tiny: Tiny):
    inputs = tiny.one()
    length, n = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    with FastV(k=3, r=0.75).attach(tiny.model, tiny.family):
        out = tiny.generate_raw(inputs, new=4)
    short = length - n + round(n * 0.25)
    lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert lengths == [length + 3] * 3 + [short + 3] * (len(tiny.layers) - 3)


def test_answers_do_not_depend_on_the_cache(tiny: Tiny):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes or no?", [(56, 140)]))
    check_answers_without_cache(tiny, FastV(k=2, r=0.6), inputs, CLOSE)


def test_a_generated_placeholder_is_an_ordinary_token(tiny: Tiny):
    inputs = tiny.one()
    step = inputs["input_ids"].shape[1]
    placeholder = tiny.family.placeholder_ids(tiny.model.config)[0]

    def force(_row: int, ids: torch.Tensor) -> list[int]:
        return [placeholder if len(ids) == step else 7]

    n = int(tiny.visual(inputs).sum())
    with FastV().attach(tiny.model, tiny.family) as session:
        out = tiny.generate_raw(inputs, new=3, prefix_allowed_tokens_fn=force, suppress_tokens=None)
        assert session.rows[0].visual_tokens == (n, round(n * 0.5))
    assert out.sequences[0, step] == placeholder
    lengths = {layer.keys.shape[2] for layer in out.past_key_values.layers}
    assert lengths == {step + 2, step - n + round(n * 0.5) + 2}


def test_scoring_an_answer_does_not_leak_it_into_the_ranking(tiny: Tiny):
    inputs = tiny.one()
    prompt, n = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    chosen = []
    for answer in ([[40, 41, 42, 43]], [[300, 55, 120, 9]]):
        full = extended(inputs, torch.tensor(answer))
        expected = oracle(tiny, full, {3: round(n * 0.5)}, prompt - 1)
        labels = full["input_ids"].clone()
        labels[:, :prompt] = -100
        with FastV().attach(tiny.model, tiny.family) as session, session.pin_query([prompt - 1]), torch.no_grad():
            out = tiny.model(**full, labels=labels)
        assert out.logits.shape[1] == prompt + 4  # aligned with input_ids, so labels and slices mean what they say
        torch.testing.assert_close(out.logits[0, prompt - 1 :], expected.logits[-5:], **CLOSE)
        loss = torch.nn.functional.cross_entropy(expected.logits[-5:-1], torch.tensor(answer[0]))
        torch.testing.assert_close(out.loss, loss, **CLOSE)
        chosen.append([c for c in kept_columns(tiny, out.logits)[0] if c < prompt])
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_positions_stay_those_of_the_grid(load: Any, kind: str):
    tiny = load(kind)
    seen: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    with FastV().attach(tiny.model, tiny.family), ExitStack() as stack:
        for index in (0, 5):  # registered after the method's own hooks, so these see what the layer gets
            hook = tiny.layers[index].register_forward_pre_hook(
                lambda _m, _a, kw: seen.append((*kw["position_embeddings"], kw["position_ids"])), with_kwargs=True
            )
            stack.callback(hook.remove)
        columns = kept_columns(tiny, tiny.logits(tiny.one()))[0]
    (cos, sin, _), (short_cos, short_sin, position_ids) = seen
    for full, short in ((cos, short_cos), (sin, short_sin)):  # (1, L, d), or (3, 1, L, d) in older transformers
        assert torch.equal(short, full[..., columns, :])
        assert not torch.equal(short, full[..., : len(columns), :])
    assert position_ids is None  # gaps would look like packed sequences to a flash kernel


def test_logits_to_keep_means_the_columns_of_the_prompt(tiny: Tiny):
    inputs = tiny.one()
    with FastV().attach(tiny.model, tiny.family):
        everything = tiny.logits(inputs)
        torch.testing.assert_close(tiny.logits(inputs, logits_to_keep=2), everything[:, -2:])
        torch.testing.assert_close(tiny.logits(inputs, logits_to_keep=torch.tensor([0, 1])), everything[:, :2])


def test_several_tokens_on_a_filled_cache(tiny: Tiny):
    inputs = tiny.one()
    prompt, n = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    answer = torch.tensor([[40, 41, 42]])
    full = extended(inputs, answer)
    expected = oracle(tiny, full, {3: round(n * 0.5)}, prompt - 1)
    for kernel in ("sdpa", "eager"):
        tiny.model.set_attn_implementation(kernel)
        try:
            with FastV().attach(tiny.model, tiny.family), torch.no_grad():
                cache = tiny.model(**inputs, use_cache=True).past_key_values
                out = tiny.model(input_ids=answer, past_key_values=cache)
        finally:
            tiny.model.set_attn_implementation("sdpa")
        torch.testing.assert_close(out.logits[0], expected.logits[-3:], **CLOSE)


@dataclass(frozen=True)
class ThreeStages(FastV):
    """A method that drops tokens several times, ranks right before and long before it drops, and once drops nothing."""

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage(2, 1), Stage(4, 3), Stage(6, 5))

    def keep_count(self, stage: int, entered: int, now: int) -> int:
        return (round(entered * 0.6), now, round(entered * 0.2))[stage]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_several_stages(tiny: Tiny, kernel: str):
    specs = [(QUESTION, [(84, 56)]), ("Yes?", [(56, 140), (56, 56)]), ("no", [])]
    batch = tiny.inputs(*specs)
    tiny.model.set_attn_implementation(kernel)
    try:
        with ThreeStages().attach(tiny.model, tiny.family) as session:
            out = tiny.generate_raw(batch, new=3)
            logits = tiny.logits(batch)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    for row, spec in enumerate(specs):
        alone = tiny.inputs(spec)
        length, n = alone["input_ids"].shape[1], int(tiny.visual(alone).sum())
        assert session.rows[row].layers == (0, 2, 4, 6)
        assert session.rows[row].visual_tokens == (n, round(n * 0.6), round(n * 0.6), round(n * 0.2))
        stages = {2: round(n * 0.6), 6: round(n * 0.2)}
        full = extended(alone, out.sequences[row : row + 1, batch["input_ids"].shape[1] : -1])
        expected = oracle(tiny, full, stages, length - 1)
        for step, got in enumerate(out.logits):
            torch.testing.assert_close(got[row], expected.logits[len(expected.logits) - 3 + step], **CLOSE)
        pads = batch["input_ids"].shape[1] - length
        columns = [column + pads for column in expected.columns.tolist() if column < length]
        assert kept_columns(tiny, logits)[row] == columns


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny: Tiny, dtype: torch.dtype):
    specs = [(QUESTION, [(84, 56)]), ("Yes?", [(56, 140)]), ("no", [])]
    batch = tiny.inputs(*specs)
    with FastV(k=2, r=0.6).attach(tiny.model, tiny.family) as session:
        exact = [set(row) for row in kept_columns(tiny, tiny.logits(batch))]
        rows = session.rows
    half = dict(batch, pixel_values=batch["pixel_values"].to(dtype))
    model = copy.deepcopy(tiny.model).to(dtype)
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        with FastV(k=2, r=0.6).attach(model, tiny.family) as session, torch.no_grad():
            logits = model(**half).logits
            model.generate(**half, max_new_tokens=2, do_sample=False)
        assert logits.dtype == dtype
        assert logits.isfinite().all()
        assert session.rows == rows
        # Rounding may swap tokens of nearly equal rank, no more: never compared exactly.
        for row, columns in enumerate(kept_columns(tiny, logits)):
            assert len(exact[row] & set(columns)) >= 0.9 * len(exact[row])


def test_a_dispatched_model(llava: Tiny):
    """With ``device_map`` accelerate replaces the ``forward`` of modules; arguments must still be found by name."""
    inputs = llava.one()
    with FastV().attach(llava.model, llava.family):
        expected = llava.logits(inputs)
    model = copy.deepcopy(llava.model)
    for module in (model, *model.modules()):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    with FastV().attach(model, llava.family) as session, torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    session.require_pruned(expect_images=True)


def test_a_picture_after_the_query_stays_whole(tiny: Tiny):
    inputs = tiny.inputs((QUESTION, [(84, 56), (56, 112)]))
    visual = tiny.visual(inputs)[0]
    columns = visual.nonzero().squeeze(1).tolist()
    query = next(column for column in columns if not visual[column + 1]) + 1  # right behind the first picture
    first = int(visual[:query].sum())
    expected = oracle(tiny, inputs, {3: round(first * 0.5)}, query)
    with FastV().attach(tiny.model, tiny.family) as session, session.pin_query([query]):
        logits = tiny.logits(inputs)
    assert session.rows[0].visual_tokens == (first, round(first * 0.5))
    assert kept_columns(tiny, logits) == [expected.columns.tolist()]
    assert set(columns[first:]) <= set(expected.columns.tolist())


def test_outputs_as_tuples(tiny: Tiny):
    inputs = tiny.one()
    with FastV().attach(tiny.model, tiny.family), torch.no_grad():
        expected = tiny.model(**inputs).logits
        assert torch.equal(tiny.model(**inputs, return_dict=False)[0], expected)
        hidden = tiny.family.backbone(tiny.model)(**inputs, return_dict=False)[0]
    assert hidden.shape[:2] == inputs["input_ids"].shape
