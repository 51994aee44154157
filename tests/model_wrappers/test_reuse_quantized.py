"""``reuse=prefix`` on quantised weights, alone and under a token reduction: the demo model on questions of its task."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lmms_eval_stability.demo.training.prompts import INSTRUCTION
from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.tasks import shapes_vqa
from tests.model_wrappers.test_wrapper import run, texts

IMAGES, EACH = 3, 3
#: Largest difference of a log-probability among the five best first tokens. LLM.int8() looks for outliers among all
#: rows of a pass, and with a prefix these are others. Without that (threshold 0), and in layers of 4-bit weights, every
#: row is computed by itself, so that only sums are rounded otherwise.
OUTLIERS, ROUNDING = 0.1, 2e-5
CASES = [
    ("LlavaInt8", "demo", {}, OUTLIERS),
    ("LlavaInt8", "demo", {"threshold": 0}, ROUNDING),
    ("LlavaVisionzip", "demo", {"quantization": "int8"}, OUTLIERS),
    ("LlavaFastv", "demo", {"quantization": "int8"}, OUTLIERS),
    ("LlavaGptq", "demo-gptq", {}, ROUNDING),
    ("LlavaFastv", "demo-gptq", {"quantization": "gptq"}, ROUNDING),
    ("LlavaAwq", "demo-awq", {}, ROUNDING),
    ("LlavaFastv", "demo-awq", {"quantization": "awq"}, ROUNDING),
]


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    """The first questions of `shapes_vqa` about some pictures, an image's questions far apart."""
    file = Path(shapes_vqa.__path__[0]) / "shapes_vqa.parquet"
    rows = pq.read_table(file, columns=["image", "image_id", "question"]).slice(0, 30).to_pylist()
    by_image: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    chosen = [asked[number] for number in range(EACH) for asked in list(by_image.values())[:IMAGES]]
    docs = [(Image.open(io.BytesIO(row["image"]["bytes"])), row["question"] + INSTRUCTION) for row in chosen]
    return [{"id": n, "images": [image], "question": question} for n, (image, question) in enumerate(docs)]


def answered(name: str, folder: str, docs: list[dict[str, Any]], **given: Any) -> tuple[list[Any], list[int]]:
    """Return the results, and how many tokens each pass read that was no step of decoding."""
    model = getattr(models, name)(pretrained=folder, device="cpu", **given)
    lengths: list[int] = []
    first = model.family.decoder(model.model).layers[0]
    first.register_forward_pre_hook(lambda _m, args: lengths.append(args[0].shape[1]))
    return run(model, docs, {"max_new_tokens": 8}), [length for length in lengths if length > 1]


@pytest.mark.parametrize(("name", "folder", "given", "tolerance"), CASES, ids=lambda value: str(value))
def test_answers_are_those_of_whole_prompts_and_prefixes_are_read_once(
    name: str, folder: str, given: dict[str, Any], tolerance: float, questions: list[dict[str, Any]]
) -> None:
    whole, passes = answered(name, folder, questions, reuse="none", **given)
    shared, passes_on_prefixes = answered(name, folder, questions, reuse="prefix", **given)
    counts = [one.token_counts for one in whole]
    image = [n for n, layer in zip(counts[0].visual_tokens, counts[0].visual_token_layers, strict=True) if layer == 0][
        -1
    ]
    assert len(passes) == IMAGES * EACH
    assert min(passes) > image
    assert sum(length > image for length in passes_on_prefixes) == IMAGES
    assert sum(length < image for length in passes_on_prefixes) == IMAGES * EACH
    assert len(set(texts(whole))) > 2
    assert texts(shared) == texts(whole)
    for one, other in zip(counts, (two.token_counts for two in shared), strict=True):
        assert one.visual_tokens == other.visual_tokens
        for first, second in zip(one.first_token_logprobs, other.first_token_logprobs, strict=True):
            assert first[:2] == second[:2]
            assert first[2] == pytest.approx(second[2], abs=tolerance)
