"""Methods before the language model, on all families: what every one of them must have in common."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from lmms_eval_stability.model_wrappers.token_reduction.base import TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.downsample import Downsample
from lmms_eval_stability.model_wrappers.token_reduction.errors import (
    AlreadyAttachedError,
    NothingPrunedError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from lmms_eval_stability.model_wrappers.token_reduction.hired import HiRED
from lmms_eval_stability.model_wrappers.token_reduction.lofi import LoFi
from lmms_eval_stability.model_wrappers.token_reduction.random import Random
from lmms_eval_stability.model_wrappers.token_reduction.visionzip import VisionZip
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny, check_rows_against_single_prompts
from tests.model_wrappers.token_reduction.test_attach import fail, traces
from tests.model_wrappers.token_reduction.test_batches import RAGGED, padded_right
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE

METHODS: dict[str, TokenReducer] = {
    "random": Random(tokens=200),
    "visionzip": VisionZip(),
    "hired": HiRED(budget=0.3),
    "lofi": LoFi(rank=4),
    "downsample": Downsample(),
}
KEEP_ALL: dict[str, TokenReducer] = {
    "random": Random(tokens=576),
    "visionzip": VisionZip(dominant=500, contextual=76),
    "hired": HiRED(budget=1),
    "lofi": LoFi(tokens=576, rank=4),
    "downsample": Downsample(tokens=576),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> TokenReducer:
    """Each method in turn, dropping about two thirds."""
    return METHODS[request.param]


def full_length(tiny: Tiny, inputs: dict[str, Any]) -> torch.Tensor:
    return tiny.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("name", KEEP_ALL)
@pytest.mark.parametrize("use_cache", [True, False])
def test_keeping_everything_is_the_base_model_bit_by_bit(tiny: Tiny, name: str, use_cache: bool):
    inputs = tiny.inputs(*RAGGED)
    logits, ids = tiny.logits(inputs), tiny.generate(inputs, use_cache=use_cache)
    with KEEP_ALL[name].attach(tiny.model, tiny.family) as session:
        assert torch.equal(tiny.logits(inputs), logits)
        assert torch.equal(tiny.generate(inputs, use_cache=use_cache), ids)
    assert all(row.dropped == 0 for row in session.rows)
    session.require_pruned(expect_images=True)


def test_answers_change_and_statistics_add_up(tiny: Tiny, method: TokenReducer):
    inputs = tiny.inputs(*RAGGED)
    plain = tiny.generate_raw(inputs)
    before = tiny.visual(inputs).sum(dim=1).tolist()
    with method.attach(tiny.model, tiny.family) as session:
        short = tiny.generate_raw(inputs)
        rows = session.rows
        tiny.logits(inputs)
    assert session.rows == rows
    assert [row.visual_tokens[0] for row in rows] == before
    assert {row.layers for row in rows} == {(0, 0)}
    assert rows[1].visual_tokens == (0, 0)
    for row in (0, 2, 3):
        assert 0 < rows[row].visual_tokens[1] < before[row]
        assert not torch.allclose(short.logits[0][row], plain.logits[0][row], atol=1e-3)
    assert session.prefills == session.prefills_with_images == 2
    assert session.tokens_seen == 2 * sum(before)
    assert session.tokens_dropped == 2 * sum(row.dropped for row in rows)
    session.require_pruned(expect_images=True)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_ragged_rows_equal_single_prompts(tiny: Tiny, method: TokenReducer, kernel: str, use_cache: bool):
    tiny.model.set_attn_implementation(kernel)
    try:
        check_rows_against_single_prompts(tiny, method, RAGGED, CLOSE, use_cache=use_cache)
    finally:
        tiny.model.set_attn_implementation("sdpa")


def test_with_and_without_a_cache_alike(tiny: Tiny, method: TokenReducer):
    inputs = tiny.inputs(*RAGGED)
    with method.attach(tiny.model, tiny.family):
        cached, plain = (tiny.generate_raw(inputs, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_generate_returns_the_whole_prompt_and_the_cache_is_short(tiny: Tiny, method: TokenReducer):
    inputs = tiny.one()
    with method.attach(tiny.model, tiny.family) as session:
        result = tiny.generate_raw(inputs, new=5)
        ids = full_length(tiny, inputs)
        by_position = tiny.model.generate(
            inputs["input_ids"],
            **{name: value for name, value in inputs.items() if name != "input_ids"},
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
        )
    length = inputs["input_ids"].shape[1]
    assert torch.equal(result.sequences[:, :length], inputs["input_ids"])
    assert result.sequences.shape[1] == length + 5
    assert torch.equal(ids[:, :length], inputs["input_ids"])
    assert ids.shape[1] == length + 3
    assert torch.equal(ids, by_position)
    expected = length - session.rows[0].dropped + 4
    assert {layer.keys.shape[-2] for layer in result.past_key_values.layers} == {expected}


def test_a_plain_pass_gives_the_first_logits_of_generate(tiny: Tiny, method: TokenReducer):
    for inputs in (tiny.inputs(*RAGGED), tiny.one()):
        with method.attach(tiny.model, tiny.family):
            logits = tiny.logits(inputs)
            first = tiny.generate_raw(inputs, new=1).logits[0]
            last = tiny.logits(inputs, logits_to_keep=1)
        assert logits.shape[:2] == inputs["input_ids"].shape
        torch.testing.assert_close(logits[:, -1], first, **CLOSE)
        torch.testing.assert_close(last[:, 0], first, **CLOSE)


def test_padding_side_does_not_matter_to_a_plain_pass(tiny: Tiny, method: TokenReducer):
    left = tiny.inputs(*RAGGED)
    right = padded_right(left)
    with method.attach(tiny.model, tiny.family):
        one, other = tiny.logits(left), tiny.logits(right)
        with pytest.raises(UnsupportedCallError, match="padded on the left"):
            tiny.generate(right)
    for row in range(len(RAGGED)):
        real = left["attention_mask"][row].bool()
        torch.testing.assert_close(one[row, real], other[row, right["attention_mask"][row].bool()], **CLOSE)


@pytest.mark.parametrize("mask", [True, False])
def test_decoding_by_hand_equals_generate(tiny: Tiny, method: TokenReducer, mask: bool):
    inputs = tiny.inputs(*RAGGED) if mask else tiny.one()
    ones = inputs["attention_mask"].new_ones(len(inputs["input_ids"]), 1)
    if not mask:
        del inputs["attention_mask"]
    with method.attach(tiny.model, tiny.family), torch.no_grad():
        raw = tiny.generate_raw(inputs, new=3)
        answers = raw.sequences[:, -3:]
        cache = DynamicCache(config=tiny.model.config.text_config)
        tiny.model(**inputs, past_key_values=cache)
        for step in range(2):
            more = {}
            if mask:
                more["attention_mask"] = torch.cat([inputs["attention_mask"], *[ones] * (step + 1)], dim=1)
            if "qwen" in tiny.kind and not isinstance(
                method, Downsample
            ):  # with a mask and a cache these models need to be told positions
                find = tiny.model.model.get_rope_index
                names = inspect.signature(find).parameters
                full, _ = find(**{name: value for name, value in inputs.items() if name in names})
                more["position_ids"] = full.amax(dim=2, keepdim=True).amax(dim=0, keepdim=True) + 1 + step
                more["position_ids"] = more["position_ids"].expand(3, -1, -1)
            step_ids = answers[:, step : step + 1]
            logits = tiny.model(input_ids=step_ids, past_key_values=cache, **more).logits
            torch.testing.assert_close(logits[:, -1], raw.logits[step + 1], **CLOSE)
        with pytest.raises(UnsupportedCallError, match="new images on a filled"):
            tiny.model(**inputs, past_key_values=cache)


def test_text_only_prompts_are_untouched(tiny: Tiny, method: TokenReducer):
    inputs = tiny.inputs(("What color is the car?", []), ("Yes?", []))
    logits, ids = tiny.logits(inputs), tiny.generate(inputs)
    with method.attach(tiny.model, tiny.family) as session:
        assert torch.equal(tiny.logits(inputs), logits)
        assert torch.equal(tiny.generate(inputs), ids)
    assert (session.prefills, session.prefills_with_images) == (2, 0)
    assert all(row.visual_tokens == (0, 0) for row in session.rows)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
def test_beam_search(tiny: Tiny, method: TokenReducer, options: dict[str, Any]):
    specs = (RAGGED[0], RAGGED[2], RAGGED[3])
    with method.attach(tiny.model, tiny.family) as session:
        together = tiny.generate(tiny.inputs(*specs), new=4, **options)
        assert len(session.rows) == 3
        assert session.prefills == 1
        for row, spec in enumerate(specs):
            assert tiny.generate(tiny.inputs(spec), new=4, **options)[0].tolist() == together[row].tolist()


def test_several_samples_per_prompt_keep_their_prompt(tiny: Tiny, method: TokenReducer):
    batch = tiny.inputs(RAGGED[0], RAGGED[3])
    with method.attach(tiny.model, tiny.family):
        result = tiny.generate_raw(batch, do_sample=True, num_return_sequences=2)
    length = batch["input_ids"].shape[1]
    assert torch.equal(result.sequences[:, :length], batch["input_ids"].repeat_interleave(2, dim=0))


def test_nothing_is_left_behind(tiny: Tiny, method: TokenReducer, monkeypatch: pytest.MonkeyPatch):
    inputs = tiny.one()
    logits = tiny.logits(inputs)
    before, attributes = traces(tiny), set(vars(tiny.family.backbone(tiny.model)))
    with method.attach(tiny.model, tiny.family):
        assert traces(tiny) != before
        tiny.generate(inputs, new=2)
        tiny.logits(inputs)
    assert traces(tiny) == before
    places = (tiny.layers[3].mlp, tiny.family.vision_layers(tiny.model)[1])
    for part in places:
        for call in (tiny.logits, tiny.generate):
            monkeypatch.setattr(part, "forward", fail)
            with pytest.raises(RuntimeError, match="boom"), method.attach(tiny.model, tiny.family):
                call(inputs)
            monkeypatch.undo()
            assert traces(tiny) == before
            assert set(vars(tiny.family.backbone(tiny.model))) == attributes
    assert torch.equal(tiny.logits(inputs), logits)


def test_a_failed_pass_does_not_spoil_the_next(tiny: Tiny, method: TokenReducer, monkeypatch: pytest.MonkeyPatch):
    inputs, text = tiny.one(), tiny.inputs(("Yes?", []))
    plain = tiny.logits(text)
    with method.attach(tiny.model, tiny.family):
        good, answer = tiny.logits(inputs), tiny.generate(inputs)
        for call in (tiny.logits, tiny.generate):
            with monkeypatch.context() as patch:
                patch.setattr(tiny.layers[5].mlp, "forward", fail)
                with pytest.raises(RuntimeError, match="boom"):
                    call(inputs)
            assert torch.equal(tiny.logits(text), plain)
            assert torch.equal(tiny.logits(inputs), good)
            assert torch.equal(tiny.generate(inputs), answer)


def test_two_methods_at_once_are_refused(llava: Tiny, method: TokenReducer):
    with (
        method.attach(llava.model, llava.family),
        pytest.raises(AlreadyAttachedError),
        method.attach(llava.model, llava.family),
    ):
        pass


def test_what_would_be_wrong_is_refused(tiny: Tiny, method: TokenReducer):
    inputs = tiny.one()
    embeds = tiny.model.get_input_embeddings()(inputs["input_ids"])
    length = inputs["input_ids"].shape[1]
    with method.attach(tiny.model, tiny.family):
        for options, match in (
            ({"inputs_embeds": embeds}, "inputs_embeds"),
            ({**inputs, "pixel_values_videos": embeds}, "video"),
            ({**inputs, "mm_encoder_outputs": {"image": embeds}}, "mm_encoder_outputs"),
            ({**inputs, "position_ids": torch.arange(length)[None]}, "position_ids"),
            ({**inputs, "attention_mask": torch.ones(1, 1, length, length)}, "2D attention masks"),
            ({**inputs, "input_ids": inputs["input_ids"][:, -6:], "attention_mask": None}, "placeholders"),
        ):
            with pytest.raises(UnsupportedCallError, match=match):
                tiny.model.generate(**options)
            if options.get("pixel_values_videos") is None or "qwen" in tiny.kind:
                with pytest.raises(UnsupportedCallError, match=match):
                    tiny.family.backbone(tiny.model)(**options)
        for options in ({"max_length": 99}, {"generation_config": GenerationConfig(max_length=99)}):
            with pytest.raises(UnsupportedCallError, match="max_new_tokens"):
                tiny.model.generate(**inputs, **options)
    compiled = torch.compile(tiny.model)
    with pytest.raises(UnsupportedModelError, match=r"torch\.compile"), method.attach(compiled, tiny.family):
        pass


def test_images_that_were_not_recognised_are_an_error(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(llava.family), "placeholder_ids", lambda _self, _config: (10**6,))
    with (
        Random().attach(llava.model, llava.family),
        pytest.raises(UnsupportedCallError, match=r"16.* visual tokens, but the prompts have \[0\] placeholders"),
    ):
        llava.generate(llava.one(), new=2)


def test_a_run_that_pruned_nothing_is_an_error(llava: Tiny):
    with Random(tokens=575).attach(llava.model, llava.family) as session:  # round(16 * 575 / 576) == 16
        llava.generate(llava.inputs((QUESTION, [(56, 56)])), new=2)
    with pytest.raises(NothingPrunedError, match="none of the 16 visual tokens"):
        session.require_pruned()
