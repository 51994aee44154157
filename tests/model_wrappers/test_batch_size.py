"""Batch sizes: automatic, and smaller ones where rows do not fit into memory; never an empty answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers import errors, models
from lmms_eval_stability.model_wrappers.arguments import read_batch_size
from lmms_eval_stability.model_wrappers.batch_size import BatchSize, is_out_of_memory, rows_that_fit
from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import BASELINES, make, run, texts

pytestmark = pytest.mark.any_transformers

TinyFolder = Callable[[str], str]
#: What torch and what other libraries raise.
FULL = (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), RuntimeError("CUDA error: out of memory"))


def holds(model: Any, rows: int, monkeypatch: pytest.MonkeyPatch, error: Exception = FULL[0]) -> list[int]:
    """Make the model's memory hold at most ``rows`` rows; returns the list of sizes that are tried."""
    tried: list[int] = []
    generate = model.model.generate

    def limited(**kwargs: Any) -> Any:
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > rows:
            raise error
        return generate(**kwargs)

    monkeypatch.setattr(model.model, "generate", limited)
    return tried


@pytest.mark.parametrize("error", FULL, ids=["torch", "other"])
@pytest.mark.parametrize(("size", "workers"), [(8, 0), ("auto", 2)])
def test_rows_that_do_not_fit_are_answered_in_smaller_batches(
    error: Exception, size: Any, workers: int, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = [doc for doc in documents(30) if len(doc["images"]) == 1][:18]
    expected = texts(run(make(BASELINES, "llava", tiny_folder("llava")), docs))
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=size, workers=workers)
    tried = holds(model, 3, monkeypatch, error)
    results = run(model, docs)
    assert texts(results) == expected
    assert not any(result.token_counts.error for result in results)
    assert tried[:3] == [8, 4, 2]
    assert max(tried[3:]) == 2  # what was learnt is not forgotten
    facts = results[0].token_counts.run
    assert (facts["batch_size"], facts["batch_size_used"]) == (size, 2)


def test_a_document_that_does_not_fit_alone_is_named(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=4)
    holds(model, 0, monkeypatch)
    with pytest.raises(
        errors.DoesNotFitError, match=r"llava_baseline: task drawn, document \d .*memory of cpu even alone"
    ):
        run(model, documents(4))


def test_a_document_that_does_not_fit_is_recorded_as_failed(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=4, on_error="record")
    holds(model, 0, monkeypatch)
    results = run(model, documents(2))
    assert all("does not fit into the memory of cpu even alone" in r.token_counts.error for r in results)


def test_scored_answers_are_batched_smaller_too(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.model_wrappers.test_scoring import scores

    docs = documents(4)
    expected = scores(make(BASELINES, "llava", tiny_folder("llava")), docs)
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=8)
    forward = model.model.forward

    def limited(**kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 2:
            raise FULL[0]
        return forward(**kwargs)

    monkeypatch.setattr(model.model, "forward", limited)
    found = scores(model, docs)
    assert model.batch_size == 2
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-4)


def test_other_errors_are_not_taken_for_full_memory() -> None:
    assert all(is_out_of_memory(error) for error in FULL)
    assert not any(
        is_out_of_memory(error) for error in (MemoryError("x"), RuntimeError("shape"), ValueError("out of memory"))
    )


@pytest.mark.parametrize(("size", "most", "rows"), [("auto", None, 8), ("auto", "4", 4), ("3", None, 3), (5, None, 5)])
def test_sizes_are_read(size: Any, most: Any, rows: int, tiny_folder: TinyFolder) -> None:
    given = {"pretrained": tiny_folder("llava"), "device": "cpu", "batch_size": size, "max_batch_size": most}
    model = models.LlavaBaseline(**given)
    run(model, documents(2))
    assert model.batch_size == rows


@pytest.mark.parametrize(("size", "most"), [("auto", "none"), ("auto:2", None), (4, 8), ("auto", 0), (-1, None)])
def test_sizes_that_cannot_be_used_are_refused(size: Any, most: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="batch_size"):
        read_batch_size(size, most)


def test_the_size_for_a_gpu_follows_from_its_free_memory(tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava")).model
    sizes = [rows_that_fit(model, free, 600) for free in (0, 2**28, 2**30, 2**34)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert all(size & (size - 1) == 0 for size in sizes)
    assert 2 * sizes[1] < sizes[2]
    assert rows_that_fit(model, 2**30, 6000) < sizes[2]


def test_a_shrinking_size_ends_at_one() -> None:
    size = BatchSize("auto")
    size.shrink(5)
    assert size.rows == 2
    size.shrink(2)
    size.shrink(1)
    assert size.rows == 1
