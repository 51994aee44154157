"""Time and memory of `lmms-eval-stability compare` on logs of VQAv2's size, against a plain pandas script.

    python benchmarks/compare.py                           # about half an hour; writes results/compare.md
    python benchmarks/compare.py --runs --repeats 1        # one pair of runs in each shape, once
    python benchmarks/compare.py --data /tmp/logs          # keeps the logs (6 GB) there, and uses them the next time

Every program runs in a process of its own, from its start to its last line, in turns; times are medians, memory the
greatest peak. The rival reads the logs with `pandas.read_json(lines=True)`, merges each run with the baseline on
doc_id and prints DR and NDR: what a careful user writes by hand. It checks nothing, knows no normalisation of answers
and has no intervals. `orjson` parses every line of the logs and does nothing else: the floor of any reader.

Every run has a log of its own (no links), written just before: the logs are in the page cache as far as memory allows,
and a first reading from a slow disk takes as much longer as the disk needs. On a machine with other work only processor
times compare.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "compare.md"
VQAV2_ROWS = 214_354
PAIR_SECONDS, PAIR_MB, MANY_SECONDS, MANY_MB = 3, 400, 90, 2000

RIVAL = """
import sys
import pandas as pd
base = pd.read_json(sys.argv[1], lines=True)
for path in sys.argv[2:]:
    pairs = base.merge(pd.read_json(path, lines=True), on="doc_id", suffixes=("_baseline", "_run"))
    dr = (pairs.filtered_resps_baseline != pairs.filtered_resps_run).mean()
    ndr = ((pairs.exact_match_baseline >= 0.9) & (pairs.exact_match_run < 0.9)).mean()
    print(len(pairs), dr, ndr)
"""
FLOOR = """
import sys
import orjson
for path in sys.argv[1:]:
    for line in open(path, "rb"):
        orjson.loads(line)
"""


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, processor seconds (user and system) and peak resident memory (MB) of one process."""

    seconds: float
    processor: float
    megabytes: float

    def cells(self) -> str:
        return f"{self.processor:.1f} | {self.seconds:.1f} | {self.megabytes:.0f}"


def measure(command: Sequence[str]) -> Cost:
    """Run a command to its end. Raises SystemExit when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{list(command[:6])} ended with exit code {process.returncode}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, kilobytes / 1024)


def medians(programs: dict[str, list[str]], repeats: int) -> dict[str, Cost]:
    """Each program `repeats` times, in turns, so that other work on the machine meets all of them alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, command in programs.items():
            costs[name].append(measure(command))
            print(f"  {name:<16} {costs[name][-1]}", flush=True)
    return {
        name: Cost(
            statistics.median(one.seconds for one in found),
            statistics.median(one.processor for one in found),
            max(one.megabytes for one in found),
        )
        for name, found in costs.items()
    }


class Logs:
    """The logs of one shape, made when they are not there; in a process of its own, which keeps this one small."""

    def __init__(self, data: Path, shape: str, rows: int, runs: int) -> None:
        self.folder = data / f"{shape}_{rows}"
        if not (self.folder / f"run{runs - 1}").exists():
            print(f"writing {runs} logs in {self.folder}", flush=True)
            options = ["--shape", shape, "--rows", str(rows), "--runs", str(runs)]
            subprocess.run([sys.executable, str(HERE / "compare_logs.py"), str(self.folder), *options], check=True)

    def files(self, runs: int) -> list[str]:
        return [str(next(self.folder.glob(f"run{i}/*/*.jsonl"))) for i in range(runs)]

    def compare(self, runs: int, *options: str) -> list[str]:
        folders = [str(self.folder / f"run{i}") for i in range(runs)]
        return [sys.executable, "-m", "lmms_eval_stability.cli", "compare", *folders, *options]

    def bytes(self, runs: int) -> int:
        return sum(Path(path).stat().st_size for path in self.files(runs))


def pairs_table(data: Path, shapes: Sequence[str], rows: int, repeats: int) -> list[str]:
    """One pair of runs in each shape."""
    lines = ["| logs, bytes a row | program | processor s | wall s | peak MB | rival / program: time | memory |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for shape in shapes:
        logs = Logs(data, shape, rows, 2)
        costs = medians(
            {
                "compare": logs.compare(2),
                "compare -o": logs.compare(2, "-o", str(data / "report")),
                "pandas": [sys.executable, "-c", RIVAL, *logs.files(2)],
                "orjson": [sys.executable, "-c", FLOOR, *logs.files(2)],
            },
            repeats,
        )
        rival = costs["pandas"]
        for name, cost in costs.items():
            ratios = f"{rival.processor / cost.processor:.1f} | {rival.megabytes / cost.megabytes:.1f}"
            lines.append(f"| {shape}, {logs.bytes(2) // (2 * rows)} | {name} | {cost.cells()} | {ratios} |")
    return lines


def runs_table(data: Path, rows: int, counts: Sequence[int], rival_runs: int) -> list[str]:
    """Growing numbers of runs, the baseline among them, once each."""
    logs = Logs(data, "plain", rows, max(counts))
    lines = ["| runs | program | GB of JSON | processor s | wall s | peak MB | processor s a run |"]
    lines += ["|---:|---|---:|---:|---:|---:|---:|"]
    for runs in counts:
        programs = {"compare": logs.compare(runs)}
        if runs == rival_runs:
            programs["pandas"] = [sys.executable, "-c", RIVAL, *logs.files(runs)]
        for name, cost in medians(programs, 1).items():
            each = f"{cost.processor / runs:.2f}"
            lines.append(f"| {runs} | {name} | {logs.bytes(runs) / 1e9:.1f} | {cost.cells()} | {each} |")
    return lines


def machine() -> str:
    """Processor, cores, memory and versions; no names."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    packages = ", ".join(f"{name} {version(name)}" for name in ("pandas", "numpy", "orjson", "pyarrow"))
    load = f", load average at the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {gigabytes:.0f} GB, {platform.system()}, Python {platform.python_version()}, "
        f"{packages}{load}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=VQAV2_ROWS)
    parser.add_argument("--repeats", type=int, default=3, help="of each pair; many runs are measured once")
    parser.add_argument("--shapes", nargs="+", default=["plain", "measured", "image", "text"], help="of the pairs")
    parser.add_argument("--runs", nargs="*", type=int, default=[6, 12, 24, 48], help="numbers of runs, for many runs")
    parser.add_argument("--rival-runs", type=int, default=12, help="pandas, too, at this number of runs; 0: at none")
    parser.add_argument("--data", type=Path, help="folder for the logs; a temporary one by default")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        data = args.data or Path(name)
        many = runs_table(data, args.rows, args.runs, args.rival_runs) if args.runs else []
        pairs = pairs_table(data, args.shapes, args.rows, args.repeats)
    places = {"--data", "-o", "--output", str(args.data), str(args.output)}
    command = " ".join(one for one in sys.argv[1:] if one not in places)
    text = [
        "# `compare`: time and memory",
        "",
        f"Written by `benchmarks/compare.py {command}`. {described}.",
        "Processor time is what compares on a machine with other work; wall time is what it took beside that work. The "
        "logs are in the page cache.",
        "",
        f"## A pair of runs of {args.rows:,} rows",
        "",
        f"Target for plain logs: {PAIR_SECONDS} s and {PAIR_MB} MB from the start of the process to the table.",
        "",
        *pairs,
        "",
    ]
    if many:
        text += ["## Many runs", "", f"Target for 48 runs: {MANY_SECONDS} s and {MANY_MB} MB.", "", *many, ""]
    args.output.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
