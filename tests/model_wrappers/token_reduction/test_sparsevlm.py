"""SparseVLM in real forward passes of the four families, against a plain implementation; and its exact counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction import SparseVLM
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.real_geometry import build_real_geometry
from tests.model_wrappers.token_reduction.sparsevlm_oracle import run as oracle
from tests.model_wrappers.token_reduction.test_inside_llm import extended, kept_columns

#: As for FastV, but logits of every token are compared, also of those merged from others.
CLOSE = {"atol": 5e-4, "rtol": 1e-4}

#: Leaves little of the tiny models' pictures.
FEW = SparseVLM(layers="1-3-5", tokens="400-200-60")


def keeps(method: SparseVLM, layers: tuple[int, ...], n: int) -> dict[int, int]:
    """Return how many tokens stay after each layer, from the number that the oracle cannot know."""
    found, now = {}, n
    for stage, layer in enumerate(layers):
        keep = method.keep_count(stage, n, now)
        found[layer] = keep
        now = keep + (int(0.3 * (now - keep)) + 1) // 10 + 1
    return found


def numbered(tiny: Tiny) -> bool:
    """Return whether positions are numbers, which are made contiguous; on Qwen they are a grid's and stay."""
    return not tiny.kind.startswith("qwen")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("method", "layers"),
    [(SparseVLM(), (1, 2, 4)), (FEW, (1, 3, 5)), (SparseVLM(layers="0-6", tokens="2-1", literal=True), (0, 6))],
)
def test_oracle(tiny: Tiny, kernel: str, method: SparseVLM, layers: tuple[int, ...]):
    inputs = tiny.inputs((QUESTION, [(84, 56), (56, 112)]))  # all images of a prompt count together
    last, n = inputs["input_ids"].shape[1] - 1, int(tiny.visual(inputs).sum())
    expected, counts = oracle(tiny, inputs, keeps(method, layers, n), last, numbered(tiny))
    tiny.model.set_attn_implementation(kernel)
    try:
        with method.attach(tiny.model, tiny.family) as session:
            logits = tiny.logits(inputs)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert kept_columns(tiny, logits) == [sorted(expected.columns.tolist())]
    torch.testing.assert_close(logits[0, expected.columns], expected.logits, **CLOSE)
    assert session.rows[0].layers == (0, *(layer + 1 for layer in layers))
    assert list(session.rows[0].visual_tokens) == counts


def test_several_clusters(llava: Tiny):
    """Many pictures, so that a stage merges into more than one token."""
    inputs = llava.inputs((QUESTION, [(56, 56)] * 6))
    method, last = SparseVLM(tokens="100-50-20"), inputs["input_ids"].shape[1] - 1
    expected, counts = oracle(llava, inputs, keeps(method, (1, 2, 4), 96), last, renumber=True)
    with method.attach(llava.model, llava.family) as session:
        logits = llava.logits(inputs)
    assert list(session.rows[0].visual_tokens) == counts == [96, 19, 9, 4]
    torch.testing.assert_close(logits[0, expected.columns], expected.logits, **CLOSE)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_decoding_continues_the_numbering_of_each_layer(tiny: Tiny, kernel: str):
    inputs = tiny.one()
    prompt, n = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    tiny.model.set_attn_implementation(kernel)
    try:
        with FEW.attach(tiny.model, tiny.family):
            out = tiny.generate_raw(inputs, new=4)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    full = extended(inputs, out.sequences[:, prompt:-1])
    expected, _ = oracle(tiny, full, keeps(FEW, (1, 3, 5), n), prompt - 1, numbered(tiny))
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(logits[0], expected.logits[len(expected.logits) - 4 + step], **CLOSE)


def test_merged_tokens_stand_between_picture_and_text(llava: Tiny):
    """What the layer behind a stage gets: prefix, kept tokens in order, merged ones, text, at contiguous positions."""
    inputs = llava.one()
    visual = llava.visual(inputs)[0].nonzero().squeeze(1)
    seen: dict[str, Any] = {}
    with SparseVLM(layers=1, tokens=216).attach(llava.model, llava.family) as session:
        hooks = [
            llava.layers[1].register_forward_hook(lambda _m, _a, out: seen.update(before=out)),
            llava.layers[2].register_forward_pre_hook(
                lambda _m, a, kw: seen.update(after=a[0], **kw), with_kwargs=True
            ),
        ]
        llava.logits(inputs)
        for hook in hooks:
            hook.remove()
    assert session.rows[0].visual_tokens == (16, 7)
    before, after = seen["before"][0], seen["after"][0]
    first, end = int(visual[0]), int(visual[-1]) + 1
    assert torch.equal(after[:first], before[:first])
    assert torch.equal(after[first + 7 :], before[end:])
    kept = [int((before[first:end] == token).all(dim=1).nonzero()[0]) for token in after[first : first + 6]]
    assert kept == sorted(kept)
    merged = after[first + 6]  # of int(.3 * 10) + 1 tokens
    assert not (before == merged).all(dim=1).any()
    cos, _ = llava.family.decoder(llava.model).rotary_emb(after[None], torch.arange(len(after))[None])
    assert torch.equal(seen["position_embeddings"][0], cos)


def test_rank_rule(tiny: Tiny):
    inputs = tiny.one()
    n = int(tiny.visual(inputs).sum())
    with SparseVLM(rank_rule=True, scale=2.0).attach(tiny.model, tiny.family) as session:
        one = tiny.generate_raw(inputs, new=3)
        rows = session.rows
        other = tiny.generate_raw(inputs, new=3, use_cache=False)
    assert session.rows == rows
    assert torch.equal(one.sequences, other.sequences)
    assert rows[0].layers == (0, 2, 3, 5, 6)
    assert rows[0].visual_tokens[0] == n
    assert list(rows[0].visual_tokens) == sorted(rows[0].visual_tokens, reverse=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return {kind: build_real_geometry(kind, tmp_path_factory.mktemp(kind)) for kind in ("llava", "llava_next")}


@pytest.mark.parametrize(
    ("kind", "size", "method", "counts"),
    [
        ("llava", (640, 480), SparseVLM(), (576, 309, 204, 113)),
        ("llava_next", (672, 672), SparseVLM(), (2928, 1568, 1033, 574)),
        ("llava_next", (672, 672), SparseVLM(literal=True), (2928, 379, 206, 113)),
    ],
)
def test_counts_of_the_real_models(
    real: dict[str, Tiny], kind: str, size: tuple[int, int], method: SparseVLM, counts: tuple[int, ...]
):
    tiny = real[kind]
    inputs = tiny.one(*size)
    text = inputs["input_ids"].shape[1] - counts[0]
    with method.attach(tiny.model, tiny.family) as session, torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    assert session.rows[0].layers == (0, 3, 7, 16)
    assert session.rows[0].visual_tokens == counts
    lengths = [layer.keys.shape[2] - text for layer in cache.layers]
    assert lengths == [counts[0]] * 3 + [counts[1]] * 4 + [counts[2]] * 9 + [counts[3]] * 16


def test_a_layer_that_the_model_does_not_have_is_refused(llava: Tiny):
    match, method = "cannot drop tokens before layer 8", SparseVLM(layers="2-4-7")
    with pytest.raises(InvalidParameterError, match=match), method.attach(llava.model, llava.family):
        pass


def test_arguments_as_lmms_eval_passes_them():
    from lmms_eval.utils import simple_parse_args_string

    given: dict[str, Any] = simple_parse_args_string("layers=2-6,tokens=300-200,literal=True")
    assert SparseVLM(**given) == SparseVLM(layers=(2, 6), tokens=[300, 200], literal=True)
    given = simple_parse_args_string("layers=2,tokens=300")
    assert SparseVLM(**given) == SparseVLM(layers=(2,), tokens=(300,))
    assert SparseVLM(**simple_parse_args_string("rank_rule=True,scale=10")).scale == 10
