"""``reuse=prefix`` for methods inside the language model: the layers before the first drop go on from a prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers import answering
from lmms_eval_stability.model_wrappers.token_reduction import lvpruning
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning import LVPruning
from lmms_eval_stability.model_wrappers.token_reduction.random_inside import RandomInside
from lmms_eval_stability.model_wrappers.token_reduction.sparsevlm import SparseVLM
from tests.model_wrappers.documents import draw
from tests.model_wrappers.test_reuse import INSIDE, KINDS, classes, questions
from tests.model_wrappers.test_wrapper import make, run, texts
from tests.model_wrappers.token_reduction import lvpruning_untrained

TinyFolder = Callable[[str], str]
STEPS = 4

#: Parameters by method: what is dropped, and how, differs most.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("fastv", {"k": 2, "r": 0.75}),
    ("fastv", {"k": 1, "r": 0.0}),
    ("pyramiddrop", {"layers": "1-2", "ratios": "0.5-0.25"}),
    ("pyramiddrop", {"layers": "2-3", "ratios": "1-0.3", "renumber": False}),
    ("sparsevlm", {"layers": "0-1", "tokens": "300-110"}),
    ("sparsevlm", {"layers": "1-2", "tokens": "5-2", "literal": True}),
    ("sparsevlm", {"layers": "1-2", "rank_rule": True, "scale": 0.6}),
    ("random_inside", {"layers": "1-2", "keep": "0.5-0.25"}),
    ("random_inside", {"layers": "2-3", "keep": 0.4, "spread": True}),
    ("lvpruning", {}),
    ("lvpruning", {"text": "question", "decide": "threshold", "cutoff": 0.4}),
]


def documents() -> list[dict[str, Any]]:
    """Return questions about images of different sizes, one about two images, and one after a text."""
    several = [draw(0, (48, 56)), draw(1, (88, 80))]
    return [*questions(), {"id": 99, "images": several, "question": "Is the red one on the left?"}]


class Watch:
    """Logits of every prompt by its tokens, and what every stage left of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}
        self.left: list[tuple[int, int, tuple[int, ...]]] = []
        self._steps: list[torch.Tensor] | None = None
        generate, watch = answering.generate, self

        def watched(model: Any, tokenizer: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            watch._steps = []
            hook = model.lm_head.register_forward_hook(lambda _m, _a, out: watch._steps.append(out[:, -1]))
            found = generate(model, tokenizer, inputs, *args, **kwargs)
            hook.remove()
            for row, (ids, real) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
                key = tuple(ids[real.bool()].tolist())
                assert key not in watch.logits
                watch.logits[key] = torch.stack([step[row] for step in watch._steps[: len(found[row].tokens)]])
            return found

        monkeypatch.setattr(answering, "generate", watched)
        for cls in (InsideLLM, SparseVLM, LVPruning, RandomInside):
            for name in {"reduce", "reduce_by_text"} & vars(cls).keys():
                self._watch(monkeypatch, cls, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, cls: type[InsideLLM], name: str) -> None:
        original = vars(cls)[name]

        def watched(method: Any, stage: int, entered: int, *args: Any) -> Any:
            found = original(method, stage, entered, *args)
            self.left.append((stage, entered, tuple(found.stays.tolist())))
            return found

        monkeypatch.setattr(cls, name, watched)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "given"), VARIANTS, ids=str)
def test_logits_and_kept_tokens_in_double_precision(
    kind: str, method: str, given: dict[str, Any], tiny_folder: TinyFolder
) -> None:
    docs, found = documents(), []
    for how in ({"reuse": "none"}, {"reuse": "prefix", "batch_size": 4}, {"reuse": "prefix"}):
        with pytest.MonkeyPatch.context() as patch:
            watch = Watch(patch)
            patch.setattr(lvpruning, "LVPruning", lvpruning_untrained.LVPruning)  # fits any base
            model = make(classes(method), kind, tiny_folder(kind), dtype="float64", **how, **given)
            for norm in {type(part) for part in model.model.modules() if type(part).__name__.endswith("RMSNorm")}:
                patch.setattr(norm, "forward", _norm_in_double_precision)
            found.append((watch, run(model, docs, {"max_new_tokens": STEPS})))
    whole, plain = found[0]
    for shared, results in found[1:]:
        assert whole.left or given.get("r") == 0
        assert sorted(shared.left) == sorted(whole.left)
        assert shared.logits.keys() == whole.logits.keys()
        for prompt, logits in whole.logits.items():
            assert (shared.logits[prompt] - logits).abs().max() <= 1e-9 * logits.abs().max()
        assert texts(results) == texts(plain)
        for a, b in zip(plain, results, strict=True):
            one, other = a.token_counts, b.token_counts
            assert (one.visual_tokens, one.visual_token_layers) == (other.visual_tokens, other.visual_token_layers)
            assert _flat(one.diagnostics) == pytest.approx(_flat(other.diagnostics))


def _norm_in_double_precision(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Compute what transformers' norms do, which round to single precision: the last bit of that would be a 1e-8."""
    return norm.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def _flat(diagnostics: dict[str, list[float | None]] | None) -> dict[str, float | None]:
    return {f"{name} {n}": v for name, values in (diagnostics or {}).items() for n, v in enumerate(values)}


@pytest.mark.parametrize("method", INSIDE)
def test_layers_before_the_first_drop_read_an_image_once(method: str, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents() if doc["images"]]
    model = make(classes(method), "llava", tiny_folder("llava"), reuse="prefix", batch_size=4)
    layers = model.family.decoder(model.model).layers
    first = model.method.first_drop(len(layers))
    shapes: list[tuple[int, int]] = []
    layers[first - 1].register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape[:2])))
    run(model, docs, {"max_new_tokens": 1})
    prefixes = [length for rows, length in shapes if rows == 1]
    assert len(prefixes) == 4  # three images, and two of them together
    assert [rows for rows, _ in shapes if rows > 1] == [4, 4]
    assert max(length for rows, length in shapes if rows > 1) < max(prefixes)  # the questions alone
    assert len(model.family.decoder(model.model).layers) == len(layers)


@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_attention_read_from_the_eager_kernel(kind: str, method: str, tiny_folder: TinyFolder) -> None:
    """There the tap reads rows of the weights, which are those of the question alone."""
    docs, eager = documents(), {"attn_implementation": "eager"}
    plain = run(make(classes(method), kind, tiny_folder(kind), reuse="none", **eager), docs)
    shared = run(make(classes(method), kind, tiny_folder(kind), reuse="prefix", batch_size=4, **eager), docs)
    assert texts(shared) == texts(plain)
    for one, other in zip(plain, shared, strict=True):
        assert one.token_counts.visual_tokens == other.token_counts.visual_tokens
        assert one.token_counts.answer_logprob == pytest.approx(other.token_counts.answer_logprob, rel=1e-4, abs=1e-4)
