"""Throughput of this package's models against lmms-eval's own, on the same weights and the same samples.

    python benchmarks/throughput.py                                # about 20 minutes on 2 cores; results/throughput.md
    python benchmarks/throughput.py --sections llava methods       # some of it; the other sections' numbers are kept
    python benchmarks/throughput.py --quick -o /tmp/out            # tiny models, seconds: shows that it works
    python benchmarks/throughput.py --device cuda --geometry 7b --dtype bfloat16 --peak-tflops 989

Rivals are lmms-eval's llava_hf, qwen2_vl and qwen2_5_vl. Weights are random, and one copy of them serves both. Every
round runs all configurations of a workload in turn; a ratio is the median of those of the rounds. Its limit follows
from the bare passes of the model (`throughput_parts.py`), timed right before and after each configuration: with n
questions about an image, n * rival / (vision + prefix + n * question) for reuse=prefix. What the task does (decoding,
perturbing) counts in both. Two sections put our models beside themselves: `inside` (reuse=prefix for methods inside the
language model) and `quantized` (reuse for int8).

Wall-clock time decides whether a target is reached, so the machine must be quiet; how quiet it was is recorded. All
missed targets are listed at the end. The exit code is 1 if the interval of a ratio of a section that was run lies below
its target, or if answers differ where they must not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from loguru import logger  # noqa: E402
from throughput_bench import Bench, workloads  # noqa: E402
from throughput_machine import Watch, machine  # noqa: E402
from throughput_own import inside, quantized  # noqa: E402
from throughput_tables import EXACT, OWN, SECTIONS, missed, own_lines, parts_lines, report, workload_lines  # noqa: E402

#: Of throughput.json; numbers in another format are forgotten.
FORMAT = 4


def measure(name: str, args: argparse.Namespace, found: dict[str, Any], folder: Path) -> None:
    """Measure one section; every workload is written at once, in place of what was known of it."""
    watch = Watch()
    if name == "methods":
        one = Bench("llava", args, folder).methods()
        found[name] = {**one, "machine": machine(args.device), "quiet": watch.read()}
        write(found, args)
        return
    if name in OWN:
        for one in (inside if name == "inside" else quantized)(args, folder):
            _keep(name, {**one, "quiet": watch.read()}, found, args)
            watch = Watch()
        return
    bench = Bench(name, args, folder)
    for workload in workloads(name, list(bench.settings), quick=args.quick):
        if args.workloads and workload.name not in args.workloads:
            continue
        watch = Watch()
        one = bench.run(workload)
        _keep(name, {**one, "quiet": watch.read()}, found, args)


def _keep(section: str, one: dict[str, Any], found: dict[str, Any], args: argparse.Namespace) -> None:
    """Write one workload, and show it."""
    one["machine"] = machine(args.device)
    found.setdefault(section, {"results": {}})["results"][one["workload"]] = one
    lines = own_lines([one]) if section in OWN else workload_lines([one], args.peak_tflops)
    print("\n".join([*lines, *parts_lines([one])]), flush=True)
    write(found, args)


def write(found: dict[str, Any], args: argparse.Namespace) -> None:
    content = json.dumps({"format": FORMAT, **found}, indent=1)
    (args.output / "throughput.json").write_text(content + "\n", encoding="utf-8")
    (args.output / "throughput.md").write_text(report(found, args), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Return what was measured before."""
    path = folder / "throughput.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if found.pop("format", None) == FORMAT else {}


def failures(found: dict[str, Any], sections: Sequence[str]) -> list[str]:
    """Return what makes a run fail: answers that differ where they must not, and ratios below their targets."""
    results = found["llava"]["results"].values() if "llava" in sections and "llava" in found else []
    wrong = [
        f"llava, {result['workload']}, {name}: answers differ from llava_hf's"
        for result in results
        for name in EXACT
        if result["differing"].get(name)
    ]
    return wrong + [str(one) for one in missed(found) if one.what == "ratio" and one.section in sections]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", default=SECTIONS, help=f"of {', '.join(SECTIONS)}; none: only write")
    parser.add_argument("--workloads", nargs="+", help="only these (inside, quantized: cases), by name")
    parser.add_argument("--configurations", nargs="+", help="only these, by name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--geometry", choices=("tiny", "moderate", "7b"), default="moderate")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4, help="generated per answer, always")
    parser.add_argument("--batches", type=int, nargs=2, default=[8, 16], help="for reuse=vision and reuse=prefix")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share that prefills reach")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--quick", action="store_true", help="tiny models, few documents, one round")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results", help="folder")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"--sections: there is no {', '.join(sorted(unknown))}")
    if args.quick:
        args.geometry, args.rounds, args.batches = "tiny", 1, [2, 4]
    return args


def main() -> None:
    args = arguments()
    logger.remove()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    found = read(args.output)
    for name in args.sections:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, args, found, Path(folder))
    write(found, args)
    print(report(found, args))
    if failed := failures(found, args.sections):
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
