"""Held-out accuracy by kind of question: `python -m lmms_eval_stability.demo.training.evaluate [FOLDER]`.

Answers come from plain `generate` through the shipped processor and chat template, in batches; for a benchmark run
with logs use lmms-eval.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.demo import model_path
from lmms_eval_stability.demo.dataset import HeldOutQuestion, HeldOutSet, build_held_out
from lmms_eval_stability.demo.questions import KINDS
from lmms_eval_stability.demo.training.prompts import INSTRUCTION

MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Result:
    """Accuracy on one kind of question, beside what always giving the most frequent answer would score."""

    kind: str
    n: int
    accuracy: float
    majority: float


class Answerer:
    """Loads the model of a folder in float32 on the CPU and answers questions greedily."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def prompt(self, question: str) -> str:
        """Return the prompt that lmms-eval's chat models build for one picture and one question."""
        content = [{"type": "image"}, {"type": "text", "text": question + INSTRUCTION}]
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Answer one question per picture, as one left-padded batch."""
        text = [self.prompt(question) for question in questions]
        inputs = self.processor(images=list(images), text=text, padding=True, return_tensors="pt")
        output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]


def predictions(
    answerer: Answerer, held_out: HeldOutSet, questions: Sequence[HeldOutQuestion], batch_size: int = 16
) -> Iterator[str]:
    """Yield the answers to `questions`, in order."""
    pictures = {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in held_out.images.items()}
    for start in range(0, len(questions), batch_size):
        rows = questions[start : start + batch_size]
        yield from answerer([pictures[row.image_id] for row in rows], [row.question for row in rows])


def tabulate(questions: Sequence[HeldOutQuestion], answers: Sequence[str]) -> list[Result]:
    """Return the result of each kind that occurs, then that of all kinds together."""
    results = []
    for kind in (*KINDS, "all"):
        chosen = [(row, answer) for row, answer in zip(questions, answers, strict=True) if kind in (row.kind, "all")]
        if chosen:
            right = sum(row.answer == answer for row, answer in chosen)
            most = Counter(row.answer for row, _ in chosen).most_common(1)[0][1]
            results.append(Result(kind, len(chosen), right / len(chosen), most / len(chosen)))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Print the held-out accuracy of a model by kind of question."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="model folder (default: the shipped model)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT questions")
    args = parser.parse_args(argv)
    held_out = build_held_out()
    questions = held_out.questions[: args.limit]
    answers = list(predictions(Answerer(args.folder or model_path()), held_out, questions))
    print(f"{'kind':<16}{'n':>6}{'accuracy':>10}{'majority':>10}")
    for result in tabulate(questions, answers):
        print(f"{result.kind:<16}{result.n:>6}{result.accuracy:>10.1%}{result.majority:>10.1%}")


if __name__ == "__main__":
    main()
