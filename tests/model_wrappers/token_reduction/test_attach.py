"""Attaching leaves no trace, statistics are right, and what would be wrong is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from lmms_eval_stability.model_wrappers.token_reduction import FastV
from lmms_eval_stability.model_wrappers.token_reduction.errors import (
    AlreadyAttachedError,
    InvalidParameterError,
    NothingPrunedError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny


def traces(tiny: Tiny) -> dict[str, Any]:
    """Return everything on the model that a method may touch."""
    found: dict[str, Any] = {"generate": "generate" in vars(tiny.model)}
    for name, module in tiny.model.named_modules():
        found[name] = (
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            id(getattr(module, "config", None)),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
            sorted(key for key in vars(module) if "tap" in key),
        )
    return found


def test_nothing_is_left_behind(tiny: Tiny):
    inputs = tiny.one()
    logits = tiny.logits(inputs)  # first: transformers leaves hooks of its own in the vision tower
    before = traces(tiny)
    with FastV().attach(tiny.model, tiny.family):
        assert traces(tiny) != before
        tiny.generate(inputs, new=2)
    assert traces(tiny) == before
    assert torch.equal(tiny.logits(inputs), logits)


def fail(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize("where", ["block", "tapped", "between", "after"])
def test_nothing_is_left_behind_by_an_exception(llava: Tiny, where: str, monkeypatch: pytest.MonkeyPatch):
    inputs = llava.one()
    logits = llava.logits(inputs)
    before = traces(llava)

    class Broken(FastV):
        score = fail if where == "between" else FastV.score

    def use() -> None:
        with Broken().attach(llava.model, llava.family):
            if where == "block":
                fail()
            if where == "tapped":  # before the kernel, while the tapped module carries the copy of its config
                monkeypatch.setattr(llava.layers[2].self_attn.v_proj, "forward", fail)
            if where == "after":
                monkeypatch.setattr(llava.layers[5].mlp, "forward", fail)
            llava.logits(inputs)

    with pytest.raises(RuntimeError, match="boom"):
        use()
    monkeypatch.undo()
    assert traces(llava) == before
    assert torch.equal(llava.logits(inputs), logits)


def test_a_failed_pass_does_not_spoil_the_next(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    inputs, text = llava.one(), llava.inputs(("Yes?", []))
    plain = llava.logits(text)
    with FastV().attach(llava.model, llava.family) as session:
        good = llava.logits(inputs)
        for part in (llava.layers[2].self_attn.q_proj, llava.layers[5].mlp):
            with monkeypatch.context() as patch:
                patch.setattr(part, "forward", fail)
                with pytest.raises(RuntimeError, match="boom"):
                    llava.logits(inputs)
            assert torch.equal(llava.logits(text), plain)
            assert torch.equal(llava.logits(inputs), good)
    assert session.prefills == 5  # failed ones do not count


def test_the_language_model_on_its_own_is_left_alone(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    decoder = llava.family.decoder(llava.model)
    embeds = torch.randn(1, 9, decoder.config.hidden_size)
    with torch.no_grad():
        plain = decoder(inputs_embeds=embeds).last_hidden_state
        with FastV().attach(llava.model, llava.family):
            llava.logits(llava.one())
            assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, plain)
            with monkeypatch.context() as patch:
                patch.setattr(llava.layers[5].mlp, "forward", fail)
                with pytest.raises(RuntimeError, match="boom"):
                    llava.logits(llava.one())
            assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, plain)


def test_two_methods_at_once_are_refused(llava: Tiny):
    with FastV().attach(llava.model, llava.family):
        with pytest.raises(AlreadyAttachedError), FastV(k=2).attach(llava.model, llava.family):
            pass
        llava.logits(llava.one())
    with FastV(k=2).attach(llava.model, llava.family) as session:
        llava.logits(llava.one())
    assert session.rows[0].layers == (0, 2)


def test_statistics_add_up(tiny: Tiny):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes?", []), ("no", [(56, 140), (84, 84)]))
    counts = tiny.visual(inputs).sum(dim=1).tolist()
    with FastV(k=2, r=0.75).attach(tiny.model, tiny.family) as session:
        for _ in range(2):
            tiny.generate(inputs, new=3)
            assert [row.visual_tokens for row in session.rows] == [(n, round(n * 0.25)) for n in counts]
            assert {row.layers for row in session.rows} == {(0, 2)}
    assert session.prefills == session.prefills_with_images == 2
    assert session.tokens_seen == 2 * sum(counts)
    assert session.tokens_dropped == 2 * sum(n - round(n * 0.25) for n in counts)
    session.require_pruned(expect_images=True)


def test_a_run_that_pruned_nothing_is_an_error(llava: Tiny):
    method = FastV(r=0.01)  # round(16 * 0.99) == 16
    with method.attach(llava.model, llava.family) as session:
        llava.generate(llava.one(), new=2)
    with pytest.raises(NothingPrunedError, match="none of the 16 visual tokens"):
        session.require_pruned()


def test_a_run_that_should_prune_nothing_is_in_order(llava: Tiny):
    with FastV(r=0).attach(llava.model, llava.family) as session:
        llava.generate(llava.one(), new=2)
    session.require_pruned(expect_images=True)


def test_images_that_were_not_recognised_are_an_error(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(llava.family), "placeholder_ids", lambda _self, _config: (10**6,))
    with FastV().attach(llava.model, llava.family) as session:
        llava.generate(llava.one(), new=2)
    session.require_pruned()  # a text-only run would look like this
    with pytest.raises(NothingPrunedError, match="saw no visual token"):
        session.require_pruned(expect_images=True)


@pytest.mark.parametrize("k", [8, 32])
def test_a_layer_beyond_the_model_is_refused(llava: Tiny, k: int):
    before = traces(llava)
    match = rf"layer {k}; the language model has 8 layers"
    with pytest.raises(InvalidParameterError, match=match), FastV(k=k).attach(llava.model, llava.family):
        pass
    assert traces(llava) == before


def test_models_that_would_be_wrong_are_refused(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    config = llava.family.decoder(llava.model).config
    before = traces(llava)
    for name, value, match in (
        ("sliding_window", 4096, "sliding-window"),
        ("layer_types", ["full_attention"] * 7 + ["sliding_attention"], "sliding-window"),
        ("_attn_implementation_internal", "flex_attention", "not 'flex_attention'"),
        ("_attn_implementation_internal", "paged|flash_attention_2", "not 'paged"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value, raising=False)
            with pytest.raises(UnsupportedModelError, match=match), FastV().attach(llava.model, llava.family):
                pass
    compiled, match = torch.compile(llava.model), r"torch\.compile"
    with pytest.raises(UnsupportedModelError, match=match), FastV().attach(compiled, llava.family):
        pass
    assert traces(llava) == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt lookup"),
        ({"assistant_early_exit": 2}, "early exit"),
        ({"cache_implementation": "static"}, "not 'static'"),
        ({"cache_implementation": "quantized"}, "not 'quantized'"),
        ({"prefill_chunk_size": 8}, "chunked prefill"),
    ],
)
def test_generation_modes_that_would_be_wrong_are_refused(llava: Tiny, options: dict[str, Any], match: str):
    with FastV().attach(llava.model, llava.family):
        with pytest.raises(UnsupportedCallError, match=match):
            llava.generate(llava.one(), **options)
        with pytest.raises(UnsupportedCallError, match=match):
            llava.generate(llava.one(), generation_config=GenerationConfig(**options))
        with pytest.raises(UnsupportedCallError, match="assisted decoding"):
            llava.generate(llava.one(), assistant_model=llava.model)


def test_calls_that_would_be_wrong_are_refused(llava: Tiny):
    model, inputs = llava.model, llava.one()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    length = inputs["input_ids"].shape[1]
    foreign = model(input_ids=inputs["input_ids"][:, -4:], use_cache=True).past_key_values
    with FastV().attach(model, llava.family), torch.no_grad():
        for options, match in (
            ({"inputs_embeds": embeds}, "not inputs_embeds"),
            ({**inputs, "attention_mask": torch.zeros(1, 1, length, length)}, "2D attention masks"),
            ({**inputs, "past_key_values": StaticCache(config=model.config, max_cache_len=64)}, "not StaticCache"),
            ({"input_ids": torch.tensor([[5]]), "past_key_values": foreign}, "not filled by the latest prefill"),
            ({**inputs, "cu_seq_lens_q": torch.tensor([0, length])}, "packed"),
        ):
            with pytest.raises(UnsupportedCallError, match=match):
                model(**options)
        with pytest.raises(UnsupportedCallError, match="not inputs_embeds"):
            model.generate(inputs_embeds=embeds, max_new_tokens=2)
        cache = DynamicCache(config=model.config)
        model(**inputs, past_key_values=cache)
        with pytest.raises(UnsupportedCallError, match="new images on a filled"):
            model(**inputs, past_key_values=cache)


def test_bad_pins_are_refused(llava: Tiny):
    inputs = llava.inputs((QUESTION, [(56, 56)]), ("Yes?", [(56, 56)]))
    length = inputs["input_ids"].shape[1]
    with FastV().attach(llava.model, llava.family) as session:
        for columns, match in (
            ([length, length], "are not among"),
            ([-1, 3], "are not among"),
            ([length - 1, 0], "point at padding"),
            ([1, 2, 3], "pinned for 3 rows, but the batch has 2"),
        ):
            with pytest.raises(UnsupportedCallError, match=match), session.pin_query(columns):
                llava.logits(inputs)
        assert not session.pinned


def test_a_pin_serves_all_beams_of_its_row(llava: Tiny):
    with FastV().attach(llava.model, llava.family) as session:
        ids = torch.zeros(4, 9, dtype=torch.long)
        assert session.query_columns(ids, None).tolist() == [8, 8, 8, 8]
        with session.pin_query([3, 5]):
            assert session.query_columns(ids, None).tolist() == [3, 3, 5, 5]
            with session.pin_query(torch.tensor([2])):
                assert session.query_columns(ids, None).tolist() == [2, 2, 2, 2]
            assert session.query_columns(ids, None).tolist() == [3, 3, 5, 5]
