"""The invariants of token reduction: one matrix over methods x families x batches x caches x kernels.

Every method runs on every family, alone and in a left-padded batch whose rows keep different numbers of tokens (one
image, none, two, another size), with and without a KV cache, under sdpa and eager attention; tiny random models whose
weights are scaled so that answers depend on picture and question, fp32. `CELLS` is that product; tests marked * run in
every cell, the others over the axes that matter to them.

     invariant                                    test
 1   off is off: logits and ids bit-equal         test_off_is_bit_equal *, test_shortening_to_everything
 2   kept tokens and logits are those of a        test_answers_are_those_of_a_plain_recomputation *; what is chosen:
     plain implementation                         test_oracle (inside the model), test_visionzip, _hired, _lofi, _random
 3   answers with and without a cache agree       the same *: both equal the one recomputation (the query is pinned);
     (FastV's official code ranks anew instead)   test_ranking_anew_with_every_token_is_another_method
 4   a decoding step on the pruned cache equals   the same *, in every step
     a full recomputation
 5   a padded batch equals single prompts         the same *; other padding side: test_padding_side_does_not_matter
 6   a layer's cache holds what entered it        the same *
 7   golden vectors; permuted scores permute      test_golden; test_scale_and_order_of_scores
     the choice, scaled scores leave it
 8   nothing is left behind, by an exception      test_nothing_is_left_behind *
     neither; text alone is untouched
 9   token counts and cost of the real models     test_real_counts, test_counts_of_* of every method;
                                                  tests/study/test_cost
10   half precision keeps nearly the same         test_half_precision_keeps_nearly_the_same
11   layers before the first drop on a prefix     tests/model_wrappers/test_reuse_inside: logits in float64, and what
     (reuse=prefix) change nothing                every stage leaves

Beside them: parameters out of range (test_bad_* of every method), layers that the model does not have and budgets that
no image has (test_what_does_not_fit_the_model_is_refused), layers given for another depth (test_real_counts), flash
kernels (test_flash_kernels), videos (test_videos_are_refused); what holds for all methods inside the model or before it
alone: test_inside_llm_matrix, test_before_llm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from lmms_eval_stability.model_wrappers import registry
from lmms_eval_stability.model_wrappers.token_reduction import (
    Downsample,
    FastV,
    HiRED,
    LoFi,
    PyramidDrop,
    Random,
    RandomInside,
    SparseVLM,
    TokenReducer,
    VisionZip,
)
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import Compressed
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView
from tests.model_wrappers.token_reduction.conftest import Spec, Tiny
from tests.model_wrappers.token_reduction.lvpruning_untrained import LVPruning
from tests.model_wrappers.token_reduction.matrix_oracles import expect
from tests.model_wrappers.token_reduction.test_attach import fail, traces
from tests.model_wrappers.token_reduction.test_attention_tap import StubFlash
from tests.model_wrappers.token_reduction.test_batches import RAGGED
from tests.model_wrappers.token_reduction.test_inside_llm import extended, kept_columns
from tests.tiny_models import KINDS

#: fp32 on CPU, logits of size about 10: kernels and orders of summation differ by a few 1e-5.
CLOSE = {"atol": 5e-4, "rtol": 1e-4}

#: Name -> parameters that drop tokens, parameters that must drop none.
METHODS: dict[str, tuple[TokenReducer, TokenReducer]] = {
    "fastv": (FastV(k=2, r=0.7), FastV(k=2, r=0)),
    "pyramiddrop": (PyramidDrop(), PyramidDrop(ratios="1-1-1")),
    "pyramiddrop_original_positions": (PyramidDrop(renumber=False), PyramidDrop(ratios="1-1-1", renumber=False)),
    "sparsevlm": (SparseVLM(), SparseVLM(tokens="576-576-576")),
    "lvpruning": (LVPruning(), LVPruning(keep=1)),
    "visionzip": (VisionZip(), VisionZip(dominant=500, contextual=76)),
    "hired": (HiRED(budget=0.3), HiRED(budget=1)),
    "lofi": (LoFi(rank=4), LoFi(tokens=576, rank=4)),
    "random": (Random(tokens=200), Random(tokens=576)),
    "random_inside": (RandomInside(), RandomInside(keep=1)),
    "random_inside_spread": (
        RandomInside(layers="2-5", keep="0.6-0.3", spread=True),
        RandomInside(keep=1, spread=True),
    ),
    "downsample": (Downsample(), Downsample(tokens=576)),
}
BATCHES: dict[str, tuple[Spec, ...]] = {"one": RAGGED[:1], "padded": RAGGED}
#: Models that scale images to sizes of their own refuse to downsample them: test_downsample.py.
PAIRS = [(name, kind) for name in METHODS for kind in KINDS if name != "downsample" or "qwen" in kind]
CELLS = [(*pair, *rest) for pair, *rest in product(PAIRS, BATCHES, (True, False), ("sdpa", "eager"))]
#: With the oldest transformers one kernel with a cache and the other without.
REPEATED = {(True, "sdpa"), (False, "eager")}


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    tiny: Tiny
    on: TokenReducer
    off: TokenReducer
    specs: tuple[Spec, ...]
    use_cache: bool
    kernel: str

    @contextmanager
    def running(self) -> Iterator[dict[str, Any]]:
        """Switch the model to the cell's kernel and hand out the batch."""
        with attention(self.tiny, self.kernel):
            yield self.tiny.inputs(*self.specs)

    def generate(self, inputs: dict[str, Any], new: int = 3) -> Any:
        return self.tiny.generate_raw(inputs, new=new, use_cache=self.use_cache)

    def plain(self, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Logits and answers without a method, which are the same for all: computed once."""
        key = self.tiny.kind, str(self.specs), self.use_cache, self.kernel
        if key not in _PLAIN:
            _PLAIN[key] = self.tiny.logits(inputs), self.generate(inputs)
        return _PLAIN[key]


_PLAIN: dict[Any, tuple[Tensor, Any]] = {}


@contextmanager
def attention(tiny: Tiny, kernel: str) -> Iterator[None]:
    tiny.model.set_attn_implementation(kernel)
    try:
        yield
    finally:
        tiny.model.set_attn_implementation("sdpa")


@pytest.fixture
def cell(request: pytest.FixtureRequest, load: Any) -> Cell:
    name, kind, batch, use_cache, kernel = request.param
    return Cell(load(kind), *METHODS[name], BATCHES[batch], use_cache, kernel)


in_every_cell = pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=() if cell[3:] in REPEATED else pytest.mark.any_transformers) for cell in CELLS],
    indirect=True,
    ids=lambda cell: "-".join(["cache" if part is True else "no_cache" if part is False else part for part in cell]),
)


def test_the_matrix_is_whole():
    assert len(CELLS) == (len(METHODS) * len(KINDS) - 2) * len(BATCHES) * 2 * 2
    registered = {name for name, entry in registry.METHODS.items() if entry.kind == "token reduction"}
    assert {type(on).__name__ for on, _ in METHODS.values()} == {
        registry.METHODS[name].path.partition(":")[2] for name in registered
    }


@in_every_cell
def test_off_is_bit_equal(cell: Cell):
    with cell.running() as inputs:
        logits, plain = cell.plain(inputs)
        with cell.off.attach(cell.tiny.model, cell.tiny.family) as session:
            assert torch.equal(cell.tiny.logits(inputs), logits)
            out = cell.generate(inputs)
    assert torch.equal(out.sequences, plain.sequences)
    assert all(map(torch.equal, out.logits, plain.logits))
    assert [row.visual_tokens[0] for row in session.rows] == cell.tiny.visual(inputs).sum(dim=1).tolist()
    assert not any(row.dropped for row in session.rows)
    session.require_pruned(expect_images=True)


@in_every_cell
def test_answers_are_those_of_a_plain_recomputation(cell: Cell):
    tiny, steps = cell.tiny, 3
    with cell.running() as inputs, cell.on.attach(tiny.model, tiny.family) as session:
        out = cell.generate(inputs, new=steps)
    answers = out.sequences[:, inputs["input_ids"].shape[1] : -1]  # the last token was not read any more
    longest = torch.zeros(len(tiny.layers), dtype=torch.long)
    for row, spec in enumerate(cell.specs):
        alone = tiny.inputs(spec)
        expected = expect(tiny, cell.on, alone, answers[row : row + 1])
        counts = session.rows[row].visual_tokens
        assert counts == expected.visual_tokens
        for logits, other in zip(out.logits, expected.logits[-steps:], strict=True):
            torch.testing.assert_close(logits[row], other, **CLOSE)
        text = alone["input_ids"].shape[1] - counts[0]
        borders = pairwise((*session.rows[row].layers, len(tiny.layers)))
        lengths = [n for n, (start, end) in zip(counts, borders, strict=True) for _ in range(start, end)]
        longest = longest.maximum(torch.tensor(lengths) + text + steps - 1)
    assert any(row.dropped for row in session.rows)
    if cell.use_cache:
        assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == longest.tolist()


@in_every_cell
def test_nothing_is_left_behind(cell: Cell, monkeypatch: pytest.MonkeyPatch):
    tiny = cell.tiny
    text = tiny.inputs(("What color is the car?", []), ("Yes?", []))
    with cell.running() as inputs:
        (logits, _), plain, before = cell.plain(inputs), cell.generate(text), traces(tiny)
        with cell.on.attach(tiny.model, tiny.family) as session:
            assert traces(tiny) != before
            assert torch.equal(cell.generate(text).sequences, plain.sequences)
            assert session.prefills_with_images == 0
            assert not torch.equal(tiny.logits(inputs)[:, -1], logits[:, -1])
        assert traces(tiny) == before
        assert torch.equal(tiny.logits(inputs), logits)
        with cell.on.attach(tiny.model, tiny.family), monkeypatch.context() as patch:
            patch.setattr(tiny.layers[6].mlp, "forward", fail)
            with pytest.raises(RuntimeError, match="boom"):
                cell.generate(inputs)
        assert traces(tiny) == before
        assert torch.equal(tiny.logits(inputs), logits)


def test_ranking_anew_with_every_token_is_another_method(tiny: Tiny):
    """What FastV's official code does without a cache: the newest token is the query of each step."""
    method, inputs = METHODS["fastv"][0], tiny.one()
    with method.attach(tiny.model, tiny.family) as session:
        answer = tiny.generate_raw(inputs, new=6).sequences[:, -6:]
        anew = kept_columns(tiny, tiny.logits(extended(inputs, answer)))[0]
        with session.pin_query([inputs["input_ids"].shape[1] - 1]):
            pinned = kept_columns(tiny, tiny.logits(extended(inputs, answer)))[0]
    assert len(anew) == len(pinned)
    assert anew != pinned
    page = (Path(__file__).parents[3] / "docs" / "methods" / "fastv.md").read_text(encoding="utf-8")
    assert "| without a KV cache | - | selection repeated with each new token as the query |" in page


class Everything(Random):
    """Takes the way of a method that shortens, and keeps every token."""

    def compress(self, image: ImageView) -> Compressed:
        return Compressed(image.tokens, torch.arange(image.layout.tokens))


@pytest.mark.parametrize("use_cache", [True, False])
def test_shortening_to_everything(tiny: Tiny, use_cache: bool):
    inputs = tiny.inputs(*RAGGED)
    plain = tiny.generate_raw(inputs, new=3, use_cache=use_cache)
    with Everything().attach(tiny.model, tiny.family):
        out = tiny.generate_raw(inputs, new=3, use_cache=use_cache)
    assert torch.equal(out.sequences, plain.sequences)
    for one, other in zip(out.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def choose(name: str, scores: Tensor, keep: int) -> list[int]:
    """Return what a method keeps by the given scores (N,), one head."""
    method, attention = METHODS[name][0], scores[None, None]
    if isinstance(method, VisionZip):  # CLS comes first, and always stays
        kept = method.select(torch.cat([scores.new_ones(1, 1), attention[0]], dim=1), keep + 1)[1:] - 1
    elif isinstance(method, HiRED):
        kept = method.select(scores, keep).nonzero().squeeze(1)
    elif isinstance(method, LoFi):
        kept = method.select(scores, keep)
    else:
        assert isinstance(method, FastV | PyramidDrop | SparseVLM)
        kept = method.select(method.score(attention), keep)
    return kept.tolist()


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm", "visionzip", "hired", "lofi"])
def test_scale_and_order_of_scores(name: str):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, generator=generator)
    order = torch.randperm(50, generator=generator)
    kept = choose(name, scores, 20)
    assert kept == sorted(scores.topk(20).indices.tolist())
    assert choose(name, scores * 7.5, 20) == kept
    assert sorted(order[choose(name, scores[order], 20)].tolist()) == kept


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_nearly_the_same(load: Any, name: str, kind: str, dtype: torch.dtype):
    tiny: Tiny = load(kind)
    inputs, method = tiny.inputs(*RAGGED), METHODS[name][0]
    with method.attach(tiny.model, tiny.family) as exact:
        exact.tracing = True
        tiny.logits(inputs)
    model, half = copy.deepcopy(tiny.model).to(dtype), dict(inputs, pixel_values=inputs["pixel_values"].to(dtype))
    with method.attach(model, tiny.family) as session, torch.no_grad():
        session.tracing = True
        logits = model(**half).logits
        model.generate(**half, max_new_tokens=2, do_sample=False)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert session.rows == exact.rows
    if isinstance(method, Random | RandomInside):  # they draw by the bytes of the pixels, others in another dtype
        return
    # rounding swaps tokens of nearly equal rank: what is kept is compared by its overlap, never exactly
    same = total = 0
    for row, other in zip(session.traces, exact.traces, strict=True):
        for one, two in zip(row[1:], other[1:], strict=True):
            same += len(set(one.kept) & set(two.kept))
            total += len(two.kept)
    assert same >= 0.8 * total


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_flash_kernels(load: Any, name: str, kind: str):
    """A kernel with flash attention's calling convention: 2D masks as long as each layer's keys, nothing else."""
    tiny: Tiny = load(kind)
    kernel, method, inputs = StubFlash(), METHODS[name][0], tiny.inputs(*RAGGED)
    AttentionInterface.register("stub_flash", kernel)
    AttentionMaskInterface.register("stub_flash", flash_attention_mask)
    with method.attach(tiny.model, tiny.family) as session:
        expected = tiny.generate_raw(inputs, new=3)
        rows = session.rows
    config = tiny.family.decoder(tiny.model).config
    before, config._attn_implementation = config._attn_implementation, "stub_flash"
    try:
        with method.attach(tiny.model, tiny.family) as session:
            out = tiny.generate_raw(inputs, new=3)
    finally:
        config._attn_implementation = before
    assert session.rows == rows
    assert torch.equal(out.sequences, expected.sequences)
    for one, other in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert kernel.names == ["stub_flash"] * 3 * len(tiny.layers)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (FastV(k=8), "has 8 layers"),
        (PyramidDrop(layers="8-16-24"), "has 8 layers"),
        (PyramidDrop(layers="6-4-2"), "must ascend"),
        (RandomInside(layers="8", keep=0.5), "has 8 layers"),
        (RandomInside(layers="4-2", keep=0.5), "must ascend"),
        (SparseVLM(layers="2-6-15"), "has 8 layers"),
        (VisionZip(dominant=20, contextual=1, literal=True), "21 tokens is more than the 16"),
        (LoFi(tokens=17, literal=True, rank=4), "17 tokens is more than the 16"),
        (Random(tokens=17, literal=True), "17 tokens is more than the 16"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused(llava: Tiny, method: TokenReducer, match: str):
    before = traces(llava)
    with pytest.raises(InvalidParameterError, match=match), method.attach(llava.model, llava.family):
        pass
    assert traces(llava) == before


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("name", METHODS)
def test_videos_are_refused(load: Any, name: str, kind: str):
    tiny: Tiny = load(kind)
    inputs, pixels = tiny.one(), torch.zeros(16, 1176)
    grid = torch.tensor([[1, 4, 4]])
    with METHODS[name][0].attach(tiny.model, tiny.family), torch.no_grad():
        for call in (tiny.model, tiny.model.generate):
            with pytest.raises(UnsupportedCallError, match="video"):
                call(**inputs, pixel_values_videos=pixels, video_grid_thw=grid)
