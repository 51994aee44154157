"""``loglikelihood``: what an answer's score is, and that no answer has a say in which visual tokens it is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from lmms_eval.api.instance import Instance

from lmms_eval_stability.model_wrappers import errors, models
from lmms_eval_stability.model_wrappers.registry import FAMILIES
from lmms_eval_stability.model_wrappers.scoring import answer_ids
from lmms_eval_stability.model_wrappers.token_reduction.base import Session
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from tests.model_wrappers.documents import SPLIT, TASK, chat_requests, doc_to_messages, documents, give_documents
from tests.tiny_models import KINDS

TinyFolder = Callable[[str], str]
METHODS: dict[str, dict[str, Any]] = {
    "Baseline": {},
    "Fastv": {},
    "Pyramiddrop": {},
    "Sparsevlm": {},
    "Visionzip": {"dominant": 150, "contextual": 60},
    "Hired": {"budget": 0.3},
    "Lofi": {"rank": 4},
    "Random": {"tokens": 200},
    "Downsample": {"tokens": 250},
}
CASES = [(kind, name) for name in METHODS for kind in KINDS if name != "Downsample" or "qwen" in kind]
RANKED_BY_THE_PROMPT = ("Fastv", "Pyramiddrop", "Sparsevlm")
ANSWERS = (" yes", " a red car", " the left of the image", "no")


def make(kind: str, name: str, folder: str, **arguments: Any) -> Any:
    prefix = next(key for key, entry in FAMILIES.items() if kind in entry.model_types)
    cls = getattr(models, "".join(part.capitalize() for part in prefix.split("_")) + name)
    pixels = {} if kind.startswith("llava") else {"min_pixels": 3136, "max_pixels": 12544}
    model = cls(pretrained=folder, device="cpu", **METHODS[name], **pixels, **arguments)
    # The tiny Qwen models have one, as the real ones: it changes what is generated, and has no part in scores.
    model.model.generation_config.repetition_penalty = 1.0
    return model


def score_requests(
    docs: Sequence[Any], answers: Sequence[Any] = ANSWERS, show: Any = doc_to_messages
) -> list[Instance]:
    return [
        Instance(
            "loglikelihood",
            (doc["question"], answer, show, i, TASK, SPLIT),
            number,
            {"task": TASK, "doc_id": i, "repeats": 1},
        )
        for i, doc in enumerate(docs)
        for number, answer in enumerate(answers)
    ]


def scores(model: Any, docs: Sequence[Any], *arguments: Any, **keywords: Any) -> list[Any]:
    give_documents(model, docs)
    return model.loglikelihood(score_requests(docs, *arguments, **keywords))


def with_images(n: int) -> list[dict[str, Any]]:
    return [doc for doc in documents(n) if doc["images"]]


def step_by_step(model: Any, doc: Any, answer: str) -> tuple[list[float], bool, list[Any]]:
    """Score an answer token by token, each with a full pass over prompt and answer so far."""
    prompt = model.family.build_prompt(model.processor, doc_to_messages(doc), doc["question"])
    inputs = dict(model.family.encode(model.processor, [prompt]))
    last = inputs["input_ids"].shape[1] - 1
    text = model.tokenizer(prompt.text + answer)["input_ids"]
    ids = text[len(model.tokenizer(prompt.text)["input_ids"]) :]
    logprobs, greedy, counts = [], True, []
    attached = nullcontext() if model.method is None else model.method.attach(model.model, model.family)
    with torch.no_grad(), attached as session:
        for token in ids:
            with nullcontext() if session is None else session.pin_query([last]):
                logits = model.model(**inputs, use_cache=False).logits[0, -1]
            counts.append(None if session is None else session.rows)
            logprobs.append(float(logits.log_softmax(-1)[token]))
            greedy &= int(logits.argmax()) == token
            for name, value in {"input_ids": token, "attention_mask": 1, "mm_token_type_ids": 0}.items():
                if name in inputs:
                    inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
    return logprobs, greedy, counts


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_score_is_the_mean_of_steps_without_cache(kind: str, name: str, kernel: str, tiny_folder: TinyFolder) -> None:
    docs = with_images(6)[-2:]  # one image, then two
    assert [len(doc["images"]) for doc in docs] == [1, 2]
    model = make(kind, name, tiny_folder(kind), attn_implementation=kernel)
    answers = (" yes", " the left of")
    results = iter(scores(model, docs, answers))
    for doc in docs:
        for answer in answers:
            logprobs, greedy, counts = step_by_step(model, doc, answer)
            loss, is_greedy = result = next(results)
            assert loss == pytest.approx(-sum(logprobs) / len(logprobs), abs=1e-3)
            assert is_greedy is greedy
            assert result.token_counts.answer_tokens == len(logprobs)
            assert result.token_counts.answer_logprob == pytest.approx(sum(logprobs), abs=5e-3)
            assert all(one == counts[0] for one in counts)
            if counts[0] is not None:
                assert result.token_counts.visual_tokens == list(counts[0][0].visual_tokens)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_batches_score_what_single_rows_score_in_any_order(kind: str, name: str, tiny_folder: TinyFolder) -> None:
    docs = documents(7)
    assert {len(doc["images"]) for doc in docs} == {0, 1, 2}
    alone = scores(make(kind, name, tiny_folder(kind)), docs)
    model = make(kind, name, tiny_folder(kind), batch_size=5)
    give_documents(model, docs)
    requests = score_requests(docs)
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(0)).tolist()
    together = model.loglikelihood([requests[i] for i in order])
    for i, batched in zip(order, together, strict=True):
        assert tuple(batched) == (pytest.approx(alone[i].loss, abs=1e-3), alone[i].is_greedy)
        one, other = alone[i].token_counts, batched.token_counts
        assert other.answer_logprob == pytest.approx(one.answer_logprob, abs=1e-2)
        for field in ("input_tokens", "answer_tokens", "input_fingerprint", "visual_tokens", "visual_token_layers"):
            assert getattr(one, field) == getattr(other, field), field
    assert len({round(result.loss, 3) for result in alone}) > 20  # the model looks at document and answer
    assert len({result.token_counts.input_fingerprint for result in alone}) == len(alone)  # so do fingerprints


@contextmanager
def selections(monkeypatch: pytest.MonkeyPatch, method: Any) -> Iterator[list[tuple[int, ...]]]:
    """Collect the indices of the visual tokens that every stage keeps, in the order of the stages and images."""
    found: list[tuple[int, ...]] = []
    owner, name = (type(method), "reduce") if isinstance(method, InsideLLM) else (type(method), "compress")
    original = getattr(owner, name)

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        if made is not None:
            found.append(tuple((made.stays if name == "reduce" else made.kept).tolist()))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, noting)
        yield found


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_all_answers_are_judged_by_what_generation_sees(
    kind: str, name: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = with_images(4)
    model = make(kind, name, tiny_folder(kind))
    give_documents(model, docs)
    hooked = isinstance(model.method, InsideLLM | BeforeLLM)
    for i in range(len(docs)):
        question = chat_requests(docs, {"max_new_tokens": 4})[i]
        with selections(monkeypatch, model.method) if hooked else nullcontext([]) as kept:
            (generated,) = model.generate_until([question])
            expected, kept[:] = list(kept), []
            for request in score_requests(docs)[i * len(ANSWERS) : (i + 1) * len(ANSWERS)]:
                (result,) = model.loglikelihood([request])
                assert kept == expected
                kept.clear()
                first = result.token_counts.first_token_logprobs
                assert [token for token, *_ in first] == [
                    token for token, *_ in generated.token_counts.first_token_logprobs
                ]
                for one, other in zip(first, generated.token_counts.first_token_logprobs, strict=True):
                    assert one[2] == pytest.approx(other[2], abs=1e-3)
                assert result.token_counts.visual_tokens == generated.token_counts.visual_tokens
                assert result.token_counts.input_tokens == generated.token_counts.input_tokens
        assert bool(expected) == hooked or name == "Downsample"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RANKED_BY_THE_PROMPT)
def test_an_unpinned_query_would_leak_the_answer(
    kind: str, name: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests above guard against happens: without the pin answers choose the tokens that they are judged by."""
    docs = with_images(4)
    model = make(kind, name, tiny_folder(kind))
    with selections(monkeypatch, model.method) as pinned:
        right = scores(model, docs)
    monkeypatch.setattr(Session, "pin_query", lambda *_: nullcontext())
    with selections(monkeypatch, model.method) as free:
        wrong = scores(model, docs)
    assert len(pinned) == len(free)
    assert pinned != free
    assert max(abs(a.loss - b.loss) for a, b in zip(right, wrong, strict=True)) > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Baseline", "Fastv", "Visionzip"])
def test_the_most_probable_token_is_greedy_and_no_other_is(kind: str, name: str, tiny_folder: TinyFolder) -> None:
    docs = documents(7)
    model = make(kind, name, tiny_folder(kind))
    give_documents(model, docs)
    ranks = []
    for i, question in enumerate(model.generate_until(chat_requests(docs, {"max_new_tokens": 1}))):
        for rank, (token, text, logprob) in enumerate(question.token_counts.first_token_logprobs):
            if answer_ids(model.tokenizer, "?", text, ()) != [token]:
                continue  # half a character, say
            (score,) = model.loglikelihood([score_requests(docs, [text])[i]])
            assert score.is_greedy == (rank == 0)
            assert score.loss == pytest.approx(-logprob, abs=1e-3)
            ranks.append(rank)
            if rank == 0:
                (longer,) = model.loglikelihood([score_requests(docs, [f"{text} zebra"])[i]])
                assert not longer.is_greedy
    assert {0, 1, 2} <= set(ranks)


def seen_by(patch: pytest.MonkeyPatch, model: Any, name: str) -> list[list[int]]:
    """Collect the token ids of the first row that a method of the model is given."""
    seen: list[list[int]] = []
    original = getattr(model, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"][0].tolist())
        return original(*args, **kwargs)

    patch.setattr(model, name, spy)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_tokenised_as_for_generation(
    kind: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = documents(9)
    model = make(kind, "Baseline", tiny_folder(kind))
    give_documents(model, docs)
    with monkeypatch.context() as patch:
        prompts = seen_by(patch, model.model, "generate")
        model.generate_until(chat_requests(docs, {"max_new_tokens": 1}))
    with monkeypatch.context() as patch:
        wholes = seen_by(patch, model.model, "forward")
        model.loglikelihood(score_requests(docs, [" a dog"]))
    assert len(prompts) == len(wholes) == len(docs)
    for prompt, whole in zip(prompts, wholes, strict=True):
        assert whole[: len(prompt)] == prompt
        assert model.tokenizer.decode(whole[len(prompt) :]) == " a dog"


@pytest.mark.parametrize("kind", KINDS)
def test_documents_without_images_are_scored_as_by_the_base_model(kind: str, tiny_folder: TinyFolder) -> None:
    docs = [{**documents(1)[0], "images": [], "question": text} for text in ("What is red?", "Is it a dog?")]
    base = scores(make(kind, "Baseline", tiny_folder(kind)), docs)
    for name in METHODS:
        if (kind, name) in CASES:
            for plain, result in zip(base, scores(make(kind, name, tiny_folder(kind)), docs), strict=True):
                assert tuple(result) == tuple(plain)


def test_media_stand_before_the_text_where_a_task_shows_no_turns(tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in documents(8) if "<image>" not in doc["question"]]
    model = make("llava", "Fastv", tiny_folder("llava"))
    assert scores(model, docs, show=lambda doc: doc["images"]) == scores(model, docs)
    assert scores(model, docs, show=lambda doc: doc["images"] or None) == scores(model, docs)


def test_the_answer_may_be_a_function_of_the_document(tiny_folder: TinyFolder) -> None:
    docs = with_images(3)
    model = make("llava", "Baseline", tiny_folder("llava"))
    assert scores(model, docs, [lambda doc: f" {doc['id']} dogs"]) == [
        scores(model, docs, [f" {doc['id']} dogs"])[i] for i, doc in enumerate(docs)
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "the answer to score is empty; see the task's doc_to_choice"),
        (lambda _: 2, "the answer to score is 2, not a text; let doc_to_target give a text"),
        (" an <image> here", "' an <image> here' holds an image placeholder"),
    ],
)
def test_answers_that_cannot_be_scored_are_refused_by_name(answer: Any, message: str, tiny_folder: TinyFolder) -> None:
    model = make("llava", "Fastv", tiny_folder("llava"))
    with pytest.raises(errors.AnswerError, match=f"llava_fastv: task drawn, document 0 could not .*{message}"):
        scores(model, with_images(2), [" yes", answer])


def test_requests_of_unknown_form_are_refused_by_name(tiny_folder: TinyFolder) -> None:
    model = make("llava", "Baseline", tiny_folder("llava"))
    (request,) = score_requests(documents(1), [" yes"])
    request.arguments = ("", " yes", 3)
    with pytest.raises(errors.UnsupportedInputError, match="task drawn sends log-likelihood requests with 3 arguments"):
        model.loglikelihood([request])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_failed_documents_are_recorded_with_all_their_answers(batch_size: int, tiny_folder: TinyFolder) -> None:
    docs = with_images(4)
    broken = [*docs[:1], {**docs[1], "images": ["no image"]}, *docs[2:]]
    model = make("llava", "Fastv", tiny_folder("llava"), on_error="record", batch_size=batch_size)
    whole, results = scores(model, docs), scores(model, broken)
    for i, (before, result) in enumerate(zip(whole, results, strict=True)):
        if i // len(ANSWERS) == 1:
            assert tuple(result) == (math.inf, False)
            assert result.token_counts.error
        else:
            assert result.loss == pytest.approx(before.loss, abs=1e-3)
            assert result.token_counts.error is None
    assert ["run" in result.token_counts.to_dict() for result in results] == [True] + [False] * (len(results) - 1)


def test_one_answer_that_fails_fails_its_document(tiny_folder: TinyFolder) -> None:
    docs = with_images(3)
    model = make("llava", "Fastv", tiny_folder("llava"), on_error="record", batch_size=4)
    give_documents(model, docs)
    requests = score_requests(docs)
    context, _, *rest = requests[6].arguments
    requests[6].arguments = (context, "", *rest)
    failed = [i for i, result in enumerate(model.loglikelihood(requests)) if result.token_counts.error]
    assert failed == [4, 5, 6, 7]


def test_a_failure_ends_a_rank_of_several(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llava", "Baseline", tiny_folder("llava"))
    model._world_size = 2

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as stopped:
        scores(model, documents(1), [""])
    assert stopped.value.code == 1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_scores_are_near(kind: str, tiny_folder: TinyFolder) -> None:
    docs = with_images(3)
    exact = scores(make(kind, "Baseline", tiny_folder(kind)), docs)
    half = scores(make(kind, "Baseline", tiny_folder(kind), dtype="bfloat16", batch_size=3), docs)
    for a, b in zip(exact, half, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=0.25)
