"""Time and memory of `lmms-eval-stability compare` on a pair of VQAv2-sized logs, against a plain pandas script.

    python benchmarks/compare_speed.py                # 214,354 rows a run, about 600 bytes a row
    python benchmarks/compare_speed.py --rows 20000
    python benchmarks/compare_speed.py --per-image 5  # with image ids, so that intervals come from the bootstrap

Both programs run in processes of their own, one after the other, several times; the median counts. The rival reads
both logs with `pandas.read_json(lines=True)`, merges on doc_id and prints DR and NDR: what a careful user writes by
hand. It checks nothing, knows no answer normalisation and writes no files. On a busy machine, compare processor times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

VQAV2_ROWS = 214_354
LIMIT_SECONDS, LIMIT_MB = 5.0, 500.0

RIVAL = """
import sys
import pandas as pd
base, run = (pd.read_json(path, lines=True) for path in sys.argv[1:3])
pairs = base.merge(run, on="doc_id", suffixes=("_baseline", "_run"))
dr = (pairs.filtered_resps_baseline != pairs.filtered_resps_run).mean()
ndr = ((pairs.exact_match_baseline >= 0.9) & (pairs.exact_match_run < 0.9)).mean()
print(len(pairs), dr, ndr)
"""

WORDS = "man dog table red two umbrella kitchen train bench left what color is the of behind near how many people"
ANSWERS = ["yes", "no", "2", "red", "tennis racket", "on the table", "Man", "white", "3", "frisbee", "skateboarding"]


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, processor seconds and peak resident memory (MB) of one process."""

    seconds: float
    processor: float
    megabytes: float


def write_run(folder: Path, rows: int, model: str, changed: float, per_image: int = 0) -> Path:
    """A run of `rows` VQAv2-like samples, `changed` of them with another answer. Returns the samples file.

    With `per_image`, about so many questions share an image, whose fingerprint is in the log.
    """
    questions, answers = random.Random(1), random.Random(model)
    words = WORDS.split()
    home = folder / "llava-hf__llava-1.5-7b-hf"
    home.mkdir(parents=True)
    path = home / "20251120_140128_samples_vqav2_val.jsonl"
    total = 0.0
    with path.open("w", encoding="utf-8") as stream:
        for doc_id in range(rows):
            question = " ".join(questions.choices(words, k=9)).capitalize() + "?"
            answer, target = questions.choice(ANSWERS), questions.choice(ANSWERS)
            if answers.random() < changed:
                answer = answers.choice(ANSWERS)
            partly = random.Random(f"{doc_id}{answer}").choice([0.0, 0.0, 0.3, 0.6, 0.9, 1.0])
            score = 1.0 if answer == target else partly
            total += score
            measured = {
                "input_tokens": 600 + len(question) % 20,
                "output_tokens": 2,
                "input_fingerprint": f"{questions.getrandbits(128):032x}",
                "visual_tokens": [576, 288],
                "visual_token_layers": [0, 3],
                "prefill_ms": 41.25,
                "decode_ms": 18.5,
                "answer_logprob": -0.125,
                "first_token_logprobs": [[3869, "Yes", -0.11], [1939, "No", -2.3]],
            }
            if per_image:
                image = random.Random(doc_id).randrange(rows // per_image + 1)
                measured["image_fingerprint"] = f"{image * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"
            row = {
                "doc_id": doc_id,
                "target": target,
                "filtered_resps": answer,
                "token_counts": [measured],
                "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
                "exact_match": score,
                "input": f"{question}\nAnswer the question using a single word or phrase.",
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    results = {
        "results": {"vqav2_val": {"alias": "vqav2_val", "exact_match,none": total / rows}},
        "configs": {"vqav2_val": {"metric_list": [{"metric": "exact_match"}]}},
        "versions": {"vqav2_val": 0.0},
        "higher_is_better": {"vqav2_val": {"exact_match": True}},
        "config": {"model": model, "model_args": "pretrained=llava-hf/llava-1.5-7b-hf", "batch_size": "1"},
    }
    path.with_name("20251120_140128_results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def measure(command: list[str]) -> Cost:
    """Run a command to its end. Raises when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with exit code {process.returncode}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, kilobytes / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=VQAV2_ROWS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--per-image", type=int, default=0, help="questions per image; 0: no image ids")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = write_run(folder / "base", args.rows, "llava_baseline", 0.0, args.per_image)
        run = write_run(folder / "fastv", args.rows, "llava_fastv", 0.12, args.per_image)
        print(f"{args.rows} rows a run, {base.stat().st_size / args.rows:.0f} bytes a row")
        program = [sys.executable, "-m", "lmms_eval_stability.cli", "compare"]
        compare = [*program, str(folder / "base"), str(folder / "fastv")]
        programs = {
            "compare, table": compare,
            "compare, table and -o": [*compare, "-o", str(folder / "report")],
            "pandas.read_json + merge": [sys.executable, "-c", RIVAL, str(base), str(run)],
        }
        medians = {}
        for label, command in programs.items():
            costs = [measure(command) for _ in range(args.repeats)]
            seconds, processor = (
                statistics.median(getattr(c, name) for c in costs) for name in ("seconds", "processor")
            )
            cost = Cost(seconds, processor, max(c.megabytes for c in costs))
            medians[label] = cost
            print(f"{label:<26} {seconds:6.2f} s  {processor:6.2f} s of processor time  {cost.megabytes:6.0f} MB")
    ours, full, rival = medians.values()
    print(
        f"rival / compare: time x{rival.seconds / ours.seconds:.2f}, "
        f"processor time x{rival.processor / ours.processor:.2f}, memory x{rival.megabytes / ours.megabytes:.2f}"
    )
    if args.rows == VQAV2_ROWS and (full.seconds > LIMIT_SECONDS or full.megabytes > LIMIT_MB):
        raise SystemExit(f"over the limit of {LIMIT_SECONDS:g} s and {LIMIT_MB:g} MB")


if __name__ == "__main__":
    main()
