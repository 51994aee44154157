"""The inverse participation ratio of visual tokens before and after every method, in every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError
from lmms_eval_stability.model_wrappers.token_reduction import (
    Downsample,
    FastV,
    HiRED,
    LoFi,
    PyramidDrop,
    Random,
    RandomInside,
    SparseVLM,
    VisionZip,
)
from lmms_eval_stability.model_wrappers.token_reduction.base import Session, TokenReducer
from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import run
from tests.model_wrappers.token_reduction.conftest import Tiny
from tests.model_wrappers.token_reduction.lvpruning_untrained import LVPruning
from tests.model_wrappers.token_reduction.test_batches import RAGGED
from tests.model_wrappers.token_reduction.test_diagnostics import ratio_of

BEFORE: tuple[TokenReducer, ...] = (VisionZip(), HiRED(budget=0.4), LoFi(rank=4), Random())
INSIDE: tuple[TokenReducer, ...] = (FastV(k=2, r=0.7), PyramidDrop(), LVPruning(), SparseVLM(), RandomInside())


def numbers(session: Session) -> list[dict[str, tuple[float | None, ...]]]:
    return [dict(row.diagnostics) for row in session.rows]


def name(method: TokenReducer) -> str:
    return type(method).__name__


@pytest.mark.parametrize("method", [*BEFORE, *INSIDE], ids=name)
def test_every_method_says_it_of_every_row_and_no_bit_changes(tiny: Tiny, method: TokenReducer):
    inputs = tiny.inputs(*RAGGED)
    with method.attach(tiny.model, tiny.family) as session:
        plain = tiny.generate_raw(inputs, new=3)
        session.spectrum = True
        measured = tiny.generate_raw(inputs, new=3)
        found = numbers(session)
    assert torch.equal(plain.sequences, measured.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, measured.logits, strict=True))
    for row, (_, images) in zip(found, RAGGED, strict=True):
        if not images:
            assert row == {}
            continue
        assert list(row) == ["ipr_full", "ipr_kept"]
        assert all(len(values) == (len(images) if method.acts_before_llm else 1) for values in row.values())
        assert all(0 < value <= 1 for values in row.values() for value in values if value is not None)
        assert row["ipr_full"] != row["ipr_kept"]


@pytest.mark.parametrize("method", [*BEFORE, *INSIDE], ids=name)
def test_rows_of_a_batch_have_the_numbers_of_single_prompts(tiny: Tiny, method: TokenReducer):
    with method.attach(tiny.model, tiny.family) as session:
        session.spectrum = True
        tiny.logits(tiny.inputs(*RAGGED))
        together = numbers(session)
        for row, spec in zip(together, RAGGED, strict=True):
            tiny.logits(tiny.inputs(spec))
            (alone,) = numbers(session)
            assert row.keys() == alone.keys()
            for key, values in row.items():
                assert values == pytest.approx(alone[key], rel=1e-4)


def entering(tiny: Tiny, inputs: dict[str, Any], layer: int) -> Tensor:
    """Return the states of the visual tokens of one prompt that enter a layer of the untouched model: (N, d)."""
    states: list[Tensor] = []

    def see(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    handle = tiny.layers[layer].register_forward_pre_hook(see, with_kwargs=True)
    tiny.logits(inputs)
    handle.remove()
    return states[0][0][tiny.visual(inputs)[0]]


@pytest.mark.parametrize("method", INSIDE[:3], ids=name)
def test_inside_the_language_model_one_layers_states_are_compared(tiny: Tiny, method: TokenReducer):
    inputs = tiny.one()
    with method.attach(tiny.model, tiny.family) as session:
        session.spectrum = session.tracing = True
        tiny.logits(inputs)
        (trace,), (found,) = session.traces, numbers(session)
    dropping = next(now.layer for now in trace if len(now.kept) < len(trace[0].kept))
    states = entering(tiny, inputs, dropping)
    assert found["ipr_full"] == (pytest.approx(ratio_of(states), rel=1e-4),)
    assert found["ipr_kept"] == (pytest.approx(ratio_of(states[list(trace[-1].kept)]), rel=1e-4),)


def test_before_it_the_tokens_that_it_is_given_are_compared(tiny: Tiny):
    inputs = tiny.one()
    layout = tiny.family.image_layouts(tiny.model, inputs)[0]
    patches = layout.source >= 0
    with Random().attach(tiny.model, tiny.family) as session:
        session.spectrum = session.tracing = True
        tiny.logits(inputs)
        (trace,), (found,) = session.traces, numbers(session)
    features = entering(tiny, inputs, 0)
    kept = [index for index in trace[-1].kept if patches[index]]
    assert found["ipr_full"] == (pytest.approx(ratio_of(features[patches]), rel=1e-4),)
    assert found["ipr_kept"] == (pytest.approx(ratio_of(features[kept]), rel=1e-4),)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_smaller_images_are_compared_with_the_whole_ones(kind: str, load: Any):
    tiny: Tiny = load(kind)
    inputs, method = tiny.one(168, 112), Downsample(tokens=144)
    with method.attach(tiny.model, tiny.family) as session:
        plain = tiny.logits(inputs)
        assert numbers(session) == [{}]
        session.spectrum = True
        assert torch.equal(tiny.logits(inputs), plain)
        (found,) = numbers(session)
    assert found["ipr_full"] == (pytest.approx(ratio_of(entering(tiny, inputs, 0)), rel=1e-4),)
    assert found["ipr_kept"] != found["ipr_full"]


def test_off_there_are_no_numbers_and_off_is_a_model_argument(tiny_folder: Callable[[str], str]):
    docs = documents(6)
    found = {}
    for given in ({}, {"spectrum": True}, {"spectrum": False}):
        model = models.LlavaFastv(pretrained=tiny_folder("llava"), device="cpu", k=1, batch_size=3, **given)
        found[str(given)] = [json.loads(json.dumps(result.token_counts.to_dict())) for result in run(model, docs)]
    default, on, off = found.values()
    assert [one.get("diagnostics") for one in default] == [one.get("diagnostics") for one in on]
    assert any("diagnostics" in one for one in on)
    assert not any("diagnostics" in one for one in off)
    assert [one["answer_logprob"] for one in on] == [one["answer_logprob"] for one in off]


def test_another_value_is_refused(tiny_folder: Callable[[str], str]):
    with pytest.raises(InvalidArgumentError, match="spectrum=no: write True or False"):
        models.LlavaFastv(pretrained=tiny_folder("llava"), device="cpu", spectrum="no")
