"""Tiny models of the four families, built once per test run, and a short way to make inputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.model_wrappers.families import Family, family_for
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, TokenReducer
from tests.tiny_models import KINDS, build_tiny, picture

torch.set_num_threads(1)

QUESTION = "What color is the car on the left?"

#: A question and the (width, height) of its pictures.
Spec = tuple[str, Sequence[tuple[int, int]]]


@dataclass
class Tiny:
    """A loaded tiny model."""

    kind: str
    model: Any
    processor: Any
    family: Family

    def inputs(self, *specs: Spec) -> dict[str, Any]:
        """Encode one row per spec, padded on the left."""
        texts, images = [], []
        for question, sizes in specs:
            content: list[dict[str, str]] = [{"type": "image"} for _ in sizes]
            content.append({"type": "text", "text": question})
            texts.append(
                self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            )
            images += [picture(sum(map(ord, question)) + n, *size) for n, size in enumerate(sizes)]
        return dict(
            self.processor(images=images or None, text=texts, padding=True, padding_side="left", return_tensors="pt")
        )

    def one(self, width: int = 84, height: int = 56) -> dict[str, Any]:
        """Encode one prompt with one picture."""
        return self.inputs((QUESTION, [(width, height)]))

    def visual(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return which columns are visual tokens, (B, L) bool."""
        return torch.isin(inputs["input_ids"], torch.tensor(self.family.placeholder_ids(self.model.config)))

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        """Run a plain forward pass: (B, L, vocabulary)."""
        return self.model(**inputs, **kwargs).logits

    def generate_raw(self, inputs: dict[str, Any], new: int = 6, **kwargs: Any) -> Any:
        """Return ``generate``'s full output for ``new`` greedy tokens: sequences, logits per step, cache.

        Answers are not cut at end-of-sequence tokens, and hold no image placeholders: without a KV cache transformers
        itself takes those for images that are missing.
        """
        options = {
            "do_sample": False,
            "max_new_tokens": new,
            "min_new_tokens": new,
            "suppress_tokens": list(self.family.placeholder_ids(self.model.config)),
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        return self.model.generate(**inputs, **{**options, **kwargs})

    def generate(self, inputs: dict[str, Any], new: int = 6, **kwargs: Any) -> torch.Tensor:
        """Return the ``new`` tokens of ``generate_raw``: (B, new)."""
        return self.generate_raw(inputs, new, **kwargs).sequences[:, inputs["input_ids"].shape[1] :]

    @property
    def layers(self) -> Any:
        """The decoder layers."""
        return self.family.decoder(self.model).layers


def check_rows_against_single_prompts(
    tiny: Tiny, method: TokenReducer, specs: Sequence[Spec], close: dict[str, float], *, use_cache: bool
) -> tuple[RowTokens, ...]:
    """Assert that a batch answers and counts as its prompts do alone; return the batch's statistics."""
    batch = tiny.inputs(*specs)
    with method.attach(tiny.model, tiny.family) as session:
        together = tiny.generate_raw(batch, new=4, use_cache=use_cache)
        rows = session.rows
        for row, spec in enumerate(specs):
            alone = tiny.generate_raw(tiny.inputs(spec), new=4, use_cache=use_cache)
            assert session.rows == (rows[row],)
            assert together.sequences[row, -4:].tolist() == alone.sequences[0, -4:].tolist()
            for one, other in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(one[row], other[0], **close)
    return rows


def check_answers_without_cache(
    tiny: Tiny, method: TokenReducer, inputs: dict[str, Any], close: dict[str, float]
) -> None:
    """Assert that generating with and without a KV cache gives the same answers, statistics and logits."""
    with method.attach(tiny.model, tiny.family) as session:
        cached = tiny.generate_raw(inputs, new=5)
        rows = session.rows
        uncached = tiny.generate_raw(inputs, new=5, use_cache=False)
        assert session.rows == rows
        assert session.prefills == 2  # five full passes of one call count as one prefill
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.fixture(scope="session")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return {}


@pytest.fixture(scope="session")
def load(_loaded: dict[str, Tiny], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from a kind to its model; the model is shared by all tests."""

    def get(kind: str) -> Tiny:
        if kind not in _loaded:
            folder = build_tiny(kind, tmp_path_factory.mktemp(kind))
            model = AutoModelForImageTextToText.from_pretrained(folder).eval()
            _loaded[kind] = Tiny(kind, model, AutoProcessor.from_pretrained(folder), family_for(model.config))
        return _loaded[kind]

    return get


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest, load: Any) -> Tiny:
    """Each family in turn, with sdpa attention."""
    return load(request.param)


@pytest.fixture
def llava(load: Any) -> Tiny:
    """LLaVA-1.5, for what does not depend on the family."""
    return load("llava")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the combinations of the matrix that cannot be: what is refused has its own tests."""
    impossible = [item for item in items if _is_impossible(item)]
    if impossible:
        config.hook.pytest_deselected(items=impossible)
        items[:] = [item for item in items if item not in impossible]


def _is_impossible(item: pytest.Item) -> bool:
    """Say whether a test would downsample where the processor scales images, or decode by hand after it.

    With a mask and a cache the models need positions, which after downsampling are those of the smaller images.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "downsample" not in (parameters.get("method"), parameters.get("name")) or "test_before_llm" not in item.nodeid:
        return False
    kind = parameters.get("tiny", "llava" if "llava" in item.fixturenames else "")
    by_hand = item.name.startswith("test_decoding_by_hand") and parameters.get("mask") is True
    return kind.startswith("llava") or by_hand
