"""Every sample of a perturbed task without a model: what it draws, and its perturbed images or question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmms_eval_stability.tasks.perturbations.plan import PerturbationConfigError, PerturbationRecord, question_parts
from lmms_eval_stability.tasks.perturbations.sets import methods


@dataclass(frozen=True)
class WalkedSample:
    """One sample of a perturbed task.

    Attributes:
        doc_id: lmms-eval's number of the sample.
        sample: the id that its draw is keyed by.
        record: what happened to it; ``changed`` and ``output_sha`` are None where it was only planned.
    """

    doc_id: int
    sample: str
    record: PerturbationRecord

    def to_dict(self) -> dict[str, Any]:
        return {"doc_id": self.doc_id, "sample": self.sample, **self.record.to_dict()}


def load_perturbed_task(name: str, include_path: str | None = None) -> Any:
    """Return a perturbed task, loaded as lmms-eval loads it, with its data.

    Raises:
        PerturbationConfigError: there is no such task, or it is not perturbed.
    """
    import lmms_eval.models  # noqa: F401 - loads the plug-in
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    if name not in manager.all_tasks:
        raise PerturbationConfigError(
            f"lmms-eval knows no task '{name}'; name the folder of its YAML with --include-path"
        )
    loaded = manager.load_task_or_group([name], "chat")
    task = loaded.get(name)
    if not hasattr(task, "plan"):
        raise PerturbationConfigError(f"'{name}' is not one perturbed task")
    return task


def walk(task: Any, *, start: int = 0, limit: int | None = None, apply: bool = True) -> Iterator[WalkedSample]:
    """Yield the samples of a perturbed task in the order of its data.

    Args:
        start: the first sample's number.
        limit: at most so many samples.
        apply: perturb each sample, which fills the folder of perturbed images where one is named; otherwise only say
            what it would draw.
    """
    docs = task.eval_docs if apply else task.eval_docs_no_media
    end = len(docs) if limit is None else min(len(docs), start + limit)
    for doc_id in range(start, end):
        yield walk_one(task, docs, doc_id, apply=apply)


def walk_one(task: Any, docs: Any, doc_id: int, *, apply: bool) -> WalkedSample:
    """Return one sample; see `walk`."""
    doc = docs[doc_id]
    if apply:
        task.doc_to_messages(doc)
    key, record = task.sample_record(doc)
    return WalkedSample(doc_id, key.sample, record)


def neural_inputs(task: Any, *, limit: int | None = None) -> dict[str, list[str]]:
    """Return what a table of precomputed outputs must hold for a task: method -> the texts that it is applied to.

    Raises:
        PerturbationConfigError: the task perturbs images.
    """
    if task.plan.modality != "text":
        raise PerturbationConfigError(f"task {task.config.task} perturbs images; a table is for questions")
    docs = task.eval_docs_no_media
    texts: dict[str, list[str]] = {}
    for doc_id in range(len(docs) if limit is None else min(limit, len(docs))):
        _, record = task.sample_record(docs[doc_id])
        if "model" in methods("text")[record.method].needs:
            question = docs[doc_id][task.plan.question_field]
            texts.setdefault(record.method, []).extend(part for _, part in question_parts(question) if part is not None)
    return texts
