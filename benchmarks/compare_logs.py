"""Logs for `compare.py`: runs of VQAv2's size and layout, in three shapes, every run with answers of its own.

    python benchmarks/compare_logs.py FOLDER --shape plain --rows 214354 --runs 48

Shapes: `plain`, what lmms-eval's own models log (about 350 bytes a row); `measured`, what models of this package log,
with fingerprints of input and image, tokens per stage, times and log-probabilities (about 800 bytes); `image` and
`text`, the same with the record of a perturbation (about 950 bytes). Images are shared by five questions on average;
under image perturbations no two inputs show the same pixels.

The first run is the baseline; each other one answers an eighth of the questions differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAMP = "20251120_140128"
TASKS = {
    "plain": "vqav2_val",
    "measured": "vqav2_val",
    "image": "vqav2_val_image_perturbed",
    "text": "vqav2_val_text_perturbed",
}
WORDS = "man dog table red two umbrella kitchen train bench left what color is the of behind near how many people"
ANSWERS = ["yes", "no", "2", "red", "tennis racket", "on the table", "Man", "white", "3", "frisbee", "skateboarding"]
CHANGED, PER_IMAGE = 1 / 8, 5.3
DOC_HASH = "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"


@dataclass(frozen=True)
class Question:
    """What all runs have in common about one document."""

    doc_id: int
    text: str
    answer: str
    target: str
    image: int


def questions(rows: int) -> Iterator[Question]:
    """The documents, the same ones in every call."""
    draw = random.Random(1)
    words, images = WORDS.split(), max(1, round(rows / PER_IMAGE))
    for doc_id in range(rows):
        text = " ".join(draw.choices(words, k=9)).capitalize() + "?"
        yield Question(doc_id, text, draw.choice(ANSWERS), draw.choice(ANSWERS), draw.randrange(images))


def write_run(folder: Path, shape: str, rows: int, number: int) -> Path:
    """One run, the baseline if `number` is 0. Returns the samples file."""
    task = TASKS[shape]
    home = folder / f"run{number}" / "llava-hf__llava-1.5-7b-hf"
    home.mkdir(parents=True)
    path = home / f"{STAMP}_samples_{task}.jsonl"
    draw = random.Random(f"run {number}")
    total = 0.0
    with path.open("w", encoding="utf-8") as stream:
        for one in questions(rows):
            answer = draw.choice(ANSWERS) if number and draw.random() < CHANGED else one.answer
            score = 1.0 if answer == one.target else (0.0, 0.0, 0.3, 0.6, 0.9)[hash_of(f"{one.doc_id}{answer}") % 5]
            total += score
            if shape == "plain":
                stream.write(
                    f'{{"doc_id": {one.doc_id}, "target": "{one.target}", "filtered_resps": "{answer}", '
                    f'"token_counts": [{{"output_tokens": 2}}], "doc_hash": "{DOC_HASH}", "exact_match": {score}, '
                    f'"input": "{one.text}\\nAnswer the question using a single word or phrase."}}\n'
                )
            else:
                row = measured_row(one, answer, score, shape, number, draw)
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    model = "llava_baseline" if number == 0 else "llava_fastv"
    results = results_json(task, shape, total / rows, model, f"k=3,r={number / 100}" if number else "")
    path.with_name(f"{STAMP}_results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def measured_row(one: Question, answer: str, score: float, shape: str, number: int, draw: random.Random) -> Any:
    """A line as models of this package write it."""
    seen = f"{one.doc_id}" if shape == "image" else f"image {one.image}"
    first = -0.6 * draw.random()
    others = sorted((first - 12 * draw.random() for _ in range(4)), reverse=True)
    tops = [[draw.randrange(32_000), word, round(p, 6)] for word, p in zip(ANSWERS, (first, *others), strict=False)]
    measured: dict[str, Any] = {
        "input_tokens": 600 + len(one.text) % 20,
        "output_tokens": 2,
        "input_fingerprint": hashlib.blake2b(f"{one.text}{seen}".encode(), digest_size=16).hexdigest(),
        "image_fingerprint": hashlib.blake2b(seen.encode(), digest_size=16).hexdigest(),
        "visual_tokens": [576, 288] if number else [576],
        "visual_token_layers": [0, 3] if number else [0],
        "prefill_ms": round(40 + draw.random(), 3),
        "decode_ms": round(18 + draw.random(), 3),
        "first_token_logprobs": tops,
        "answer_logprob": round(first - draw.random(), 6),
    }
    row: dict[str, Any] = {
        "doc_id": one.doc_id,
        "target": one.target,
        "resps": f" {answer}",
        "filtered_resps": answer,
        "token_counts": [measured],
        "doc_hash": DOC_HASH,
        "exact_match": score,
    }
    if shape in ("image", "text"):
        level = hash_of(f"level {one.doc_id}")
        row["perturbation"] = {
            "method": f"method_{level % 20}",
            "severity": level // 20 % 5 + 1,
            "seed": level,
            "changed": level % 97 > 0,
            "output_sha": f"{level:016x}",
        }
    return row | {"input": f"{one.text}\nAnswer the question using a single word or phrase."}


def results_json(task: str, shape: str, mean: float, model: str, arguments: str) -> dict[str, Any]:
    config: dict[str, Any] = {"metric_list": [{"metric": "exact_match"}]}
    if task != TASKS["plain"]:
        config["metadata"] = [{"version": 0.0, "base_task": TASKS["plain"], "perturbation": {"modality": shape}}]
    return {
        "results": {task: {"alias": task, "exact_match,none": mean}},
        "configs": {task: config},
        "versions": {task: 0.0},
        "higher_is_better": {task: {"exact_match": True}},
        "config": {
            "model": model,
            "model_args": f"pretrained=llava-hf/llava-1.5-7b-hf,{arguments}".rstrip(","),
            "batch_size": "1",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(TASKS), default="plain")
    parser.add_argument("--rows", type=int, default=214_354)
    parser.add_argument("--runs", type=int, default=2, help="the baseline counts as one")
    args = parser.parse_args()
    for number in range(args.runs):
        write_run(args.folder, args.shape, args.rows, number)


if __name__ == "__main__":
    main()
