"""The trace says which visual tokens a method really left, and costs nothing and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lmms_eval_stability.model_wrappers.token_reduction import (
    Downsample,
    FastV,
    HiRED,
    LoFi,
    PyramidDrop,
    Random,
    SparseVLM,
    TokenReducer,
    VisionZip,
)
from lmms_eval_stability.model_wrappers.token_reduction.trace import RowTrace
from lmms_eval_stability.model_wrappers.token_reduction.vision import encode_images
from tests.model_wrappers.token_reduction.conftest import QUESTION, Spec, Tiny
from tests.model_wrappers.token_reduction.fastv_oracle import run as fastv_oracle
from tests.model_wrappers.token_reduction.pyramiddrop_oracle import run as pyramiddrop_oracle
from tests.model_wrappers.token_reduction.test_batches import RAGGED
from tests.tiny_models import KINDS

METHODS: dict[str, TokenReducer] = {
    "fastv": FastV(k=2, r=0.6),
    "pyramiddrop": PyramidDrop(),
    "sparsevlm": SparseVLM(),
    "random": Random(tokens=200),
    "visionzip": VisionZip(dominant=150, contextual=90),
    "hired": HiRED(budget=0.3),
    "lofi": LoFi(rank=4),
    "downsample": Downsample(tokens=300),
}
TWO: Spec = (QUESTION, [(84, 56), (56, 140)])


CASES = [(kind, name) for name in METHODS for kind in KINDS if name != "downsample" or "qwen" in kind]


def traced(tiny: Tiny, method: TokenReducer, inputs: dict[str, Any]) -> tuple[RowTrace, ...]:
    with method.attach(tiny.model, tiny.family) as session:
        session.tracing = True
        tiny.logits(inputs)
    return session.traces


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_row_adds_up(load: Any, kind: str, name: str):
    tiny: Tiny = load(kind)
    with METHODS[name].attach(tiny.model, tiny.family) as session:
        session.tracing = True
        tiny.generate(tiny.inputs(*RAGGED))
    assert len(session.traces) == len(session.rows) == len(RAGGED)
    for row, trace in zip(session.rows, session.traces, strict=True):
        assert tuple(stage.layer for stage in trace) == row.layers
        assert tuple(stage.tokens for stage in trace) == row.visual_tokens
        assert trace[0].kept == tuple(range(row.visual_tokens[0]))
        left = set(trace[0].kept)
        for stage in trace:
            sources = [*stage.kept, *(source for group in stage.merged for source in group)]
            assert len(set(sources)) == len(sources)  # no token is in two places
            assert list(stage.kept) == sorted(stage.kept)
            assert all(list(group) == sorted(group) for group in stage.merged)
            assert set(sources) <= left
            left = set(sources)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_rows_of_a_batch_are_traced_like_single_prompts(load: Any, kind: str, name: str):
    tiny: Tiny = load(kind)
    together = traced(tiny, METHODS[name], tiny.inputs(*RAGGED, TWO))
    alone = [traced(tiny, METHODS[name], tiny.inputs(spec))[0] for spec in (*RAGGED, TWO)]
    assert list(together) == alone


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_tracing_is_off_unless_asked_for_and_changes_nothing(load: Any, kind: str, name: str):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs(*RAGGED)
    with METHODS[name].attach(tiny.model, tiny.family) as session:
        plain, rows = tiny.logits(inputs), session.rows
        assert session.traces == ()
        session.tracing = True
        assert torch.equal(tiny.logits(inputs), plain)
        assert session.rows == rows
        assert len(session.traces) == len(rows)
        session.tracing = False
        tiny.logits(inputs)
        assert session.traces == ()  # not those of another batch


def test_beams_count_once(llava: Tiny):
    for method in (FastV(k=2, r=0.6), VisionZip()):
        with method.attach(llava.model, llava.family) as session:
            session.tracing = True
            llava.generate_raw(llava.inputs(*RAGGED), num_beams=2)
        assert len(session.traces) == len(RAGGED)


def visual_numbers(tiny: Tiny, inputs: dict[str, Any], columns: Tensor) -> tuple[int, ...]:
    """Return which visual tokens of a single prompt are among ``columns``."""
    visual = tiny.visual(inputs)[0].nonzero().squeeze(1).tolist()
    left = set(columns.tolist())
    return tuple(number for number, column in enumerate(visual) if column in left)


def test_fastv_keeps_what_the_plain_loop_keeps(tiny: Tiny):
    inputs = tiny.inputs(TWO)
    n, last = int(tiny.visual(inputs).sum()), inputs["input_ids"].shape[1] - 1
    oracle = fastv_oracle(tiny, inputs, {2: round(n * 0.4)}, last)
    ((_, left),) = traced(tiny, FastV(k=2, r=0.6), inputs)
    assert left.layer == 2
    assert left.kept == visual_numbers(tiny, inputs, oracle.columns)
    assert left.merged == ()
    assert left.others == 0


def test_pyramiddrop_keeps_what_the_plain_loop_keeps_at_every_stage(llava: Tiny):
    inputs = llava.inputs(TWO)
    n, last = int(llava.visual(inputs).sum()), inputs["input_ids"].shape[1] - 1
    goals = {2: n // 2, 4: n // 4, 6: n // 8}
    (trace,) = traced(llava, PyramidDrop(), inputs)
    for stage in range(1, 4):
        some = dict(list(goals.items())[:stage])
        oracle = pyramiddrop_oracle(llava, inputs, some, last, renumber=True)
        assert trace[stage].kept == visual_numbers(llava, inputs, oracle.columns)


def layer_inputs(tiny: Tiny, layer: int, inputs: dict[str, Any]) -> Tensor:
    """Return the hidden states (S, d) that enter a decoder layer."""
    seen: list[Tensor] = []
    hook = tiny.layers[layer].register_forward_pre_hook(lambda _module, args: seen.append(args[0][0].clone()))
    try:
        tiny.logits(inputs)
    finally:
        hook.remove()
    return seen[0]


def test_sparsevlm_merged_tokens_are_the_mean_of_what_the_trace_names(tiny: Tiny):
    """What enters the layer is compared with the untouched model's tokens; the code that merges takes no part."""
    inputs = tiny.inputs((QUESTION, [(56, 56)] * 6))
    visual = tiny.visual(inputs)[0].nonzero().squeeze(1)
    full = layer_inputs(tiny, 2, inputs)[visual]
    with SparseVLM(layers="1", tokens="100").attach(tiny.model, tiny.family) as session:
        session.tracing = True
        short = layer_inputs(tiny, 2, inputs)
    ((_, left),) = session.traces
    assert len(left.merged) >= 2
    assert max(map(len, left.merged)) > 1
    means = [full[list(group)].mean(dim=0) for group in left.merged]
    # Merged tokens stand behind the last kept one, in the order of strength, and before the text that follows.
    end = len(short) - (inputs["input_ids"].shape[1] - 1 - int(visual[-1]))
    merged = short[end - len(means) : end]
    distance = torch.cdist(torch.stack(means), merged)
    assert sorted(distance.argmin(dim=1).tolist()) == list(range(len(means)))
    torch.testing.assert_close(distance.min(dim=1).values, torch.zeros(len(means)), atol=1e-3, rtol=0)


def test_tokens_merged_twice_name_the_original_ones(llava: Tiny):
    inputs = llava.inputs((QUESTION, [(56, 56)] * 6))
    (trace,) = traced(llava, SparseVLM(tokens="100-50-20"), inputs)
    singles = {frozenset(group) for stage in trace[1:] for group in stage.merged if len(group) > 1}
    first = {frozenset(group) for group in trace[1].merged}
    assert singles
    for group in trace[2].merged:  # of whole groups of the stage before, or of tokens that were kept there
        inside = [one for one in first if one & set(group)]
        assert all(one <= set(group) for one in inside)
        assert set(group) - set().union(*inside) <= set(trace[1].kept)


@pytest.mark.parametrize("kind", KINDS)
def test_visionzip_in_plain_loops(load: Any, kind: str):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(84, 140)]))
    (layout,) = tiny.family.image_layouts(tiny.model, inputs)
    method = VisionZip(dominant=5, contextual=2, literal=True)
    _, (view,) = encode_images(tiny.model, tiny.family, inputs, [layout], method.wanted(tiny.model, tiny.family))
    (attention,), keys = view.attention.values(), view.keys
    assert keys is not None
    cls = int(tiny.family.has_cls)
    token = {position: number for number, position in enumerate(layout.source.tolist())}
    kept: list[int] = []
    merged: list[list[int]] = []
    others = 0
    for p in range(layout.partitions):
        scores = attention[p].sum(dim=0).tolist()
        best = sorted(range(cls, len(scores)), key=lambda j: -scores[j])[: 5 - cls]
        rest = [j for j in range(cls, len(scores)) if j not in best]
        targets = rest[:: len(rest) // 2][:2]
        groups = {target: [target] for target in targets}
        for j in rest:
            if j not in targets:
                alike = [float(cosine_similarity(keys[p, j], keys[p, target], dim=0)) for target in targets]
                groups[targets[alike.index(max(alike))]].append(j)
        places = {j: token.get(p * layout.positions + j - cls) for j in range(cls, len(scores))}
        kept += [place for j in best if (place := places[j]) is not None]
        others += cls + sum(places[j] is None for j in best)
        merged += [sorted(place for j in group if (place := places[j]) is not None) for group in groups.values()]
    ((_, left),) = traced(tiny, method, inputs)
    assert left.kept == tuple(sorted(kept))
    assert [list(group) for group in left.merged] == merged
    assert left.others == others
    if kind == "llava_next":
        assert others > layout.partitions  # this picture has padding that is kept
    if kind == "llava":
        assert others == 1


def test_kept_tokens_of_methods_that_only_choose(tiny: Tiny):
    """The second image of a prompt is numbered on from the first."""
    inputs = tiny.inputs(TWO)
    layouts = tiny.family.image_layouts(tiny.model, inputs)
    for method in (Random(tokens=200), LoFi(rank=4), HiRED(budget=0.3)):
        wanted = method.wanted(tiny.model, tiny.family)
        _, views = encode_images(tiny.model, tiny.family, inputs, layouts, wanted)
        parts = [method.compress(view) for view in views]
        expected = parts[0].kept.tolist() + [layouts[0].tokens + index for index in parts[1].kept.tolist()]
        ((_, left),) = traced(tiny, method, inputs)
        assert list(left.kept) == expected
    pick = Random(tokens=200)
    by_hand = [
        pick.select(layout.tokens, round(layout.tokens * 200 / 576), pixels).tolist()
        for layout, pixels in zip(layouts, tiny.family.image_pixels(inputs, layouts), strict=True)
    ]
    ((_, left),) = traced(tiny, pick, inputs)
    assert list(left.kept) == by_hand[0] + [layouts[0].tokens + index for index in by_hand[1]]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_smaller_images_have_tokens_of_their_own(load: Any, kind: str):
    tiny: Tiny = load(kind)
    ((first, left),) = traced(tiny, Downsample(tokens=300), tiny.inputs(TWO))
    assert first.others == 0
    assert left.kept == left.merged == ()
    assert 0 < left.others < first.tokens


def test_keeping_everything_is_traced_too(tiny: Tiny):
    for method in (FastV(r=0), Random(tokens=576)):
        ((first, left),) = traced(tiny, method, tiny.one())
        assert left.kept == first.kept != ()
