"""Tasks that show a model perturbed images or questions of another task, and score its answers as that task does.

A YAML of two keys makes one, of any task that lmms-eval knows:

    task: gqa_image_perturbed
    base_task: gqa
    perturbation: {modality: image, set: paper-96, seed: 0}

Everything else is the base task's: data, prompts, arguments per model, filters, metrics. Any other key of the YAML
overrides the base task's. Only the question is perturbed, not what the task puts before, after or between (post prompt,
answer options, hints), and the answer is scored against the document as it was.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from loguru import logger

from lmms_eval_stability.tasks.perturbations.assignment import SampleKey
from lmms_eval_stability.tasks.perturbations.plan import (
    PerturbationConfigError,
    PerturbationPlan,
    PerturbationRecord,
    readable_image,
)

#: Columns that hold a question's id in lmms-eval's data sets, in the order in which they are looked for.
ID_FIELDS = ("question_id", "questionId", "qid", "id", "index", "idx", "sample_id")
IMAGE_ID_FIELDS = ("image_id", "imageId", "img_id", "image_name", "image_path")
_OUTPUT_TYPES = ("generate_until", "loglikelihood", "multiple_choice")
_PROBE = "Lorem ipsum dolor sit amet?"


class PerturbedTask:
    """What a perturbed task does otherwise than its base task; goes before the base task's class in the bases."""

    plan: PerturbationPlan
    config: Any
    lmms_eval_specific_kwargs: Any

    def __init__(self, plan: PerturbationPlan, **kwargs: Any) -> None:
        self.plan = plan
        self._records: dict[tuple[str, str], PerturbationRecord] = {}
        self._questions: dict[tuple[str, str], str] = {}  # lmms-eval asks for a prompt several times
        super().__init__(**kwargs)
        name, output_type = self.config.task, self.config.output_type
        if output_type not in _OUTPUT_TYPES:
            raise PerturbationConfigError(
                f"task {name}: its base task asks for {output_type}; perturbed are tasks of {', '.join(_OUTPUT_TYPES)}"
            )
        self._split = self.config.test_split or self.config.validation_split
        first = self.task_docs[0]  # type: ignore[attr-defined]
        self._id_field = self._column("id_field", plan.id_field, ID_FIELDS, first)
        if plan.per_image:
            self._id_field = self._column("image_id_field", plan.image_id_field, IMAGE_ID_FIELDS, first)
        else:
            self._warn_of_shared_ids()
        if plan.modality == "text":
            self._check_question(first)

    def _column(self, option: str, asked: str | None, usual: tuple[str, ...], doc: Mapping[str, Any]) -> str:
        found = [asked] if asked else [name for name in usual if name in doc]
        if not found or found[0] not in doc:
            raise PerturbationConfigError(
                f"task {self.config.task}: no column {asked or 'that identifies a sample'} in its data; name one with"
                f" perturbation: {{{option}: ...}}; there are {', '.join(map(str, doc))}"
            )
        return found[0]

    def _warn_of_shared_ids(self) -> None:
        ids = self.dataset_no_image[self._split][self._id_field]  # type: ignore[attr-defined]
        shared = len(ids) - len(set(map(str, ids)))
        if shared:
            logger.warning(
                f"task {self.config.task}: {shared} of {len(ids)} samples share their '{self._id_field}' with another,"
                " and so its level; another column can be named with perturbation: {id_field: ...}"
            )

    def _check_question(self, doc: Mapping[str, Any]) -> None:
        """Refuse a question that does not reach the prompt: every sample would count as perturbed and be as before."""
        name, field = self.config.task, self.plan.question_field
        if not isinstance(doc.get(field), str):
            raise PerturbationConfigError(
                f"task {name}: no text in column '{field}' of its data; name the question's column with"
                f" perturbation: {{question_field: ...}}; there are {', '.join(map(str, doc))}"
            )
        prompts = [self._prompt_texts({**doc, field: text}) for text in (_PROBE, _PROBE.upper())]
        if prompts[0] == prompts[1]:
            raise PerturbationConfigError(
                f"task {name}: its prompt does not contain column '{field}'; name the question's column with"
                " perturbation: {question_field: ...}"
            )

    def _prompt_texts(self, doc: dict[str, Any]) -> Any:
        """Return the words of a document's prompt, not perturbed."""
        if isinstance(self, ConfigurableMessagesTask) and callable(self.config.doc_to_messages):
            messages = super().doc_to_messages(doc)  # type: ignore[misc]
            return [part["text"] for turn in messages for part in turn["content"] if part["type"] == "text"]
        return super().doc_to_text(doc)  # type: ignore[misc]

    def _key(self, doc: Mapping[str, Any]) -> SampleKey:
        return self.plan.key(str(self._split), doc[self._id_field])

    def _mine(self, doc: Mapping[str, Any]) -> tuple[str, str]:
        """Return what tells a sample apart in this run, also where ids are shared."""
        return str(doc[self._id_field]), str(doc.get(self.plan.question_field))

    def _where(self, doc: Mapping[str, Any]) -> str:
        return f"task {self.config.task}, {self._id_field} {doc[self._id_field]}"

    def _ready(self) -> bool:
        """Whether the task is loaded; lmms-eval's constructor already asks for the first document's prompt."""
        return hasattr(self, "_id_field")

    def _with_question(self, doc: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.plan.modality != "text" or not self._ready():
            return doc
        field, mine = self.plan.question_field, self._mine(doc)
        if mine not in self._questions:
            self._questions[mine], self._records[mine] = self.plan.question(self._key(doc), doc[field])
        return {**doc, field: self._questions[mine]}

    def _perturbed(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        opened = [readable_image(item, self._where(doc)) for item in visuals]
        images, self._records[self._mine(doc)] = self.plan.images(self._key(doc), opened)
        return images

    def doc_to_text(self, doc: dict[str, Any]) -> Any:
        """Return the base task's prompt around the perturbed question."""
        return super().doc_to_text(self._with_question(doc))  # type: ignore[misc]

    def doc_to_visual(self, doc: dict[str, Any]) -> Any:
        """Return the document's images, perturbed."""
        visuals = super().doc_to_visual(doc)  # type: ignore[misc]
        if self.plan.modality != "image" or not self._ready() or not visuals:
            return visuals
        return self._perturbed(doc, visuals)

    def doc_to_messages(self, doc: dict[str, Any], **rounds: Any) -> Any:
        """Return the base task's messages with the perturbed question or images."""
        if not callable(self.config.doc_to_messages):  # then they are made of doc_to_text and doc_to_visual
            return super().doc_to_messages(doc, **rounds)  # type: ignore[misc]
        messages = super().doc_to_messages(self._with_question(doc), **rounds)  # type: ignore[misc]
        if self.plan.modality == "image":
            parts = [part for turn in messages for part in turn["content"] if part["type"] not in ("text", "audio")]
            for part, image in zip(parts, self._perturbed(doc, [part["url"] for part in parts]), strict=True):
                part["url"] = image
        return messages

    def sample_record(self, doc: Mapping[str, Any]) -> tuple[SampleKey, PerturbationRecord]:
        """Return a document's key and what happened to it, or will happen if it was not shown yet."""
        key = self._key(doc)
        return key, self._records.get(self._mine(doc)) or self.plan.planned(key)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Any:
        """Refuse examples in the prompt, which would be perturbed or not depending on the model's interface."""
        if self.config.num_fewshot:
            raise PerturbationConfigError(f"task {self.config.task}: perturbed tasks take no examples (num_fewshot)")
        return super().construct_requests(doc_id, ctx, **kwargs)  # type: ignore[misc]

    def process_results(self, doc: dict[str, Any], results: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score as the base task does; ``perturbation``, which is not averaged, goes to the sample log."""
        _, record = self.sample_record(doc)
        scores = super().process_results(doc, results, *args, **kwargs)  # type: ignore[misc]
        return {**scores, "perturbation": record.to_dict()}


@functools.cache
def _class_of(base: type) -> type:
    return type(f"Perturbed{base.__name__}", (PerturbedTask, base), {})


def is_perturbed(config: Any) -> bool:
    """Whether a task's YAML names a base task and a perturbation."""
    return isinstance(config, Mapping) and "base_task" in config and "perturbation" in config


def make_task(manager: Any, name: str, config: Mapping[str, Any], task_type: str) -> Any:
    """Return the task object of a perturbed task.

    Args:
        manager: lmms-eval's task manager.
        name: the perturbed task's name.
        config: its YAML, with ``base_task`` and ``perturbation``.
        task_type: ``simple`` or ``chat``, as the model wants it.

    Raises:
        PerturbationError: the YAML cannot be followed; the message names the task.
    """
    base_task = config["base_task"]
    if not isinstance(base_task, str) or not (manager._name_is_task(base_task) or _is_python(manager, base_task)):
        raise PerturbationConfigError(
            f"task {name}: base_task {base_task!r} is not one task that lmms-eval knows (a group has several)"
        )
    base = dict(manager._get_config(base_task))
    if is_perturbed(base):
        raise PerturbationConfigError(f"task {name}: its base task {base_task} is itself perturbed")
    plan = PerturbationPlan.from_config(name, base_task, config["perturbation"])
    own = {key: value for key, value in config.items() if key not in ("base_task", "perturbation")}
    for key in ("tag", "group", "task_alias"):  # the base task's lists do not grow by its perturbed twins
        base.pop(key, None)
    merged = {**base, **own, "task": name}
    merged["metadata"] = _with_plan(merged.get("metadata"), base_task, plan)
    class_ = merged.pop("class", ConfigurableMessagesTask if task_type == "chat" else ConfigurableTask)
    if not (inspect.isclass(class_) and issubclass(class_, ConfigurableTask)):
        raise PerturbationConfigError(f"task {name}: its base task {base_task} is not a configurable task")
    accepted = inspect.signature(class_.__init__).parameters
    arguments = {"config": merged, "model_name": manager.model_name}
    return _class_of(class_)(plan, **{key: value for key, value in arguments.items() if key in accepted})


def _is_python(manager: Any, name: str) -> bool:
    return bool(manager._name_is_python_task(name))


def _with_plan(metadata: Any, base_task: str, plan: PerturbationPlan) -> Any:
    """Return a task's metadata, which the results of a run contain, with the perturbation described."""
    described = {"base_task": base_task, "perturbation": plan.describe()}
    if isinstance(metadata, Mapping):
        return {**metadata, **described}
    return [*(metadata or []), described]
