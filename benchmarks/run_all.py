"""Runs the benchmarks one after the other and writes one table of them: results/README.md.

    python benchmarks/run_all.py                                   # about an hour on 2 quiet cores
    python benchmarks/run_all.py --only throughput bootstrap_speed
    python benchmarks/run_all.py --rival-python .venv-rival/bin/python   # perturbations, too

Each writes a file of its own beside the table. What was measured before stays in the table when only some are run. A
benchmark that cannot run here (no Chromium, no environment of the rival) is named as left out; one that fails does not
stop the others, and makes the exit code 1. A missed target is a failure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Names, rivals, and whether a benchmark writes its own Markdown file.
BENCHMARKS = {
    "throughput": ("lmms-eval's llava_hf, qwen2_vl, qwen2_5_vl", True),
    "compare": ("a pandas script; orjson as the floor", True),
    "perturbations": ("imagecorruptions-imaug", True),
    "bootstrap_speed": ("scipy.stats.bootstrap", False),
    "page_speed": ("pandas' to_html", False),
    "ipr": ("the same method without it", False),
}
#: What benchmarks are made of, not to be run by itself.
PARTS = {
    "run_all",
    "compare_logs",
    *(f"throughput_{part}" for part in ("bench", "machine", "models", "own", "parts", "tables")),
}
BENCHMARKS |= {
    path.stem: ("see the file", False) for path in sorted(HERE.glob("*.py")) if path.stem not in {*PARTS, *BENCHMARKS}
}


def missing(name: str, rival_python: str | None) -> str | None:
    """Return what a benchmark needs that is not here."""
    if name == "perturbations" and not rival_python:
        return "--rival-python"
    if name == "page_speed" and not any(shutil.which(one) for one in ("chromium", "chromium-browser", "google-chrome")):
        return "Chromium"
    return None


def run(name: str, rival_python: str | None, output: Path, more: list[str]) -> dict[str, Any]:
    """Run one benchmark and return its row of the table."""
    if (lacking := missing(name, rival_python)) is not None:
        return {"outcome": f"left out: needs {lacking}"}
    _, writes = BENCHMARKS[name]
    command = [sys.executable, str(HERE / f"{name}.py"), *more]
    if name == "perturbations":
        command += ["--rival-python", str(rival_python)]
    if writes:
        command += ["-o", str(output / "compare.md" if name == "compare" else output)]
    print(f"{name} ...", flush=True)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, flush=True)
    failure = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if not writes and done.stdout:
        text = f"# {name}\n\nWritten by `benchmarks/{name}.py`.\n\n```\n{done.stdout.rstrip()}\n```\n"
        (output / f"{name}.md").write_text(text, encoding="utf-8")
    outcome = "done" if done.returncode == 0 else f"failed: {failure}"
    return {"outcome": outcome, "minutes": round((time.perf_counter() - started) / 60, 1)}


def table(rows: dict[str, dict[str, Any]], output: Path) -> str:
    """All benchmarks as Markdown."""
    lines = ["# Benchmarks", "", "Written by `make bench` (`benchmarks/run_all.py`).", ""]
    lines += ["| benchmark | what | rival | last run by it | minutes | numbers |", "|---|---|---|---|---:|---|"]
    for name, (rival, _) in BENCHMARKS.items():
        what = (HERE / f"{name}.py").read_text(encoding="utf-8").splitlines()[0].strip('"').partition(", against")[0]
        row = rows.get(name, {"outcome": "-"})
        numbers = f"[{name}.md]({name}.md)" if (output / f"{name}.md").exists() else "-"
        outcome = row["outcome"].replace("|", "\\|")
        lines.append(f"| {name} | {what.rstrip('.')} | {rival} | {outcome} | {row.get('minutes', '-')} | {numbers} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(BENCHMARKS), help="by name; none: only write the table")
    parser.add_argument("--rival-python", help="interpreter of an environment with imagecorruptions-imaug")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results", help="folder")
    parser.add_argument("more", nargs="*", help="arguments of the benchmark, after -- (with --only of one)")
    args = parser.parse_args()
    if unknown := set(args.only) - set(BENCHMARKS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if args.more and len(args.only) != 1:
        parser.error("arguments for a benchmark need --only with one name")
    args.output.mkdir(parents=True, exist_ok=True)
    known = args.output / "runs.json"
    rows: dict[str, dict[str, Any]] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    for name in args.only:
        rows[name] = run(name, args.rival_python, args.output, args.more)
        known.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (args.output / "README.md").write_text(table(rows, args.output), encoding="utf-8")
    print(table(rows, args.output))
    return int(any(rows[name]["outcome"].startswith("failed") for name in args.only))


if __name__ == "__main__":
    sys.exit(main())
