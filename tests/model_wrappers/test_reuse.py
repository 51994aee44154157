"""Sharing work between questions about one image: answers do not change, and the work is really done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError
from lmms_eval_stability.model_wrappers.families import FAMILIES
from tests.model_wrappers.documents import WORDS, doc_to_messages, documents, draw
from tests.model_wrappers.test_scoring import scores
from tests.model_wrappers.test_wrapper import BASELINES, make, run, texts

TinyFolder = Callable[[str], str]
KINDS = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
CLASS = {"llava": "Llava", "llava_next": "Llava", "qwen2_vl": "Qwen2Vl", "qwen2_5_vl": "Qwen25Vl"}
BEFORE = ("visionzip", "hired", "lofi", "random")
INSIDE = ("fastv", "pyramiddrop", "sparsevlm", "random_inside")


def classes(method: str) -> dict[str, Any]:
    suffix = "".join(part.capitalize() for part in method.split("_"))
    return {kind: getattr(models, f"{CLASS[kind]}{suffix}") for kind in KINDS}


def arguments(method: str) -> dict[str, Any]:
    return {"rank": 8} if method == "lofi" else {}  # the tiny images have 16 tokens


def questions(images: int = 3, each: int = 2) -> list[dict[str, Any]]:
    """Return questions about images of different sizes, an image's questions far apart, and some without an image."""
    docs = []
    for number in range(each):
        for image in range(images):
            words = [WORDS[(3 * image + 5 * number + k) % len(WORDS)] for k in range(1 + (image + number) % 4)]
            picture = draw(image, (48 + 40 * (image % 3), 56 + 24 * (image % 2)))
            docs.append({"id": len(docs), "images": [picture], "question": f"What is {' '.join(words)}?"})
    docs.append({"id": len(docs), "images": [draw(0, (48, 56)), draw(1, (88, 80))], "question": "Which is red?"})
    return [*docs, {"id": len(docs) + 1, "images": [], "question": "Is there a dog?"}]


def logprobs(results: list[Any]) -> list[Any]:
    return [[r.token_counts.first_token_logprobs, r.token_counts.answer_logprob] for r in results]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["baseline", *BEFORE, *INSIDE])
def test_reused_features_change_nothing_not_a_bit(kind: str, method: str, tiny_folder: TinyFolder) -> None:
    """One row at a time, nothing but the source of the features differs."""
    docs = [doc for doc in questions() if len(doc["images"]) < 2]  # two images at once are encoded apart: last bits
    plain = run(make(classes(method), kind, tiny_folder(kind), reuse="none", **arguments(method)), docs)
    model = make(classes(method), kind, tiny_folder(kind), **arguments(method))
    shared = run(model, docs)
    assert texts(shared) == texts(plain)
    assert logprobs(shared) == logprobs(plain)
    for one, other in zip(plain, shared, strict=True):
        a, b = one.token_counts, other.token_counts
        assert (a.input_fingerprint, a.visual_tokens, a.diagnostics) == (
            b.input_fingerprint,
            b.visual_tokens,
            b.diagnostics,
        )
    cost = shared[0].token_counts.run["throughput"]
    assert (cost["samples"], cost["images_encoded"]) == (7, 3)
    assert "images_encoded" not in plain[0].token_counts.run["throughput"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["baseline", "visionzip", "hired", "fastv", "sparsevlm", "random_inside"])
def test_batches_over_shared_images_answer_as_single_rows(kind: str, method: str, tiny_folder: TinyFolder) -> None:
    docs = questions()
    plain = run(make(classes(method), kind, tiny_folder(kind), reuse="none"), docs)
    shared = run(make(classes(method), kind, tiny_folder(kind), batch_size=5), docs)
    assert texts(shared) == texts(plain)
    for one, other in zip(plain, shared, strict=True):
        assert one.token_counts.visual_tokens == other.token_counts.visual_tokens
        assert one.token_counts.answer_logprob == pytest.approx(other.token_counts.answer_logprob, abs=1e-3)
    assert shared[0].token_counts.run["throughput"]["images_encoded"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_features_in_a_batch_are_those_of_a_batch_of_one(kind: str, tiny_folder: TinyFolder) -> None:
    """What enters the language model is equal to the bit, whatever else is in the batch."""
    docs = [doc for doc in questions() if len(doc["images"]) == 1]
    seen: dict[int, dict[bytes, None]] = {}
    for size in (1, 4):
        model = make(BASELINES, kind, tiny_folder(kind), batch_size=size)
        found = seen.setdefault(size, {})
        placeholder = model.family.placeholder_ids(model.config)[0]

        def note(_module: Any, _args: Any, kwargs: Any, found: Any = found, token: int = placeholder) -> None:
            ids, embedded = note.ids, kwargs["inputs_embeds"]  # type: ignore[attr-defined]
            if ids is not None and ids.shape[1] == embedded.shape[1]:
                for row, values in zip(ids, embedded, strict=True):
                    if bool((row == token).any()):
                        found[values[row == token].numpy().tobytes()] = None

        def remember(_module: Any, args: Any, kwargs: Any, note: Any = note) -> None:
            note.ids = kwargs.get("input_ids", args[0] if args else None)

        model.family.backbone(model.model).register_forward_pre_hook(remember, with_kwargs=True)
        model.family.decoder(model.model).register_forward_pre_hook(note, with_kwargs=True)
        run(model, docs, {"max_new_tokens": 1})
    assert len(seen[1]) == 3
    assert set(seen[1]) == set(seen[4])


@pytest.mark.parametrize("kind", KINDS)
def test_images_processed_one_by_one_are_what_the_processor_makes_of_a_batch(
    kind: str, tiny_folder: TinyFolder
) -> None:
    family, processor = FAMILIES[kind], AutoProcessor.from_pretrained(tiny_folder(kind))
    prompts = [family.build_prompt(processor, doc_to_messages(doc), doc["question"]) for doc in documents(14)]
    expected = dict(family.encode(processor, prompts))
    images = [[family.process_image(processor, image, "") for image in prompt.images] for prompt in prompts]
    made = {**family.encode_text(processor, prompts, images), **family.join_images([i for row in images for i in row])}
    assert sorted(made) == sorted(expected)
    assert all(torch.equal(made[name], torch.as_tensor(expected[name])) for name in expected)


def test_a_memory_of_nothing_only_costs_time(tiny_folder: TinyFolder) -> None:
    docs = questions()
    kept = run(make(BASELINES, "llava", tiny_folder("llava"), batch_size=3), docs)
    forgotten = run(make(BASELINES, "llava", tiny_folder("llava"), batch_size=3, reuse_memory=0), docs)
    assert texts(kept) == texts(forgotten)
    counts = [results[0].token_counts.run["throughput"]["images_encoded"] for results in (kept, forgotten)]
    assert counts[0] == 3 < counts[1]


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", ["baseline", "random_inside"])
def test_answers_to_score_share_the_image(kind: str, method: str, tiny_folder: TinyFolder) -> None:
    docs = [doc for doc in questions() if len(doc["images"]) == 1]
    scored = []
    for reuse in ("none", "vision"):
        model = make(classes(method), kind, tiny_folder(kind), reuse=reuse)
        scored.append(scores(model, docs, (" yes", " a dog")))
    assert scored[0] == scored[1]
    assert scored[1][0].token_counts.run["throughput"]["images_encoded"] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["baseline", *BEFORE, *INSIDE])
def test_prefixes_change_the_last_bits_only(kind: str, method: str, tiny_folder: TinyFolder) -> None:
    docs = questions()
    plain = run(make(classes(method), kind, tiny_folder(kind), reuse="none", **arguments(method)), docs)
    model = make(classes(method), kind, tiny_folder(kind), reuse="prefix", **arguments(method))
    for size in (1, 5):
        model.batch_size_per_gpu = size
        shared = run(model, docs)
        assert texts(shared) == texts(plain)
        for one, other in zip(plain, shared, strict=True):
            a, b = one.token_counts, other.token_counts
            assert a.visual_tokens == b.visual_tokens
            assert a.input_tokens == b.input_tokens
            assert a.answer_logprob == pytest.approx(b.answer_logprob, rel=1e-4, abs=1e-4)
            values = [[v for _, _, v in c.first_token_logprobs] for c in (a, b)]
            assert values[0] == pytest.approx(values[1], rel=1e-5, abs=2e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reuse": "all"}, "choose one of none, vision, prefix"),
        ({"reuse_memory": -1}, "reuse_memory=-1"),
        ({"reuse": "prefix", "use_cache": False}, "does not go with use_cache=False"),
    ],
)
def test_reuse_that_cannot_be_is_refused(given: dict[str, Any], message: str, tiny_folder: TinyFolder) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make(BASELINES, "llava", tiny_folder("llava"), **given)


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_logits_in_double_precision(kind: str, tiny_folder: TinyFolder) -> None:
    """Logits of whole prompts and of questions on prefixes agree to far below 1e-5: what differs is rounding alone."""
    docs = [doc for doc in questions() if doc["images"]]
    found = []
    for given in ({"reuse": "none"}, {"reuse": "prefix", "batch_size": 4}):
        model = make(BASELINES, kind, tiny_folder(kind), dtype="float64", **given)
        steps: list[torch.Tensor] = []
        model.model.lm_head.register_forward_hook(lambda _m, _a, out, to=steps: to.append(out[:, -1]))
        results = run(model, docs, {"max_new_tokens": 3})
        assert all(one.dtype == torch.float64 for one in steps)
        found.append([[[i, v] for i, _, v in r.token_counts.first_token_logprobs] for r in results])
        if given["reuse"] == "none":
            whole = torch.stack([step[0] for step in steps]).view(len(docs), 3, -1)
        else:
            rows = torch.cat([torch.stack(steps[i : i + 3], dim=1) for i in _generations(steps)])
    assert found[0] == found[1]
    for row in rows:  # in another order; each is one of the whole prompts' to ten digits
        nearest = (whole - row).abs().flatten(1).amax(1).min()
        assert nearest <= 1e-10 * whole.abs().max()


def _generations(steps: list[torch.Tensor]) -> list[int]:
    """Return where each call of ``generate`` begins: prefixes are passes of one row that nothing follows."""
    starts, at = [], 0
    while at < len(steps):
        group = steps[at : at + 3]
        if len(group) == 3 and len({len(step) for step in group}) == 1 and len(group[0]) > 1:
            starts.append(at)
            at += 3
        else:
            at += 1
    return starts


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_vl"])
def test_prefixes_with_the_eager_kernel(kind: str, tiny_folder: TinyFolder) -> None:
    docs, eager = questions(), {"attn_implementation": "eager"}
    plain = run(make(BASELINES, kind, tiny_folder(kind), reuse="none", **eager), docs)
    shared = run(make(BASELINES, kind, tiny_folder(kind), reuse="prefix", batch_size=4, **eager), docs)
    assert texts(shared) == texts(plain)


def test_scoring_with_prefixes_is_scoring_with_shared_images(tiny_folder: TinyFolder) -> None:
    docs = questions()
    found = [scores(make(BASELINES, "llava", tiny_folder("llava"), reuse=how), docs) for how in ("vision", "prefix")]
    assert found[0] == found[1]
