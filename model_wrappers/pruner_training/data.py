"""What a pruner is trained on: images with questions and answers, of a JSONL file, an lmms-eval task or a generator.

Prompts are built as the evaluation builds them; the answer follows as the model would generate it. Example p of the
endless order of examples depends on the seed and on p alone, so a training that goes on sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.pruner_training.errors import TrainingDataError
from lmms_eval_stability.model_wrappers.quantization.make.calibration import load_task, render_document
from lmms_eval_stability.model_wrappers.scoring import answer_ids, append_answers

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.families import Family, Prompt

#: ``--data`` of this name is the demo's generator of pictures and questions.
SHAPES = "shapes"


@dataclass(frozen=True)
class Example:
    """One prompt with its image and what the model should say."""

    prompt: Prompt
    answer: str


class Source(Protocol):
    """Where examples come from.

    Attributes:
        details: what else is needed to read the same again, ready for JSON.
        size: number of examples; None if there is no end of them.
    """

    details: dict[str, Any]
    size: int | None

    def example(self, family: Family, processor: Any, number: int) -> Example:
        """Return one example."""


@dataclass(frozen=True)
class Order:
    """In which order examples are taken: each once per epoch, shuffled anew."""

    seed: int
    size: int | None

    def __getitem__(self, position: int) -> int:
        if self.size is None:
            return position
        epoch, place = divmod(position, self.size)
        generator = torch.Generator().manual_seed(stream_key(self.seed, "order", epoch))
        return int(torch.randperm(self.size, generator=generator)[place])


def stream_key(*parts: int | str) -> int:
    """Return the seed of a random stream that belongs to ``parts`` alone."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class FileSource:
    """Lines ``{"image": PATH, "question": TEXT, "answer": TEXT}``; paths are relative to the file's folder."""

    path: Path
    lines: tuple[tuple[int, Path, str, str], ...]  # number, image, question, answer
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.lines)

    def example(self, family: Family, processor: Any, number: int) -> Example:
        from PIL import Image, UnidentifiedImageError

        line, path, question, answer = self.lines[number]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
            content = [{"type": "image", "url": image}, {"type": "text", "text": question}]
            return Example(
                family.build_prompt(processor, [{"role": "user", "content": content}], question),
                answer,
            )
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
            raise TrainingDataError(f"{self.path}, line {line}: cannot be used: {error}") from error


def read_file(path: Path) -> FileSource:
    """Read a JSONL file; every line is checked, images are opened when they are needed.

    Raises:
        TrainingDataError: the file or a line cannot be used.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise TrainingDataError(f"{path}: cannot be read: {error.strerror}; name a JSONL file or a task") from error
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{path}: is not UTF-8 text: {error}") from error
    lines = tuple(_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    if not lines:
        raise TrainingDataError(
            f'{path}: holds no lines; write {{"image": ..., "question": ..., "answer": ...}} per line'
        )
    return FileSource(path, lines, {"kind": "file", "name": path.name, "sha256": hashlib.sha256(content).hexdigest()})


def _line(path: Path, number: int, line: str) -> tuple[int, Path, str, str]:
    where = f"{path}, line {number}"
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise TrainingDataError(f"{where}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise TrainingDataError(f'{where}: must be an object {{"image": ..., "question": ..., "answer": ...}}')
    for key in ("image", "question", "answer"):
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            raise TrainingDataError(f"{where}: '{key}' must be a text that is not empty")
    image = path.parent / fields["image"]
    if not image.is_file():
        raise TrainingDataError(f"{where}: there is no image {image}; paths are relative to the folder of the file")
    return number, image, fields["question"], fields["answer"].strip()


@dataclass(frozen=True)
class TaskSource:
    """Documents that an lmms-eval task evaluates on; those that an evaluation answers must be skipped here."""

    task: Any
    name: str
    numbers: range
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.numbers)

    def example(self, family: Family, processor: Any, number: int) -> Example:
        index = self.numbers[number]
        document = self.task.eval_docs[index]
        answer = self.task.doc_to_target(document)
        if isinstance(answer, list) and answer:
            answer = answer[0]
        if not isinstance(answer, str) or not answer.strip():
            raise TrainingDataError(
                f"task {self.name}, document {index}: its target is {answer!r}, not a text; write the documents with"
                " their answers to a JSONL file"
            )
        prompt = render_document(family, processor, (self.task, self.name, self.details["split"], index))
        return Example(prompt, answer.strip())


def read_task(name: str, skip: int, lmms_eval_name: str) -> TaskSource:
    """Take the documents of an lmms-eval task from number ``skip`` on.

    Raises:
        CalibrationError, TrainingDataError: there is no such task, it is a group or not generative, or ``skip`` leaves
            nothing of it.
    """
    task = load_task(name, lmms_eval_name)
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    total = len(task.eval_docs)
    if skip >= total:
        raise TrainingDataError(f"task {name}: --skip {skip} leaves none of its {total} documents")
    return TaskSource(task, name, range(skip, total), {"kind": "task", "name": name, "split": split, "skip": skip})


@dataclass(frozen=True)
class ShapesSource:
    """The demo's generator: endless pictures of its training split, with one question each, of the held-out mix."""

    seed: int
    size: int | None = None
    details: dict[str, Any] = field(default_factory=lambda: {"kind": "generator", "name": SHAPES})

    def example(self, family: Family, processor: Any, number: int) -> Example:
        from PIL import Image

        from lmms_eval_stability.demo.dataset import KIND_QUOTA, stream
        from lmms_eval_stability.demo.questions import KINDS, all_questions, pick
        from lmms_eval_stability.demo.scenes import decode_jpeg, draw_scene, encode_jpeg, render
        from lmms_eval_stability.demo.training.prompts import INSTRUCTION

        rng = stream("train", "pruner", number, seed=self.seed)
        scene = draw_scene(rng)
        asked = all_questions(scene)
        kinds = [kind for kind in KINDS if asked[kind]]
        weights = [KIND_QUOTA[kind] for kind in kinds]
        kind = kinds[int(rng.choice(len(kinds), p=[weight / sum(weights) for weight in weights]))]
        question = pick(rng, asked[kind], set())
        assert question is not None
        image = Image.fromarray(decode_jpeg(encode_jpeg(render(scene))))
        text = question.text + INSTRUCTION
        content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
        return Example(family.build_prompt(processor, [{"role": "user", "content": content}], text), question.answer)


@dataclass(frozen=True)
class Batch:
    """Prompts with their answers behind them, padded on the left: B rows of L columns.

    Attributes:
        inputs: what the model takes.
        visual: (B, L) bool, visual tokens.
        text: (B, L) bool, the text tokens of the prompts that the modules read.
        lengths: tokens of each row's answer.
    """

    inputs: dict[str, Any]
    visual: Tensor
    text: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Return the batch on a device, its pixels in a dtype."""
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return Batch(moved, self.visual.to(device), self.text.to(device), self.lengths)


def collate(family: Family, processor: Any, config: Any, examples: Sequence[Example], text: str) -> Batch:
    """Encode examples; ``text`` says which text tokens the modules read, see ``PrunerDesign``.

    Raises:
        TrainingDataError: an example has no image, or its answer no tokens.
    """
    placeholders = family.placeholder_ids(config)
    tokenizer = processor.tokenizer
    try:
        answers = [answer_ids(tokenizer, e.prompt.text, _spaced(e), placeholders) for e in examples]
    except ValueError as error:
        raise TrainingDataError(str(error)) from error
    inputs = dict(family.encode(processor, [example.prompt for example in examples]))
    inputs = append_answers(inputs, answers, tokenizer.pad_token_id)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    columns = torch.arange(ids.shape[1])
    prompt = real & (columns < ids.shape[1] - torch.tensor([len(answer) for answer in answers])[:, None])
    visual = prompt & torch.isin(ids, torch.tensor(placeholders))
    if not bool(visual.any(dim=1).all()):
        raise TrainingDataError("an example has no image; a pruner learns from prompts with images only")
    words = prompt & ~visual
    if text == "question":
        last = (visual * columns).amax(dim=1, keepdim=True)
        after = words & (columns > last)
        words = torch.where(after.any(dim=1, keepdim=True), after, words)
    return Batch(inputs, visual, words, tuple(map(len, answers)))


def _spaced(example: Example) -> str:
    """Return the answer with the space that stands before it, unless the prompt ends in white space."""
    return example.answer if example.prompt.text[-1:].isspace() else f" {example.answer}"
