"""``AcceleratedVLM``: arguments, batches, failures and what is measured."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from lmms_eval_stability.model_wrappers import errors, models
from lmms_eval_stability.model_wrappers.families import Prompt
from lmms_eval_stability.model_wrappers.measurements import fingerprints
from lmms_eval_stability.model_wrappers.token_reduction.errors import NothingPrunedError
from tests.model_wrappers.documents import chat_requests, documents, draw, give_documents

TinyFolder = Callable[[str], str]
BASELINES = {
    "llava": models.LlavaBaseline,
    "llava_next": models.LlavaBaseline,
    "qwen2_vl": models.Qwen2VlBaseline,
    "qwen2_5_vl": models.Qwen25VlBaseline,
}
FASTV = {
    "llava": models.LlavaFastv,
    "llava_next": models.LlavaFastv,
    "qwen2_vl": models.Qwen2VlFastv,
    "qwen2_5_vl": models.Qwen25VlFastv,
}
GENERATION = {"max_new_tokens": 5}


def make(classes: dict[str, Any], kind: str, folder: str, **kwargs: Any) -> Any:
    pixels = {} if kind.startswith("llava") else {"min_pixels": 3136, "max_pixels": 12544}
    return classes[kind](pretrained=folder, device="cpu", **pixels, **kwargs)


def run(model: Any, docs: list[dict[str, Any]], gen_kwargs: dict[str, Any] = GENERATION) -> list[Any]:
    give_documents(model, docs)
    return model.generate_until(chat_requests(docs, gen_kwargs))


def texts(results: list[Any]) -> list[str]:
    return [result.text for result in results]


@pytest.mark.parametrize("kind", list(BASELINES))
@pytest.mark.parametrize("classes", [BASELINES, FASTV], ids=["baseline", "fastv"])
def test_batches_answer_what_single_documents_answer_and_keep_the_order(
    kind: str, classes: dict[str, Any], tiny_folder: TinyFolder
) -> None:
    docs = documents(14)
    alone = run(make(classes, kind, tiny_folder(kind)), docs)
    together = run(make(classes, kind, tiny_folder(kind), batch_size=4), docs)
    assert texts(together) == texts(alone)
    for a, b in zip(alone, together, strict=True):
        one, batched = a.token_counts, b.token_counts
        assert one.input_fingerprint == batched.input_fingerprint
        assert one.visual_tokens == batched.visual_tokens
        assert one.input_tokens == batched.input_tokens
        assert one.answer_logprob == pytest.approx(batched.answer_logprob, abs=1e-3)


@pytest.mark.parametrize("kind", list(FASTV))
def test_fastv_counts_tokens_and_changes_answers(kind: str, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(20) if doc["images"]]
    base = run(make(BASELINES, kind, tiny_folder(kind)), docs)
    pruned = run(make(FASTV, kind, tiny_folder(kind), k=2, r=0.75), docs)
    for before, after in zip(base, pruned, strict=True):
        (n,) = before.token_counts.visual_tokens
        assert after.token_counts.visual_tokens == [n, round(n * 0.25)]
        assert after.token_counts.visual_token_layers == [0, 2]
        assert before.token_counts.input_fingerprint == after.token_counts.input_fingerprint
    assert texts(base) != texts(pruned)


@pytest.mark.parametrize("kind", list(FASTV))
def test_fastv_that_drops_nothing_is_the_baseline(kind: str, tiny_folder: TinyFolder) -> None:
    docs = documents(10)
    base = run(make(BASELINES, kind, tiny_folder(kind)), docs)
    off = run(make(FASTV, kind, tiny_folder(kind), r=0.0), docs)
    assert texts(base) == texts(off)
    first = [[result.token_counts.first_token_logprobs for result in results] for results in (base, off)]
    assert first[0] == first[1]  # equal to the bit


def test_model_is_untouched_between_runs(tiny_folder: TinyFolder) -> None:
    model = make(FASTV, "llava", tiny_folder("llava"))
    run(model, documents(3))
    docs = documents(8)
    plain = make(BASELINES, "llava", tiny_folder("llava"))
    assert model.model.config._attn_implementation == plain.model.config._attn_implementation
    assert not any(layer._forward_pre_hooks for layer in model.family.decoder(model.model).layers)
    model.method = None
    assert texts(run(model, docs)) == texts(run(plain, docs))


def test_measurements_are_plain_json_and_agree_with_the_model(tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"))
    docs = documents(4)
    results = run(model, docs)
    logged = [json.loads(json.dumps(result.token_counts.to_dict())) for result in results]
    assert [("run" in line) for line in logged] == [True, False, False, False]
    facts = logged[0]["run"]
    assert (facts["model"], facts["dtype"], facts["batch_size"]) == ("llava_baseline", "float32", 1)
    assert facts["versions"]["transformers"].startswith("5.")
    for doc, line in zip(docs, logged, strict=True):
        assert line["prefill_ms"] > 0
        assert line["decode_ms"] > 0
        logprobs = [value for _, _, value in line["first_token_logprobs"]]
        assert logprobs == sorted(logprobs, reverse=True)
        assert line["answer_logprob"] == pytest.approx(answer_logprob(model, doc), abs=1e-4)


def answer_logprob(model: Any, doc: dict[str, Any]) -> float:
    """Score the greedy answer again, in one forward pass over prompt and answer."""
    (request,) = chat_requests([doc])
    prompt = model.family.build_prompt(model.processor, copy.deepcopy(request.args[1](doc)), doc["question"])
    inputs = model.family.encode(model.processor, [prompt])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        ids = model.model.generate(**inputs, do_sample=False, **GENERATION)
        inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
        logprobs = model.model(**inputs).logits.log_softmax(-1)
    answer = ids[0, length:]
    return float(logprobs[0, length - 1 : -1].gather(1, answer[:, None]).sum())


def test_answer_ends_at_the_end_of_sequence_token(tiny_folder: TinyFolder) -> None:
    """In a batch a finished row goes on with padding; neither text nor counts nor log-probability may include it."""
    docs = documents(8)
    model = make(BASELINES, "llava", tiny_folder("llava"))
    ids = [r.token_counts.first_token_logprobs[0][0] for r in run(model, docs)]
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(ids[0])
    alone = run(model, docs)
    model.batch_size_per_gpu = 8
    together = run(model, docs)
    assert alone[0].token_counts.output_tokens == 1
    assert {r.token_counts.output_tokens for r in alone} != {1}
    assert [r.token_counts.output_tokens for r in together] == [r.token_counts.output_tokens for r in alone]
    for a, b in zip(alone, together, strict=True):
        assert a.token_counts.answer_logprob == pytest.approx(b.token_counts.answer_logprob, abs=1e-3)
    assert alone[0].token_counts.answer_logprob == alone[0].token_counts.first_token_logprobs[0][2]
    assert math.isfinite(sum(r.token_counts.answer_logprob for r in together))


def test_fingerprint_sees_text_pixels_and_size() -> None:
    image = draw(1, (20, 10))
    reference = fingerprints(Prompt("a", (image,)))
    assert len(reference.input) == len(reference.image or "") == 32
    assert fingerprints(Prompt("a", (image.copy(),))) == reference
    changed = image.copy()
    changed.putpixel((3, 3), tuple(255 - v for v in changed.getpixel((3, 3))))  # type: ignore[arg-type, union-attr]
    same_bytes = Image.frombytes("RGB", (10, 20), image.tobytes())
    others = [Prompt("b", (image,)), Prompt("a", (changed,)), Prompt("a", (same_bytes,)), Prompt("a", ())]
    assert len({reference.input, *(fingerprints(prompt).input for prompt in others)}) == 5
    images = [fingerprints(prompt).image for prompt in others]
    assert images[0] == reference.image  # whatever is asked about it
    assert images[3] is None
    assert len({reference.image, *images}) == 4


def test_gen_kwargs_of_the_task_are_not_changed(tiny_folder: TinyFolder) -> None:
    """lmms-eval's response cache looks answers up by these arguments after the model ran."""
    model = make(BASELINES, "llava", tiny_folder("llava"))
    docs = documents(2)
    give_documents(model, docs)
    requests = chat_requests(docs, {"max_new_tokens": 2, "until": ["x"]})
    before = copy.deepcopy([request.args[2] for request in requests])
    model.generate_until(requests)
    assert [request.args[2] for request in requests] == before


def test_documents_with_different_generation_arguments_are_not_mixed(tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=4)
    docs = documents(4)
    give_documents(model, docs)
    requests = chat_requests(docs)
    for i, request in enumerate(requests):
        request.args[2]["max_new_tokens"] = 1 + i % 2
    assert [r.token_counts.output_tokens for r in model.generate_until(requests)] == [1, 2, 1, 2]


def broken_documents() -> list[dict[str, Any]]:
    docs = documents(6)
    docs[3] = {**docs[3], "images": ["not an image"]}
    return docs


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_document_that_cannot_be_answered_stops_the_run_by_name(batch_size: int, tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=batch_size)
    with pytest.raises(errors.AnswerError, match=r"llava_baseline: task drawn, document 3 .*on_error=record"):
        run(model, broken_documents())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_on_error_record_logs_the_failure_and_answers_the_rest(batch_size: int, tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=batch_size, on_error="record")
    results = run(model, broken_documents())
    good = run(make(BASELINES, "llava", tiny_folder("llava")), documents(6))
    assert results[3].text == ""
    assert results[3].token_counts.error
    assert [r.token_counts.error for i, r in enumerate(results) if i != 3] == [None] * 5
    assert [r.text for i, r in enumerate(results) if i != 3] == [r.text for i, r in enumerate(good) if i != 3]


def test_a_batch_that_fails_only_together_is_an_error(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"), batch_size=4, on_error="record")
    generate = model.model.generate

    def out_of_memory(**kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 1:
            raise MemoryError("no room")
        return generate(**kwargs)

    monkeypatch.setattr(model.model, "generate", out_of_memory)
    with pytest.raises(errors.AnswerError, match="Lower --batch_size"):
        run(model, documents(4))


def test_a_run_in_which_nothing_was_pruned_is_an_error(tiny_folder: TinyFolder) -> None:
    model = make(FASTV, "llava", tiny_folder("llava"), r=0.001)  # rounds to all tokens
    with pytest.raises(NothingPrunedError, match="dropped none"):
        run(model, documents(3))


def test_images_whose_placeholders_are_not_recognised_are_an_error(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(FASTV, "llava", tiny_folder("llava"))
    monkeypatch.setattr(type(model.family), "placeholder_ids", lambda self, config: (10**6,))
    with pytest.raises(NothingPrunedError, match="saw no visual token"):
        run(model, documents(2))


def test_text_only_documents_are_no_reason_to_stop(tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(21) if not doc["images"]]
    assert len(docs) == 3
    results = run(make(FASTV, "llava", tiny_folder("llava")), docs)
    assert [r.token_counts.visual_tokens[0] for r in results] == [0, 0, 0]
    assert texts(results) == texts(run(make(BASELINES, "llava", tiny_folder("llava")), docs))


def test_a_video_is_refused_by_name(tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "qwen2_vl", tiny_folder("qwen2_vl"))
    docs = documents(1)
    give_documents(model, docs)
    requests = chat_requests(docs)
    message = [{"role": "user", "content": [{"type": "video", "url": "x.mp4"}, {"type": "text", "text": "?"}]}]
    requests[0].arguments = (*requests[0].arguments[:1], lambda doc: message, *requests[0].arguments[2:])
    with pytest.raises(errors.AnswerError, match="holds a video"):
        model.generate_until(requests)


def test_a_question_with_an_image_placeholder_of_its_own_is_refused_by_name(tiny_folder: TinyFolder) -> None:
    docs = [{**documents(1)[0], "question": "What does <image> mean, and <image>?"}]
    with pytest.raises(errors.AnswerError, match="2 image placeholders for 1 images"):
        run(make(BASELINES, "llava", tiny_folder("llava")), docs)


def test_requests_of_other_kinds_are_refused_by_name(tiny_folder: TinyFolder) -> None:
    model = make(BASELINES, "llava", tiny_folder("llava"))
    requests = chat_requests(documents(2))
    with pytest.raises(errors.UnsupportedInputError, match="drawn sends generate_until_multi_round"):
        model.generate_until_multi_round(requests)


@pytest.mark.parametrize("use_cache", [True, False])
def test_fastv_selects_by_the_prompt_with_and_without_cache(use_cache: bool, tiny_folder: TinyFolder) -> None:
    docs = documents(8)
    cached = run(make(FASTV, "llava", tiny_folder("llava")), docs)
    assert texts(run(make(FASTV, "llava", tiny_folder("llava"), use_cache=use_cache), docs)) == texts(cached)


def test_beam_search_answers_without_step_measurements(tiny_folder: TinyFolder) -> None:
    results = run(make(BASELINES, "llava", tiny_folder("llava")), documents(2), {"max_new_tokens": 3, "num_beams": 2})
    assert all(r.text for r in results)
    assert results[0].token_counts.answer_logprob is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kay": 3}, errors.UnknownArgumentError, r"does not take kay; it takes pretrained, .*batch_size.*, k, r"),
        ({"batch_size": "automatic"}, errors.InvalidArgumentError, "batch_size=automatic"),
        ({"batch_size": 0}, errors.InvalidArgumentError, "batch_size=0"),
        ({"on_error": "ignore"}, errors.InvalidArgumentError, "choose one of raise, record"),
        ({"dtype": "float17"}, errors.InvalidArgumentError, "float17"),
        ({"min_pixels": 100}, errors.InvalidArgumentError, "does not take min_pixels"),
        ({"k": 99}, ValueError, "99"),
        ({"trust_remote_code": "no"}, errors.InvalidArgumentError, "trust_remote_code=no: write True or False"),
        ({"max_new_tokens": 0}, errors.InvalidArgumentError, "max_new_tokens=0"),
        ({"r": 1.5}, ValueError, "1.5"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, tiny_folder: TinyFolder
) -> None:
    with pytest.raises(error, match=message):
        models.LlavaFastv(**{"pretrained": tiny_folder("llava"), "device": "cpu", **arguments})


def test_a_baseline_takes_no_method_arguments(tiny_folder: TinyFolder) -> None:
    with pytest.raises(errors.UnknownArgumentError, match="llava_baseline does not take k"):
        models.LlavaBaseline(pretrained=tiny_folder("llava"), k=3)


def test_a_missing_checkpoint_name_is_explained() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"pretrained=llava-hf/llava-1\.5-7b-hf"):
        models.LlavaFastv()


def test_a_checkpoint_of_another_architecture_is_refused_with_the_right_name(tiny_folder: TinyFolder) -> None:
    with pytest.raises(errors.WrongFamilyError, match="use --model qwen2_5_vl_fastv"):
        models.LlavaFastv(pretrained=tiny_folder("qwen2_5_vl"))


def test_arguments_arrive_from_lmms_evals_string(tiny_folder: TinyFolder) -> None:
    string = f"pretrained={tiny_folder('llava')},k=2,r=0.25,batch_size=3"
    model = models.LlavaFastv.create_from_arg_string(string, {"batch_size": 1, "device": "cpu", "max_batch_size": None})
    assert (model.method.k, model.method.r, model.batch_size) == (2, 0.25, 3)
