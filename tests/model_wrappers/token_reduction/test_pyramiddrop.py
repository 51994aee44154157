"""PyramidDrop in real forward passes of the four families, against a plain implementation; and its exact counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction import PyramidDrop
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.pyramiddrop_oracle import run as oracle
from tests.model_wrappers.token_reduction.real_geometry import build_real_geometry
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE, extended, kept_columns


def numbers_anew(tiny: Tiny, method: PyramidDrop) -> bool:
    """Return whether positions change: on Qwen they are a grid's and stay."""
    return method.renumber and not tiny.kind.startswith("qwen")


def goals(method: PyramidDrop, layers: tuple[int, ...], n: int) -> dict[int, int]:
    return {layer: method.keep_count(stage, n, n) for stage, layer in enumerate(layers)}


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (PyramidDrop(), (2, 4, 6)),
        (PyramidDrop(renumber=False), (2, 4, 6)),
        (PyramidDrop(layers="1-7", ratios="0.7-0.1"), (1, 7)),
    ],
)
def test_oracle(tiny: Tiny, kernel: str, method: PyramidDrop, layers: tuple[int, ...]):
    inputs = tiny.one()
    last = inputs["input_ids"].shape[1] - 1
    n = int(tiny.visual(inputs).sum())
    stages = goals(method, layers, n)
    expected = oracle(tiny, inputs, stages, last, numbers_anew(tiny, method))
    tiny.model.set_attn_implementation(kernel)
    try:
        with method.attach(tiny.model, tiny.family) as session:
            logits = tiny.logits(inputs)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert kept_columns(tiny, logits) == [expected.columns.tolist()]
    torch.testing.assert_close(logits[0, expected.columns], expected.logits, **CLOSE)
    assert session.rows[0].layers == (0, *layers)
    assert session.rows[0].visual_tokens == (n, *stages.values())


def test_renumbering_matters_where_tokens_are_numbered(tiny: Tiny):
    inputs = tiny.one()
    answers = []
    for renumber in (True, False):
        with PyramidDrop(renumber=renumber).attach(tiny.model, tiny.family):
            answers.append(tiny.logits(inputs)[0, -1])
    assert torch.equal(*answers) == tiny.kind.startswith("qwen")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("renumber", [True, False])
def test_decoding_continues_the_numbering_of_each_layer(tiny: Tiny, kernel: str, renumber: bool):
    method, inputs = PyramidDrop(renumber=renumber), tiny.one()
    prompt, n = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    tiny.model.set_attn_implementation(kernel)
    try:
        with method.attach(tiny.model, tiny.family):
            out = tiny.generate_raw(inputs, new=4)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    full = extended(inputs, out.sequences[:, prompt:-1])
    expected = oracle(tiny, full, goals(method, (2, 4, 6), n), prompt - 1, numbers_anew(tiny, method))
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(logits[0], expected.logits[len(expected.logits) - 4 + step], **CLOSE)


def test_several_tokens_on_a_filled_cache(tiny: Tiny):
    method, inputs = PyramidDrop(), tiny.one()
    prompt, n = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    answer = torch.tensor([[40, 41, 42]])
    expected = oracle(
        tiny, extended(inputs, answer), goals(method, (2, 4, 6), n), prompt - 1, numbers_anew(tiny, method)
    )
    with method.attach(tiny.model, tiny.family), torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True).past_key_values
        out = tiny.model(input_ids=answer, past_key_values=cache)
    torch.testing.assert_close(out.logits[0], expected.logits[-3:], **CLOSE)


def test_two_images_are_ranked_together(tiny: Tiny):
    inputs = tiny.inputs((QUESTION, [(84, 56), (56, 112)]))
    method, visual = PyramidDrop(), tiny.visual(inputs)[0]
    n = int(visual.sum())
    expected = oracle(tiny, inputs, goals(method, (2, 4, 6), n), len(visual) - 1, numbers_anew(tiny, method))
    with method.attach(tiny.model, tiny.family) as session:
        logits = tiny.logits(inputs)
    assert kept_columns(tiny, logits) == [expected.columns.tolist()]
    torch.testing.assert_close(logits[0, -1], expected.logits[-1], **CLOSE)
    assert session.rows[0].visual_tokens == (n, n // 2, n // 4, n // 8)


def test_recorded_attention_is_that_of_the_layers_alone(tiny: Tiny):
    inputs = tiny.one()
    tiny.model.set_attn_implementation("eager")
    try:
        with PyramidDrop().attach(tiny.model, tiny.family), torch.no_grad():
            recorded = tiny.model(**inputs, output_attentions=True).attentions
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert len(recorded) == len(tiny.layers)  # ranking computes attention once more, which nobody asked to see


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return {kind: build_real_geometry(kind, tmp_path_factory.mktemp(kind)) for kind in ("llava", "llava_next")}


@pytest.mark.parametrize(
    ("kind", "size", "counts"),
    [
        ("llava", (640, 480), (576, 288, 144, 72)),
        ("llava_next", (672, 672), (2928, 1464, 732, 366)),
        ("llava_next", (500, 333), (1464, 732, 366, 183)),
    ],
)
def test_counts_of_the_real_models(real: dict[str, Tiny], kind: str, size: tuple[int, int], counts: tuple[int, ...]):
    tiny = real[kind]
    inputs = tiny.one(*size)
    text = inputs["input_ids"].shape[1] - counts[0]
    with PyramidDrop().attach(tiny.model, tiny.family) as session, torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    assert session.rows[0].layers == (0, 8, 16, 24)
    assert session.rows[0].visual_tokens == counts
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == [text + count for count in counts for _ in range(8)]


@pytest.mark.parametrize("layers", ["0-2-4", "2-4-8"])
def test_a_layer_that_the_model_does_not_have_is_refused(llava: Tiny, layers: str):
    match, method = "so it must be 1 to 7", PyramidDrop(layers=layers)
    with pytest.raises(InvalidParameterError, match=match), method.attach(llava.model, llava.family):
        pass


def test_arguments_as_lmms_eval_passes_them(llava: Tiny):
    from lmms_eval.utils import simple_parse_args_string

    given: dict[str, Any] = simple_parse_args_string("layers=2-4-6,ratios=0.5-0.25-0.125,renumber=False")
    assert PyramidDrop(**given) == PyramidDrop(layers=(2, 4, 6), ratios=[0.5, 0.25, 0.125], renumber=False)
    single = PyramidDrop(**simple_parse_args_string("layers=3,ratios=0.5"))
    with single.attach(llava.model, llava.family) as session:
        llava.logits(llava.one())
    assert session.rows[0].visual_tokens == (16, 8)
