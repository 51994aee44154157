"""Our baselines answer exactly what lmms-eval's own models answer on the same weights, at batch size 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lmms_eval.models import get_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.model_wrappers.models import LlavaBaseline, Qwen2VlBaseline, Qwen25VlBaseline
from tests.model_wrappers.documents import (
    chat_requests,
    doc_to_messages,
    documents,
    give_documents,
    jpeg,
    simple_requests,
)
from tests.model_wrappers.test_scoring import score_requests, scores

PIXELS = {"min_pixels": 3136, "max_pixels": 12544}
GENERATION = {"max_new_tokens": 6}
TinyFolder = Callable[[str], str]


def answers(
    model: Any, docs: Sequence[dict[str, Any]], requests: Any, gen_kwargs: dict[str, Any] | None = None
) -> list[str]:
    give_documents(model, docs)
    results = model.generate_until(requests(docs, GENERATION if gen_kwargs is None else gen_kwargs))
    return [result if isinstance(result, str) else result.text for result in results]


class InputSpy:
    """Records the token ids and pixels that reach ``generate``."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        generate = model.generate

        def spy(**kwargs: Any) -> Any:
            self.calls.append(kwargs)
            return generate(**kwargs)

        monkeypatch.setattr(model, "generate", spy)


def assert_same_inputs(theirs: InputSpy, ours: InputSpy) -> None:
    assert len(theirs.calls) == len(ours.calls) > 0
    for a, b in zip(theirs.calls, ours.calls, strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])
        pixels = a.get("pixel_values")
        assert (pixels is None) == (b.get("pixel_values") is None)
        if pixels is not None:
            assert torch.equal(pixels.to(b["pixel_values"].dtype), b["pixel_values"])


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_llava_with_images_equals_chat_llava_hf(
    kind: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = [doc for doc in documents(40) if doc["images"]]
    assert len(docs) >= 30
    assert any(len(doc["images"]) == 2 for doc in docs)
    theirs = get_model("llava_hf")(pretrained=tiny_folder(kind), device="cpu", device_map="cpu")
    ours = LlavaBaseline(pretrained=tiny_folder(kind), device="cpu")
    their_inputs, our_inputs = InputSpy(theirs.model, monkeypatch), InputSpy(ours.model, monkeypatch)
    expected = answers(theirs, docs, chat_requests)
    assert answers(ours, docs, chat_requests) == expected
    assert_same_inputs(their_inputs, our_inputs)
    assert len(set(expected)) > 20  # the models really look at their documents


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_llava_without_image_equals_plain_generate(kind: str, tiny_folder: TinyFolder) -> None:
    """lmms-eval's llava_hf stops at a document without an image; ours answers what transformers answers."""
    docs = [doc for doc in documents(270) if not doc["images"]]
    assert len(docs) >= 30
    theirs = get_model("llava_hf")(pretrained=tiny_folder(kind), device="cpu", device_map="cpu")
    with pytest.raises((IndexError, ValueError)):
        answers(theirs, docs[:1], chat_requests)

    processor = AutoProcessor.from_pretrained(tiny_folder(kind))
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder(kind))
    expected = []
    for doc in docs:
        text = processor.apply_chat_template(doc_to_messages(doc), tokenize=False, add_generation_prompt=True)
        inputs = processor(text=text, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, **GENERATION)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(ids, skip_special_tokens=True))
    assert answers(LlavaBaseline(pretrained=tiny_folder(kind), device="cpu"), docs, chat_requests) == expected


def test_qwen2_5_vl_equals_chat_qwen2_5_vl(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = documents(36)
    assert {len(doc["images"]) for doc in docs} == {0, 1, 2}
    theirs = get_model("qwen2_5_vl")(pretrained=tiny_folder("qwen2_5_vl"), device="cpu", device_map="cpu", **PIXELS)
    ours = Qwen25VlBaseline(pretrained=tiny_folder("qwen2_5_vl"), device="cpu", dtype="bfloat16", **PIXELS)
    their_inputs, our_inputs = InputSpy(theirs.model, monkeypatch), InputSpy(ours.model, monkeypatch)
    expected = answers(theirs, docs, chat_requests)
    by_question = sorted(range(len(docs)), key=lambda i: docs[i]["question"])  # theirs answers in this order
    got = answers(ours, [docs[i] for i in by_question], chat_requests)
    assert got == [expected[i] for i in by_question]
    assert_same_inputs(their_inputs, our_inputs)
    assert len(set(expected)) > 20


def test_qwen2_vl_equals_simple_qwen2_vl_on_the_images_that_it_sees(tiny_folder: TinyFolder) -> None:
    """lmms-eval's qwen2_vl re-encodes images as JPEG; given those images, ours reads and answers the same."""
    docs = documents(36)
    theirs = get_model("qwen2_vl")(pretrained=tiny_folder("qwen2_vl"), device="cpu", device_map="cpu", **PIXELS)
    ours = Qwen2VlBaseline(pretrained=tiny_folder("qwen2_vl"), device="cpu", **PIXELS)
    expected = answers(theirs, docs, simple_requests)
    seen = [{**doc, "images": [jpeg(image) for image in doc["images"]]} for doc in docs]
    assert answers(ours, seen, chat_requests) == expected
    assert len(set(expected)) > 20
    with_images = [i for i, doc in enumerate(docs) if doc["images"]]
    original = answers(ours, docs, chat_requests)
    assert any(original[i] != expected[i] for i in with_images)  # re-encoding does change answers


def test_qwen2_vl_cuts_answers_at_until_as_lmms_eval_does(tiny_folder: TinyFolder) -> None:
    docs = [{**doc, "images": []} for doc in documents(30)]
    theirs = get_model("qwen2_vl")(pretrained=tiny_folder("qwen2_vl"), device="cpu", device_map="cpu", **PIXELS)
    ours = Qwen2VlBaseline(pretrained=tiny_folder("qwen2_vl"), device="cpu", **PIXELS)
    gen_kwargs = {"max_new_tokens": 12, "until": ["e", "i"]}
    expected = answers(theirs, docs, simple_requests, gen_kwargs)
    assert answers(ours, docs, chat_requests, gen_kwargs) == expected
    assert expected != answers(ours, docs, chat_requests, {"max_new_tokens": 12})


@pytest.mark.parametrize(
    ("cls", "kind", "expected"),
    [(LlavaBaseline, "llava", 1024), (Qwen2VlBaseline, "qwen2_vl", 128), (Qwen25VlBaseline, "qwen2_5_vl", 128)],
)
def test_default_answer_length_is_lmms_evals(
    cls: Any, kind: str, expected: int, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cls(pretrained=tiny_folder(kind), device="cpu")
    seen: list[int] = []

    def stop_early(**kwargs: Any) -> Any:
        seen.append(kwargs["max_new_tokens"])
        raise RuntimeError("only the arguments matter here")

    monkeypatch.setattr(model.model, "generate", stop_early)
    with pytest.raises(RuntimeError, match="document 0"):
        answers(model, documents(1), chat_requests, {})
    assert seen == [expected]


#: What the tiny LLaVA's template makes of one image and one question, with nothing behind an answer.
_AS_OURS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


class PromptWithImages:
    """llava_hf's processor, given the images also where llava_hf counts the tokens of the prompt alone.

    It counts without them, which transformers 5 refuses and older releases answered with too small a number.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._images: Any = None

    def __call__(self, *, images: Any = None, **kwargs: Any) -> Any:
        self._images = images or self._images
        return self._processor(images=self._images, **kwargs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_equal_llava_hfs(dtype: str, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(16) if len(doc["images"]) == 1 and "<image>" not in doc["question"]]
    assert len(docs) >= 8
    theirs = get_model("llava_hf")(
        pretrained=tiny_folder("llava"), device="cpu", device_map="cpu", dtype=dtype, chat_template=_AS_OURS
    )
    theirs._image_processor = PromptWithImages(theirs._image_processor)
    ours = LlavaBaseline(pretrained=tiny_folder("llava"), device="cpu", dtype=dtype)
    give_documents(theirs, docs)
    expected = theirs.loglikelihood(score_requests(docs, show=lambda doc: doc["images"]))
    got = scores(ours, docs)
    assert [result.loss for result in got] == pytest.approx([loss for loss, _ in expected], rel=1e-5)
    assert {result.token_counts.answer_tokens for result in got} != {1}  # so a mean is not a sum
    assert len({loss for loss, _ in expected}) == len(expected)
