"""The tap must read what eager attention would return, and leave no trace."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from lmms_eval_stability.model_wrappers.token_reduction import FastV
from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap, attention_rows
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError
from tests.model_wrappers.token_reduction.conftest import Tiny


def rows_through(tiny: Tiny, inputs: dict[str, Any], layer: int, rows: Tensor) -> Tensor:
    """Read attention rows (B, R) of one layer during a plain forward pass of the untouched model."""
    length = inputs["input_ids"].shape[1]
    seen = (torch.arange(length) <= rows[..., None]) & inputs["attention_mask"].bool()[:, None]
    with ExitStack() as stack:
        tap = AttentionTap(tiny.layers[layer].self_attn, stack)
        tap.want(rows, seen)
        tiny.logits(inputs)
        return tap.take()


@pytest.mark.parametrize("layer", [0, 5])
def test_rows_equal_the_eager_weights(tiny: Tiny, layer: int):
    inputs = tiny.inputs(("What color is the car?", [(84, 56)]), ("Yes?", [(56, 140)]))
    length = inputs["input_ids"].shape[1]
    rows = torch.tensor([[length - 1, length - 4], [length - 1, length - 2]])
    tapped = rows_through(tiny, inputs, layer, rows)
    assert tapped.dtype == torch.float32
    tiny.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = tiny.model(**inputs, output_attentions=True).attentions[layer]
        eager = rows_through(tiny, inputs, layer, rows)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    expected = torch.stack([weights[row][:, rows[row]] for row in range(2)])
    assert torch.equal(eager, expected)
    torch.testing.assert_close(tapped, expected, atol=2e-6, rtol=1e-4)


def test_the_tapped_layer_computes_exactly_the_same(tiny: Tiny):
    inputs = tiny.one()
    plain = tiny.logits(inputs)
    attention = tiny.layers[2].self_attn
    config = attention.config
    length = inputs["input_ids"].shape[1]
    with ExitStack() as stack:
        tap = AttentionTap(attention, stack)
        tap.want(torch.tensor([[length - 1]]), torch.ones(1, 1, length, dtype=torch.bool))
        assert torch.equal(tiny.logits(inputs), plain)
        assert attention.config is config
        assert tap.take().shape == (1, config.num_attention_heads, 1, length)
        with pytest.raises(UnsupportedModelError, match="no attention rows"):
            tap.take()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_without_a_pass_are_those_of_a_pass(tiny: Tiny, kernel: str):
    inputs = tiny.one()
    length, layer = inputs["input_ids"].shape[1], tiny.layers[3]
    rows, seen = torch.tensor([[length - 1]]), torch.ones(1, 1, length, dtype=torch.bool)
    expected, given = rows_through(tiny, inputs, 3, rows), {}
    hook = layer.register_forward_pre_hook(lambda _m, a, kw: given.update(hidden=a[0], **kw), with_kwargs=True)
    tiny.model.set_attn_implementation(kernel)
    try:
        config = layer.self_attn.config
        with ExitStack() as stack, torch.no_grad():
            cache = tiny.model(**inputs, use_cache=True).past_key_values
            tap = AttentionTap(layer.self_attn, stack)
            got = tap.measure(layer.input_layernorm(given["hidden"]), given["position_embeddings"], rows, seen)
        assert layer.self_attn.config is config
    finally:
        hook.remove()
        tiny.model.set_attn_implementation("sdpa")
    assert cache.layers[3].keys.shape[2] == length  # the pass filled it, the measurement did not
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-4)


def test_a_failing_layer_gets_its_config_back(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    attention, inputs = llava.layers[2].self_attn, llava.one()
    config, length = attention.config, inputs["input_ids"].shape[1]
    monkeypatch.setattr(attention.v_proj, "forward", None)  # fails after the config was replaced, before the kernel
    with ExitStack() as stack:
        AttentionTap(attention, stack).want(torch.tensor([[length - 1]]), torch.ones(1, 1, length, dtype=torch.bool))
        with pytest.raises(TypeError):
            llava.logits(inputs)
        assert attention.config is not config
    assert attention.config is config


def test_grouped_query_heads():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 5, 4, generator=generator), torch.randn(2, 2, 5, 4, generator=generator)
    rows = torch.tensor([[4, 1], [3, 3]])
    seen = torch.arange(5) <= rows[..., None]
    result = attention_rows(query, key, rows, seen, 0.5)
    for batch in range(2):
        for head in range(6):
            for index, row in enumerate(rows[batch].tolist()):
                logits = query[batch, head, row] @ key[batch, head // 3, : row + 1].T * 0.5
                torch.testing.assert_close(result[batch, head, index, : row + 1], logits.softmax(-1))
                assert not result[batch, head, index, row + 1 :].any()


def test_half_precision_rows_are_computed_in_full():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 300, 16, generator=generator).bfloat16()
    key = torch.randn(1, 2, 300, 16, generator=generator).bfloat16()
    rows, seen = torch.tensor([[299]]), torch.ones(1, 1, 300, dtype=torch.bool)
    result = attention_rows(query, key, rows, seen, 0.25)
    expected = attention_rows(query.float(), key.float(), rows, seen, 0.25)
    assert torch.equal(result, expected)


class StubFlash:
    """A kernel with the calling convention of flash attention: 2D masks, and packed sequences by position ids."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.positions: list[Any] = []

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        self.names.append(module.config._attn_implementation)
        self.positions.append(kwargs.get("position_ids"))
        new, keys = query.shape[2], key.shape[2]
        seen = torch.ones(new, keys).tril(keys - new).bool()[None, None]
        if mask is not None:
            assert mask.shape == (len(query), keys)  # not 4D, and as long as the keys of this layer
            seen = seen & mask.bool()[:, None, None] | torch.eye(keys)[-new:].bool()
        groups = query.shape[1] // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=seen
        )
        return out.transpose(1, 2), None


@pytest.mark.parametrize("specs", [1, 3])
def test_flash_kernels(tiny: Tiny, specs: int):
    kernel = StubFlash()
    AttentionInterface.register("stub_flash", kernel)
    AttentionMaskInterface.register("stub_flash", flash_attention_mask)
    inputs = tiny.inputs(*[("What color is the car?", [(84, 56)]), ("no", [(56, 140)]), ("Yes?", [])][:specs])
    decoder = tiny.family.decoder(tiny.model)
    with FastV(k=2, r=0.7).attach(tiny.model, tiny.family):
        expected = tiny.generate_raw(inputs, new=4)
    config, before = decoder.config, decoder.config._attn_implementation
    config._attn_implementation = "stub_flash"
    try:
        with FastV(k=2, r=0.7).attach(tiny.model, tiny.family):
            out = tiny.generate_raw(inputs, new=4)
    finally:
        config._attn_implementation = before
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(out.logits[0], expected.logits[0], atol=2e-4, rtol=1e-4)
    assert len(kernel.names) == 4 * len(tiny.layers)
    assert set(kernel.names) == {"stub_flash"}  # a flash kernel looks its library up by this name
    assert kernel.positions[2 : len(tiny.layers)] == [None] * (len(tiny.layers) - 2)
