"""Time and memory of the image perturbations, against imagecorruptions-imaug, the fastest packaged rival.

    python -m venv rival && rival/bin/pip install imagecorruptions-imaug
    python benchmarks/perturbations.py --rival-python rival/bin/python -o benchmarks/results

Every method runs in a process of its own, ours and the rival's one after the other, on one core and one thread, on a
drawn image of 640 x 480 pixels that is already in memory. The rival's compilation (numba) and both sides' imports are
not counted. Times are processor time, so that other programs on the machine matter little; the best of several calls
counts. The rival has no blank image, and its elastic, fog, frost, pixelate, motion and snow are variants of their own.

Peak memory is what a call adds to the process's resident memory at its highest, over the size of the image (Linux
only), on an image of 1600 x 1200 pixels; the result is part of it, the image is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 640, 480
MEMORY_SIZE = (1600, 1200)
LIMIT_MEAN_MS, LIMIT_RATIO, LIMIT_MEMORY = 20.0, 5.0, 12.0


def picture(width: int, height: int) -> Any:
    """Return a drawn scene with plain areas, edges and texture: (H, W, 3) uint8."""
    import numpy as np

    y, x = np.mgrid[:height, :width].astype(np.float64)
    scene = np.stack([120 + 100 * x / width, 90 + 120 * y / height, 150 - 60 * x / width], axis=-1)
    noise = np.random.RandomState(0)
    for _ in range(12):
        centre, radius = noise.uniform(size=2) * (width, height), noise.uniform(0.05, 0.2) * height
        scene[np.hypot(x - centre[0], y - centre[1]) < radius] = noise.uniform(0, 255, size=3)
    scene += 12 * np.sin(x / 3)[..., None] * np.sin(y / 5)[..., None]
    return np.clip(scene, 0, 255).astype(np.uint8)


def one_core() -> None:
    """Keep this process, which measures and ends, on one core and OpenCV on one thread."""
    import cv2

    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def best_times(call: Callable[[int], object], severities: int, repeats: int) -> list[list[float]]:
    """Return milliseconds of every severity: processor time and wall-clock time."""
    found = []
    for severity in range(1, severities + 1):
        call(severity)
        costs = []
        for _ in range(repeats):
            wall, processor = time.perf_counter(), time.process_time()
            call(severity)
            costs.append((time.process_time() - processor, time.perf_counter() - wall))
        found.append([1000 * min(cost) for cost in zip(*costs, strict=True)])
    return found


def measure_ours(method: str, repeats: int) -> list[list[float]]:
    from PIL import Image

    from lmms_eval_stability.tasks.perturbations.image import METHODS, perturb_image

    one_core()
    image = Image.fromarray(picture(WIDTH, HEIGHT))
    return best_times(lambda s: perturb_image(image, method, s, seed=s), METHODS[method].severities, repeats)


def measure_rival(method: str, repeats: int) -> list[list[float]]:
    from imagecorruptions import corrupt

    one_core()
    image = picture(WIDTH, HEIGHT)
    return best_times(lambda s: corrupt(image, severity=s, corruption_name=method), 5, repeats)


def measure_memory(method: str, _: int) -> list[float]:
    """Return the peak of every severity, in images."""
    import numpy as np

    from lmms_eval_stability.tasks.perturbations.image import METHODS, perturb_array

    image, peaks = picture(*MEMORY_SIZE), []
    for severity in range(1, METHODS[method].severities + 1):
        perturb_array(image[:64, :64], method, severity, np.random.RandomState(0))  # what loads once is not counted
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = resident("VmRSS")
        output = perturb_array(image, method, severity, np.random.RandomState(0))
        peaks.append((resident("VmHWM") - before) / image.nbytes)
        del output
    return peaks


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


WORKERS = {"ours": measure_ours, "rival": measure_rival, "memory": measure_memory}


def run_worker(python: str, worker: str, method: str, repeats: int) -> Any:
    command = [python, __file__, "--worker", worker, "--method", method, "--repeats", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if worker == "memory":  # memory that is given back leaves the process, so that the next peak is seen
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def versions(python: str, *names: str) -> str:
    code = f"import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in {names!r}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{python} lacks one of {', '.join(names)}: {found.stderr.strip().splitlines()[-1]}")
    return found.stdout.strip()


def table(rows: dict[str, dict[str, Any]], summary: dict[str, Any], machine: dict[str, str]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Image perturbations: time and memory",
        "",
        f"Written by `benchmarks/perturbations.py`. {machine['ours']}; rival: {machine['rival']}.",
        f"{machine['hardware']}; one core, one thread, {WIDTH} x {HEIGHT} pixels. Processor time in ms: the mean of a"
        f" method's severities, each the best of {summary['repeats']} calls. Peak memory: in images, the highest of all"
        " severities.",
        "",
        "| method | ours, ms | slowest severity | rival, ms | ratio | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method, row in rows.items():
        rival = f"{row['rival_ms']:.1f} | {row['ratio']:.1f}" if "rival_ms" in row else "- | -"
        memory = f"{max(row['memory']):.1f}" if "memory" in row else "-"
        lines.append(f"| {method} | {row['ms']:.1f} | {max(row['severities_ms']):.1f} | {rival} | {memory} |")
    lines += [
        "",
        f"- Mean over the 96 levels: {summary['mean_ms']:.1f} ms (target: at most {LIMIT_MEAN_MS:g}).",
        f"- Mean over the 95 levels that both have: {summary['common_ms']:.1f} ms against {summary['rival_ms']:.1f} ms,"
        f" ratio {summary['ratio']:.1f} (target: at least {LIMIT_RATIO:g}).",
        f"- Frosted glass: ratio {summary['glass_ratio']:.1f} (target: at least {LIMIT_RATIO:g}).",
        f"- Peak memory of a call: {summary['memory']:.1f} images (target: at most {LIMIT_MEMORY:g}).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival-python", help="interpreter of an environment with imagecorruptions-imaug")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="folder for perturbations.md and perturbations.json")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args.method, args.repeats)))
        return
    if not args.rival_python:
        parser.error("name the rival's interpreter with --rival-python")
    compare(args.rival_python, args.repeats, args.output)


def compare(rival_python: str, repeats: int, output: Path | None) -> None:
    from lmms_eval_stability.tasks.perturbations.image import METHODS

    machine = {
        "ours": f"Python {platform.python_version()}, "
        + versions(sys.executable, "numpy", "scipy", "opencv-python-headless", "pillow"),
        "rival": versions(rival_python, "imagecorruptions-imaug", "numpy", "scikit-image", "numba"),
        "hardware": f"{platform.system()} on {platform.machine()}, a shared virtual server of {os.cpu_count()} cores",
    }
    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        ours = run_worker(sys.executable, "ours", method, repeats)
        row = rows[method] = {"severities_ms": [cost[0] for cost in ours], "severities_wall_ms": [c[1] for c in ours]}
        row["ms"] = statistics.mean(row["severities_ms"])
        if method != "blank_image":
            rival = run_worker(rival_python, "rival", method, repeats)
            row |= {"rival_severities_ms": [cost[0] for cost in rival], "rival_wall_ms": [cost[1] for cost in rival]}
            row["rival_ms"] = statistics.mean(row["rival_severities_ms"])
            row["ratio"] = row["rival_ms"] / row["ms"]
        if sys.platform == "linux":
            row["memory"] = run_worker(sys.executable, "memory", method, 1)
        print(f"{method:<20}{row['ms']:8.1f} ms", f"{row.get('rival_ms', 0):8.1f} ms", row.get("memory"), flush=True)
    both = [row for row in rows.values() if "rival_ms" in row]
    common, rival_mean = (statistics.mean(row[name] for row in both) for name in ("ms", "rival_ms"))
    summary = {
        "repeats": repeats,
        "mean_ms": statistics.mean(cost for row in rows.values() for cost in row["severities_ms"]),
        "common_ms": common,
        "rival_ms": rival_mean,
        "ratio": rival_mean / common,
        "glass_ratio": rows["glass_blur"]["ratio"],
        "memory": max((max(row["memory"]) for row in rows.values() if "memory" in row), default=float("nan")),
    }
    text = table(rows, summary, machine)
    print(text)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "perturbations.md").write_text(text, encoding="utf-8")
        results = {"summary": summary, "machine": machine, "methods": rows}
        (output / "perturbations.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    missed = summary["mean_ms"] > LIMIT_MEAN_MS or min(summary["ratio"], summary["glass_ratio"]) < LIMIT_RATIO
    if missed or summary["memory"] > LIMIT_MEMORY:
        raise SystemExit("a target is missed")


if __name__ == "__main__":
    main()
