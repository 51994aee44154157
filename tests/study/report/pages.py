"""Runs written to disk, compared, and gathered for a page, as the command does it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval_stability import Comparison, compare_runs
from lmms_eval_stability.report.html import PageCollector

from ..conftest import STAMP, results_json, sample

#: Texts that are markup to whoever takes them for it.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    "]]></textarea><svg onload=window.hacked=1>",
    "\u2028window.hacked = 1;\u2029",
    "javascript:window.hacked=1",
    "&lt;b&gt; &amp; \"quotes\" 'single' `ticks` ${window.hacked = 1} {{data}} \\u003cb\\u003e",
    "\u202eright to left \u0000 nul \ud800 half",
    "$\\frac{1}{0}$ \\input{x}",
)


@dataclass(frozen=True)
class Study:
    """A comparison and the pairs that its `on_pairs` received."""

    comparison: Comparison
    pairs: PageCollector


def line(doc_id: int, answer: str, score: float, **more: Any) -> dict[str, Any]:
    """A logged line with the measurements that a model of this package writes."""
    margin = more.pop("margin", None)
    counts: dict[str, Any] = {"output_tokens": 1}
    if margin is not None:
        counts["first_token_logprobs"] = [[1, "a", -0.1], [2, "b", -0.1 - margin], [3, "c", -20.0]]
    counts |= more.pop("counts", {})
    return sample(doc_id, answer, score, **{"token_counts": [counts], **more})


def write_run(folder: Path, tasks: Mapping[str, Sequence[Mapping[str, Any]]], model: str = "m", args: str = "") -> Path:
    """One run of lmms-eval; JSON as it writes it, lone surrogates escaped."""
    home = folder / "checkpoint"
    home.mkdir(parents=True)
    for task, rows in tasks.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (home / f"{STAMP}_samples_{task}.jsonl").write_text(text, encoding="utf-8")
    document = results_json({task: [dict(row) for row in rows] for task, rows in tasks.items()}, model, args)
    (home / f"{STAMP}_results.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def compared(baseline: Path, *runs: Path, **options: Any) -> Study:
    """The comparison of the runs with the baseline."""
    pairs = PageCollector()
    return Study(compare_runs(baseline, runs, on_pairs=pairs.add_pairs, **options), pairs)


def small_study(folder: Path) -> Study:
    """Two tasks, two runs. gqa: docs 0 and 1 break under both, 2 under the first run only, 3 is gained, 4 changes and
    stays wrong, 5 stays. vqav2: doc 7 breaks under the second run."""
    scores = {"base": "111001", "one": "000101", "two": "001001"}
    words = {
        "base": "red blue two no maybe yes",
        "one": "cat dog cow good sheep yes",
        "two": "cat emu two no maybe yes",
    }
    margins = (0.5, 0.25, 3.0, 1.0, 2.0, 6.0)
    kept = {"base": [100], "one": [100, 50], "two": [100, 20]}
    times = {"base": 30.0, "one": 20.0, "two": 10.0}
    runs = {}
    for name, marks in scores.items():
        gqa = [
            line(
                i, answer, float(mark), margin=margins[i], perturbation={"method": "blur" if i < 3 else "fog"},
                counts={"prefill_ms": times[name], "decode_ms": 0.0, "run": _FACTS,
                        "visual_tokens": kept[name], "visual_token_layers": [0] if name == "base" else [0, 2]},
            )
            for i, (mark, answer) in enumerate(zip(marks, words[name].split(), strict=True))
        ]  # fmt: skip
        vqa = [line(7, "left" if name != "two" else "right", float(name != "two"))]
        args = "" if name == "base" else f"pretrained=x,variant={name}"
        runs[name] = write_run(folder / name, {"gqa": gqa, "some_task": vqa}, f"model_{name}", args)
    return compared(runs["base"], runs["one"], runs["two"])


_FACTS = {
    "model": "m",
    "geometry": {
        "layers": 4, "hidden": 8, "intermediate": 16, "heads": 2, "kv_heads": 2, "head_dim": 4,
        "bytes_per_element": 2, "mlp_matrices": 3,
    },
}  # fmt: skip


def hostile_study(folder: Path) -> Study:
    """Every hostile text as question, answer of either run, target, category, task and model."""
    n = len(HOSTILE)
    texts = [(HOSTILE[i], HOSTILE[(i + 1) % n], HOSTILE[(i + 2) % n], HOSTILE[(i + 3) % n]) for i in range(n)]

    def rows(which: int) -> list[dict[str, Any]]:
        return [
            line(i, text[which], float(which == 1), input=text[0], target=text[3], perturbation={"method": text[0]})
            for i, text in enumerate(texts)
        ]

    task = "<img src=x onerror=window.hacked=1>"
    base = write_run(folder / "base", {"plain": rows(1), task: rows(1)}, "<b>base", "a=<script>window.hacked=1<")
    run = write_run(
        folder / "run", {"plain": rows(2), task: rows(2)}, '<img src=x onerror="window.hacked=1">', "$x^2$=1"
    )
    return compared(base, run)


def large_study(folder: Path, documents: int = 5_000, runs: int = 4) -> Study:
    """Every answer of every run flips: `documents` times `runs` flips, half of them in either direction."""

    def rows(run: int) -> list[dict[str, Any]]:
        return [
            line(
                i, f"answer {i % 97} of {run}", float((i % 2 == 0) == (run == 0)), margin=(i * 7919 % documents) / 500,
                input=f"Question {i}: what is in place {i * 31 % documents} of the picture, next to the other thing?",
            )
            for i in range(documents)
        ]  # fmt: skip

    paths = [write_run(folder / str(i), {"some_task": rows(i)}, f"model_{i}") for i in range(runs + 1)]
    return compared(*paths)
