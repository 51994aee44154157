"""LLaVA-Med's question file and its images, checked before a model is asked anything.

The file is `data/eval/llava_med_eval_qa50_qa.jsonl` of github.com/microsoft/LLaVA-Med: one JSON object per line with
question_id, image (a file name), text, gpt4_answer, fig_label, fig_caption, in_text_mention, domain (five flags) and
type. The images are figures of PubMed Central articles, fetched with the script and the list of that repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

QUESTIONS_VARIABLE, IMAGES_VARIABLE = "LLAVA_MED_QUESTIONS", "LLAVA_MED_IMAGES"
#: The five flags of a question, in the order in which LLaVA-Med's `summarize_gpt_review.py` looks for the first one
#: set: a figure flagged as histology and gross counts as histology.
DOMAINS = {"chest_xray": "chest_xray", "mri": "mri", "histology": "histology", "gross": "gross", "ct_scan": "ct"}
KINDS = {
    "conversation": "conversation",
    "detailed_description": "description",
    "detail_description": "description",
}
_PLACEHOLDER = "<image>"
_SHOWN = 3


class MissingDataError(FileNotFoundError):
    """The question file or the images are not where they were said to be, or nobody said where they are."""


class QuestionFileError(ValueError):
    """A line of the question file is not a question."""


@dataclass(frozen=True)
class Source:
    """Where the data is."""

    questions: Path
    images: Path

    @classmethod
    def find(cls, dataset_kwargs: Mapping[str, Any] | None) -> Source:
        """Return the paths that the task's YAML names, else those of the environment.

        Raises:
            MissingDataError: neither names the questions, or what is named is not there.
        """
        named = dict(dataset_kwargs or {})
        unknown = sorted(set(named) - {"questions", "images"})
        if unknown:
            raise MissingDataError(
                f"llava_med_conversation does not take dataset_kwargs {', '.join(unknown)}; it takes questions and"
                " images"
            )
        questions = named.get("questions") or os.getenv(QUESTIONS_VARIABLE)
        if not questions:
            raise MissingDataError(
                "llava_med_conversation needs data that cannot be redistributed. Get llava_med_eval_qa50_qa.jsonl and"
                " its images as github.com/microsoft/LLaVA-Med describes, then set"
                f" {QUESTIONS_VARIABLE} to the file and {IMAGES_VARIABLE} to the folder of the images"
            )
        file = Path(questions).expanduser()
        if not file.is_file():
            raise MissingDataError(f"llava_med_conversation: no question file {file}; correct {QUESTIONS_VARIABLE}")
        images = named.get("images") or os.getenv(IMAGES_VARIABLE)
        folder = Path(images).expanduser() if images else file.parent / "images"
        if not folder.is_dir():
            raise MissingDataError(
                f"llava_med_conversation: no folder of images {folder}; set {IMAGES_VARIABLE} to the folder that holds"
                " them"
            )
        return cls(file, folder)


def load_questions(source: Source) -> datasets.Dataset:
    """Return the questions in the order of the file.

    Columns: question_id, image_id (the image's file name), kind, domain ("" for none), question, reference, context and
    image.

    Raises:
        QuestionFileError: a line is not a question, a question occurs twice, or there is none.
        MissingDataError: images are missing.
    """
    rows, missing, seen = [], [], set()
    for where, entry in _lines(source.questions):
        row = _row(where, entry)
        if row["question_id"] in seen:
            raise QuestionFileError(f"{where}: question {row['question_id']} occurs a second time")
        seen.add(row["question_id"])
        image = source.images / row["image_id"]
        if not image.is_file():
            missing.append(row["image_id"])
        rows.append({**row, "image": str(image)})
    if not rows:
        raise QuestionFileError(f"{source.questions} holds no question")
    if missing:
        names = sorted(set(missing))
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise MissingDataError(
            f"llava_med_conversation: {source.images} lacks {len(names)} of the images ({shown}), which"
            f" {len(missing)} of {len(rows)} questions are about; fetch them, or set {IMAGES_VARIABLE} to the folder"
            " that holds them"
        )
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise QuestionFileError(f"{where}: not JSON ({error})") from error
            if not isinstance(entry, dict):
                raise QuestionFileError(f"{where}: not a JSON object")
            yield where, entry


def _row(where: str, entry: dict[str, Any]) -> dict[str, str]:
    needed = ("question_id", "image", "text", "gpt4_answer", "type", "domain", "fig_caption")
    lacking = [name for name in needed if name not in entry]
    if lacking:
        raise QuestionFileError(f"{where}: lacks {', '.join(lacking)}; is this llava_med_eval_qa50_qa.jsonl?")
    kind, flags = entry["type"], entry["domain"]
    if kind not in KINDS:
        raise QuestionFileError(f"{where}: type {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(flags, dict) or not set(flags) <= set(DOMAINS):
        raise QuestionFileError(f"{where}: domain must be flags of {', '.join(DOMAINS)}, not {flags!r}")
    return {
        "question_id": str(entry["question_id"]),
        "image_id": str(entry["image"]),
        "kind": KINDS[kind],
        "domain": next((column for name, column in DOMAINS.items() if flags.get(name)), ""),
        "question": str(entry["text"]).replace(_PLACEHOLDER, "").strip(),
        "reference": str(entry["gpt4_answer"]),
        "context": _context(entry),
    }


def _context(entry: dict[str, Any]) -> str:
    """Return what the judge, who does not see the figure, is told about it: caption and mentions in the article."""
    label, caption = entry.get("fig_label") or "Figure", entry["fig_caption"]
    mentions = entry.get("in_text_mention") or []
    mentions = [mentions] if isinstance(mentions, str) else mentions
    texts = [mention["tokens"] if isinstance(mention, dict) else str(mention) for mention in mentions]
    lines = [f"Caption of the figure: {label}: {caption}"]
    if texts:
        lines += ["Mentioned in the article:", *(f"- {text}" for text in texts)]
    return "\n".join(lines)
