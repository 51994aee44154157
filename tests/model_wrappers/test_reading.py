"""Windows and batches: nothing is lost, images are told apart by their pixels, and memory stays bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from lmms_eval_stability.model_wrappers.families import Prompt
from lmms_eval_stability.model_wrappers.lru import ByteLRU
from lmms_eval_stability.model_wrappers.measurements import fingerprints
from lmms_eval_stability.model_wrappers.reading import Read, batches, in_order, windows
from lmms_eval_stability.model_wrappers.requests import Question
from lmms_eval_stability.model_wrappers.vision_reuse import Features
from tests.model_wrappers.documents import chat_requests, draw, give_documents
from tests.model_wrappers.test_wrapper import BASELINES, make, run


def requests(n: int) -> list[Question]:
    return [
        Question(i, f"q{i}", i, "drawn", "test", lambda doc: doc, {"max_new_tokens": 1 + (i == 3)}) for i in range(n)
    ]


def read(request: Question) -> Read[Question]:
    """Show each image to every fourth question, the text growing with the number; the fifth document is broken."""
    if request.index == 5:
        raise OSError("truncated file")
    images: tuple[Image.Image, ...] = (draw(request.index % 4, (20, 10)),)
    prompt = Prompt("word" * request.index, () if request.index == 7 else images)
    return Read(request, prompt, fingerprints(prompt), visual_tokens=10, text_tokens=request.index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [1, 1200, 10**9])
def test_windows_hold_every_request_once_and_in_order(workers: int, limit: int) -> None:
    found = list(windows(requests(20), read, workers, limit))
    assert [one.request.index for window in found for one in window] == list(range(20))
    if limit == 1:  # a window ends with an image, so 5 and 7, which have none, are with the next one
        assert len(found) == 18
    assert (len(found) == 1) == (limit == 10**9)
    for window in found:
        images = [image for one in window for image in one.prompt.images]
        assert len({id(image) for image in images}) == len({image.tobytes() for image in images})
    broken = [one for window in found for one in window if one.error]
    assert [(one.request.index, str(one.error)) for one in broken] == [(5, "truncated file")]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_a_reader_that_is_left_stops() -> None:
    reading = windows(requests(20), read, 2, 1)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def orders(**how: Any) -> list[list[int]]:
    (window,) = windows(requests(12), read, 0)
    return [[one.request.index for one in group] for group in in_order(window, **how)]


def test_questions_about_one_image_follow_each_other() -> None:
    groups = orders(by_image=True, batched=True)
    assert sorted(index for group in groups for index in group) == list(range(12))
    together = next(group for group in groups if 0 in group)
    # longest first, within an image and between images; documents 5 (broken) and 7 have none
    assert together == [11, 10, 6, 2, 9, 1, 8, 4, 0]
    assert [3] in groups  # it has other generation arguments
    assert sorted(next(group for group in groups if 7 in group)) == [5, 7]


def test_one_row_at_a_time_keeps_the_order_of_first_appearance() -> None:
    assert orders(by_image=True, batched=False) == [[0, 4, 8, 1, 9, 2, 6, 10, 5, 7, 11], [3]]
    assert orders(by_image=False, batched=False) == [[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11], [3]]


def test_without_grouping_batches_are_of_similar_length() -> None:
    (by_length, _) = orders(by_image=False, batched=True)
    assert by_length == [11, 10, 9, 8, 7, 6, 4, 2, 1, 0, 5]


def test_batches_follow_a_size_that_changes_and_leave_out_what_is_broken() -> None:
    (window,) = windows(requests(12), read, 0)
    sizes = [4]
    found = []
    for batch in batches(window, lambda: sizes[0]):
        found.append([one.request.index for one in batch])
        sizes[0] = 2
    assert found == [[0, 1, 2, 3], [5], [4, 6], [7, 8], [9, 10], [11]]


def features(n: int) -> Features:
    return Features(torch.zeros(n, 4))


def test_memory_forgets_what_was_not_used_for_longest() -> None:
    kept: ByteLRU[Features] = ByteLRU(3 * 16)
    made: list[str] = []

    def get(key: str, rows: int = 1) -> Features:
        return kept.get(key, lambda: made.append(key) or features(rows))  # type: ignore[func-returns-value]

    for key in "abcab":
        get(key)
    assert (made, kept.nbytes) == (["a", "b", "c"], 48)
    get("d")  # c goes
    get("a")
    get("c")  # b goes
    assert made == ["a", "b", "c", "d", "c"]
    assert get("huge", 100).tokens.shape == (100, 4)  # more than fits: returned, not kept, and nothing goes for it
    assert (len(kept), kept.nbytes) == (3, 48)
    kept.clear()
    assert (len(kept), kept.nbytes) == (0, 0)


def test_a_view_counts_as_what_it_keeps_alive() -> None:
    assert Features(torch.zeros(10, 4)[:1]).nbytes == 160


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_rows_of_a_batch_are_as_near_in_tokens_as_can_be(kind: str, tiny_folder: Callable[[str], str]) -> None:
    """Texts of equally many characters differ in tokens; padding makes attention slower."""
    docs = [
        {"id": i, "images": [draw(1, (56, 56))], "question": text}
        for i, text in enumerate(["dog dog dog dog", "zzzzzzzzzzzzzzz", "red red red red", "qqqqqqqqqqqqqqq"] * 2)
    ]
    model = make(BASELINES, kind, tiny_folder(kind), batch_size=4)
    real = [result.token_counts.input_tokens for result in run(model, docs)]
    give_documents(model, docs)
    window = [model._read(Question.read(i, request)) for i, request in enumerate(chat_requests(docs))]
    found = [[real[one.request.index] for one in batch] for batch in model._batches(window)]
    assert [len(set(batch)) for batch in found] == [1, 1]
    assert len(set(real)) == 2
