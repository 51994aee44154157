"""Which documents a model is calibrated on: lines of a JSONL, or documents of an lmms-eval task.

Prompts only, as the evaluation builds them, no answers. Which documents are taken depends on the seed and on what
identifies each of them, never on the order of a generator: more samples are always the fewer ones and others.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_stability.model_wrappers.quantization.make.errors import CalibrationError

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.families import Family, Prompt


@dataclass(frozen=True)
class Choice:
    """How documents are chosen.

    Attributes:
        samples: how many; all where there are fewer.
        seed: of the choice.
        skip: leave out the first documents, which an evaluation with ``--limit`` answers (tasks only).
    """

    samples: int = 128
    seed: int = 0
    skip: int = 0

    def of(self, source: str, ids: Sequence[str]) -> list[int]:
        """Return the positions of the chosen ones of ``ids``, ascending."""
        keys = [
            hashlib.blake2b(f"{self.seed}\x1f{source}\x1f{name}".encode(), digest_size=16).hexdigest() for name in ids
        ]
        return sorted(sorted(range(len(ids)), key=keys.__getitem__)[: self.samples])


@dataclass(frozen=True)
class CalibrationSet:
    """Documents chosen for calibration; ``render`` turns each into the prompt of a family.

    Attributes:
        source: file name or task name.
        available: documents that there were to choose from.
        ids: the chosen ones: line numbers or document numbers.
        details: what else is needed to choose the same again.
    """

    source: str
    available: int
    ids: tuple[int, ...]
    documents: tuple[Any, ...] = field(repr=False)
    render: Callable[[Family, Any, Any], Prompt] = field(repr=False)
    details: dict[str, Any] = field(default_factory=dict)

    def prompts(self, family: Family, processor: Any) -> list[Prompt]:
        """Return the prompts, in order."""
        return [self.render(family, processor, document) for document in self.documents]


@dataclass(frozen=True)
class Question:
    """A line of a calibration file."""

    line: int
    name: str  # of the image, as it stands in the file
    image: Path
    question: str


def is_file(calibration: str) -> bool:
    """Whether ``--calibration`` names a file and not a task."""
    return calibration.endswith((".jsonl", ".json")) or Path(calibration).is_file()


def read_file(path: Path, choice: Choice) -> CalibrationSet:
    """Read and choose lines ``{"image": PATH, "question": TEXT}``; paths are relative to the file's folder.

    Raises:
        CalibrationError: the file or a line cannot be used; every line is checked, every chosen image is opened.
    """
    if choice.skip:
        raise CalibrationError(f"{path}: --skip is for tasks; leave the lines out of the file")
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}; name a JSONL file or a task") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: is not UTF-8 text: {error}") from error
    questions = [_question(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise CalibrationError(f'{path}: holds no lines; write {{"image": "a.jpg", "question": "..."}} per line')
    chosen = [questions[i] for i in choice.of("", [f"{q.name}\x1f{q.question}" for q in questions])]
    for question in chosen:
        _open(path, question)
    return CalibrationSet(
        source=path.name,
        available=len(questions),
        ids=tuple(question.line for question in chosen),
        documents=tuple((path, question) for question in chosen),
        render=_render_question,
        details={"kind": "file", "sha256": hashlib.sha256(content).hexdigest()},
    )


def _question(path: Path, number: int, line: str) -> Question:
    where = f"{path}, line {number}"
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise CalibrationError(f"{where}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CalibrationError(f'{where}: must be an object {{"image": ..., "question": ...}}')
    for key in ("image", "question"):
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            raise CalibrationError(f"{where}: '{key}' must be a text that is not empty")
    image = path.parent / fields["image"]
    if not image.is_file():
        raise CalibrationError(f"{where}: there is no image {image}; paths are relative to the folder of the file")
    return Question(number, fields["image"], image, fields["question"])


def _open(path: Path, question: Question) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(question.image) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{path}, line {question.line}: {question.image} cannot be read: {error}") from error


def _render_question(family: Family, processor: Any, document: tuple[Path, Question]) -> Prompt:
    path, question = document
    content = [{"type": "image", "url": _open(path, question)}, {"type": "text", "text": question.question}]
    try:
        return family.build_prompt(processor, [{"role": "user", "content": content}], question.question)
    except ValueError as error:
        raise CalibrationError(f"{path}, line {question.line}: {error}") from error


def read_task(name: str, choice: Choice, lmms_eval_name: str) -> CalibrationSet:
    """Choose documents of an lmms-eval task, with the prompts that evaluating it gives the model.

    Args:
        name: task, as after ``lmms-eval --tasks``.
        choice: how many, which.
        lmms_eval_name: model by which the task chooses its arguments.

    Raises:
        CalibrationError: there is no such task, it is a group, or it is not generative.
    """
    task = load_task(name, lmms_eval_name)
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    total = len(task.eval_docs)
    if choice.skip >= total:
        raise CalibrationError(f"task {name}: --skip {choice.skip} leaves none of its {total} documents")
    numbers = range(choice.skip, total)
    chosen = [numbers[i] for i in choice.of(f"{name}\x1f{split}", [str(number) for number in numbers])]
    return CalibrationSet(
        source=name,
        available=len(numbers),
        ids=tuple(chosen),
        documents=tuple((task, name, split, number) for number in chosen),
        render=render_document,
        details={"kind": "task", "split": split, "skip": choice.skip},
    )


def load_task(name: str, lmms_eval_name: str) -> Any:
    """Return an lmms-eval task that generates answers; arguments and errors as ``read_task``."""
    import lmms_eval.models  # noqa: F401 - loads plug-ins, whose tasks are then known
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager("ERROR", model_name=lmms_eval_name)
    if name not in manager.all_tasks:
        close = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"; similar: {', '.join(close)}" if close else ""
        raise CalibrationError(f"--calibration {name}: there is no such file and no such task{hint}")
    if manager.task_index[name]["type"] in ("group", "tag"):
        raise CalibrationError(f"--calibration {name}: this is a group of tasks; name one of its tasks")
    try:
        task = get_task_dict([name], manager, task_type="chat")[name]
    except Exception as error:  # whatever the task's own code and the hub raise
        reason = error.__cause__ or error
        raise CalibrationError(f"task {name} cannot be loaded: {type(reason).__name__}: {reason}") from error
    if task.OUTPUT_TYPE != "generate_until":
        raise CalibrationError(f"task {name} sends {task.OUTPUT_TYPE} requests; name a task that generates answers")
    return task


def render_document(family: Family, processor: Any, document: tuple[Any, str, str, int]) -> Prompt:
    """Return the prompt of one document, given as (task, its name, split, number)."""
    from lmms_eval.protocol import ChatMessages

    task, name, split, number = document
    doc = task.eval_docs[number]
    shots = task.config.num_fewshot or 0
    context = task.fewshot_context(doc, shots, None, False, False, None)
    metadata = {"task": name, "doc_id": number, "repeats": task.config.repeats, "split": split}
    request = task.construct_requests(doc_id=number, ctx=context, metadata=metadata)
    doc_to_messages = request.args[1]
    messages = ChatMessages(messages=doc_to_messages(doc)).model_dump()["messages"]
    try:
        return family.build_prompt(processor, messages, context)
    except ValueError as error:
        raise CalibrationError(f"task {name}, document {number}: {error}") from error
