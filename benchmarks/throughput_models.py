"""Models with random weights in three sizes, and documents to ask them about, for `throughput.py`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tests import tiny_models

TASK, SPLIT = "throughput", "test"
VOCABULARY = 32_000
WORDS = [
"car", "dog", "house", "street", "tree", "night", "cat", "picture", "red",
"green", "blue", "black", "white", "people", "left", "image",
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Sizes of a language model and of a vision tower: layers, width, width of the MLP, heads (and key heads)."""

    text: tuple[int, int, int, int, int]
    vision: tuple[int, int, int, int]
    image: int = 336


#: Of LLaVA-1.5 and of Qwen: as in the tests, of moderate width, those of the 7B checkpoints (but for the vocabulary).
GEOMETRIES = {
    "tiny": (Size((8, 64, 128, 4, 4), (3, 32, 64, 2), 56), Size((8, 64, 128, 4, 2), (4, 32, 64, 2))),
    "moderate": (Size((12, 512, 1376, 8, 8), (12, 256, 1024, 4)), Size((12, 512, 1376, 8, 2), (8, 256, 1024, 4))),
    "7b": (
        Size((32, 4096, 11008, 32, 32), (24, 1024, 4096, 16)),
        Size((28, 3584, 18944, 28, 4), (32, 1280, 3420, 16)),
    ),
}


def build(kind: str, geometry: str, dtype: torch.dtype, device: str, folder: Path) -> Path:
    """Write a random model of ``kind`` (llava, qwen2_vl, qwen2_5_vl) with its processor and return its folder.

    No answer ends before ``max_new_tokens``: the end-of-sequence tokens have a logit of zero, which is never the
    greatest of so many.
    """
    start = tiny_models.build_tiny(kind, folder / f"{kind}-start")
    size = GEOMETRIES[geometry][0 if kind == "llava" else 1]
    config, processor = AutoConfig.from_pretrained(start), AutoProcessor.from_pretrained(start)
    _resize(config, kind, size)
    if kind == "llava":
        processor.image_processor.size = {"shortest_edge": size.image}
        processor.image_processor.crop_size = {"height": size.image, "width": size.image}
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        tiny_models._scale_weights(model)
        model.generation_config = tiny_models.GenerationConfig.from_pretrained(start)
        with torch.no_grad():
            ends = model.generation_config.eos_token_id
            model.lm_head.weight[ends if isinstance(ends, list) else [ends]] = 0
    target = folder / kind
    model.save_pretrained(target)
    processor.save_pretrained(target)
    _fill_vocabulary(target / "tokenizer.json")
    return target


def _resize(config: Any, kind: str, size: Size) -> None:
    text, vision = config.text_config, config.vision_config
    layers, hidden, intermediate, heads, kv_heads = size.text
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, hidden, intermediate
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = heads, kv_heads, VOCABULARY
    half = hidden // heads // 2
    if kind == "llava":
        text.head_dim = 2 * half
        vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size, vision.num_attention_heads = size.vision
        vision.image_size, config.image_seq_length = size.image, (size.image // vision.patch_size) ** 2
        return
    text.layer_types = ["full_attention"] * layers
    text.rope_parameters["mrope_section"] = [half // 4, (half - half // 4) // 2, (half - half // 4 + 1) // 2]
    depth, width, mlp, vision_heads = size.vision
    vision.depth, vision.num_heads = depth, vision_heads
    if kind == "qwen2_vl":
        vision.embed_dim, vision.hidden_size, vision.mlp_ratio = width, hidden, 2 if depth == 4 else 4
    else:
        vision.hidden_size, vision.intermediate_size, vision.out_hidden_size = width, mlp, hidden
        step = 8 if depth > 8 else 4
        vision.window_size, vision.fullatt_block_indexes = 8 * vision.patch_size, list(range(step - 1, depth, step))


def _fill_vocabulary(path: Path) -> None:
    """Give every id of the output layer a word, so that answers can be told apart."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    known = tokenizer["model"]["vocab"]
    first = 1 + max([*known.values(), *(token["id"] for token in tokenizer["added_tokens"])])
    known.update({f"Ġ{WORDS[i % len(WORDS)]}{i}": i for i in range(first, VOCABULARY)})
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


class Documents(Sequence[dict[str, Any]]):
    """Questions about images that are kept as JPEG and decoded at every access, as a data set does.

    Args:
        images: number of distinct images.
        questions: about each of them, one after the other.
        perturbed: perturb the image whenever a document is shown, by a level that its image draws of the paper's 96.
        size: (width, height) of the images.
    """

    def __init__(self, images: int, questions: int, *, perturbed: bool, size: tuple[int, int] = (640, 480)) -> None:
        self.questions, self.perturbed = questions, perturbed
        self._jpeg = [_jpeg(seed, size) for seed in range(images)]

    def __len__(self) -> int:
        return len(self._jpeg) * self.questions

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = index // self.questions
        words = [WORDS[(7 * index + 3 * k) % len(WORDS)] for k in range(1 + index % 3)]
        question = f"What is the {' '.join(words)} in the image? Answer the question using a single word or phrase."
        return {"image": Image.open(io.BytesIO(self._jpeg[image])), "question": question, "number": image}

    def visuals(self, doc: dict[str, Any]) -> list[Image.Image]:
        """What a task's doc_to_visual does."""
        image = doc["image"].convert("RGB")
        return [_perturbed(image, doc["number"])] if self.perturbed else [image]

    def messages(self, doc: dict[str, Any]) -> list[dict[str, Any]]:
        """What a task's doc_to_messages does."""
        images = [{"type": "image", "url": image} for image in self.visuals(doc)]
        return [{"role": "user", "content": [*images, {"type": "text", "text": doc["question"]}]}]

    def requests(self, gen_kwargs: dict[str, Any], *, simple: bool) -> list[Instance]:
        """Return lmms-eval's requests, for a chat model or a simple one; fresh ones, as models write into them."""
        made = []
        for index in range(len(self)):
            context = str(self[index]["question"])
            show: Callable[[Any], Any] = self.visuals if simple else self.messages
            middle = (dict(gen_kwargs), show) if simple else (show, dict(gen_kwargs))
            arguments = (context, *middle, index, TASK, SPLIT)
            made.append(Instance("generate_until", arguments, 0, {"task": TASK, "doc_id": index, "repeats": 1}))
        return made


def _jpeg(seed: int, size: tuple[int, int]) -> bytes:
    """A picture with structures of every size, as JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-16, 17, (size[1], size[0], 3), dtype=np.int16)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=92)
    return stream.getvalue()


def _perturbed(image: Image.Image, number: int) -> Image.Image:
    from lmms_eval_stability.tasks.perturbations.assignment import SampleKey, draw_level, seed_of
    from lmms_eval_stability.tasks.perturbations.image import PAPER_96, perturb_image

    key = SampleKey(0, TASK, SPLIT, str(number), "image")
    level = draw_level(key, PAPER_96)
    return perturb_image(image, level.method, level.severity, seed=seed_of(key, level))
