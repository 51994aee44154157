"""Inputs made ahead: same order, same answers, errors where they belong, and nothing left running."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.model_wrappers.errors import AnswerError, InvalidArgumentError
from lmms_eval_stability.model_wrappers.models import LlavaFastv, Qwen25VlBaseline
from lmms_eval_stability.model_wrappers.preparation import Ahead
from tests.model_wrappers.documents import SPLIT, TASK, chat_requests, documents

pytestmark = pytest.mark.any_transformers


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prepare")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept_whatever_takes_long(workers: int) -> None:
    def prepare(n: int) -> int:
        time.sleep(0.02 * (n % 3 == 0))
        return n * n

    got = [(n, result()) for n, result in Ahead(prepare, workers)(range(20))]
    assert got == [(n, n * n) for n in range(20)]
    assert not names()


def test_work_is_done_ahead_but_not_far_ahead() -> None:
    started: list[int] = []
    items = Ahead(lambda n: started.append(n) or n, workers=2)(range(100))  # type: ignore[func-returns-value]
    next(items)
    time.sleep(0.2)
    assert 2 <= len(started) <= 5
    items.close()  # type: ignore[attr-defined]
    assert not names()


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    def prepare(n: int) -> int:
        if n == 3:
            raise ValueError("cannot read 3")
        return n

    seen = []
    for n, result in Ahead(prepare, 2)(range(6)):
        if n == 3:
            with pytest.raises(ValueError, match="cannot read 3"):
                result()
        else:
            seen.append(result())
    assert seen == [0, 1, 2, 4, 5]


def answers(model: Any, docs: list[dict[str, Any]]) -> list[Any]:
    model.task_dict = {TASK: {SPLIT: docs}}
    results = model.generate_until(chat_requests(docs, {"max_new_tokens": 4}))
    return [(r.text, r.token_counts.input_fingerprint, r.token_counts.visual_tokens) for r in results]


@pytest.mark.parametrize(("kind", "model_class"), [("llava", LlavaFastv), ("qwen2_5_vl", Qwen25VlBaseline)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_workers(tiny_folder: Any, kind: str, model_class: Any, batch_size: int) -> None:
    folder: Path = tiny_folder(kind)
    docs = documents(14)
    alone, ahead = (
        answers(model_class(str(folder), device="cpu", batch_size=batch_size, workers=workers), docs)
        for workers in (0, 3)
    )
    assert alone == ahead
    assert not names()


def test_a_document_that_cannot_be_read_is_named(tiny_folder: Any) -> None:
    docs = documents(9)
    docs[5]["images"] = ["no image"]
    model = LlavaFastv(str(tiny_folder("llava")), device="cpu", batch_size=2, workers=2)
    with pytest.raises(AnswerError, match="document 5"):
        answers(model, docs)
    assert not names()


@pytest.mark.parametrize("workers", [-1, 1.5, "two", True])
def test_the_number_of_workers_is_checked(tiny_folder: Any, workers: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="workers="):
        LlavaFastv(str(tiny_folder("llava")), device="cpu", workers=workers)
