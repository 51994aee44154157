"""Time and memory of the cluster bootstrap on VQAv2's numbers, against `scipy.stats.bootstrap` over cluster sums.

    python benchmarks/bootstrap_speed.py              # 214,354 questions on 40,504 images, 10,000 replicates
    python benchmarks/bootstrap_speed.py --replicates 1000

Each program runs in a process of its own. The rival is given the sums of each image, as a careful user would, and a
batch size that keeps its memory low; without that it needs one index for each image and replicate (3.2 GB). Both give
percentile intervals of NDR; the ends must agree. The time is that of the call, without imports and without making the
data. On a busy machine, compare processor times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

QUESTIONS, IMAGES = 214_354, 40_504
LIMIT_SECONDS, LIMIT_MB = 2.0, 300.0

DATA = f"""
import json, resource, sys, time
import numpy as np
import scipy.special, scipy.stats, pandas
replicates = int(sys.argv[1])
rng = np.random.default_rng(1)
places = rng.integers(0, {IMAGES}, {QUESTIONS})
images = np.array([f"COCO_val2014_{{i:012d}}" for i in range({IMAGES})], dtype=object)[places]
hard = rng.random({IMAGES})[places]
events = rng.random({QUESTIONS}) < 0.1 * hard
soft = np.where(events, -rng.choice([0.3, 0.6, 0.9, 1.0], {QUESTIONS}), 0.0)
before, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
"""
REPORT = """
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, cpu, (total - before) / 1024, total / 1024, float(low), float(high)]))
"""
PROGRAMS = {
    "cluster_rate": """
from lmms_eval_stability.bootstrap import cluster_rate
rate = cluster_rate(events, images, replicates=replicates)
low, high = rate.low, rate.high
""",
    "cluster_rate, soft scores": """
from lmms_eval_stability.bootstrap import cluster_rate
rate = cluster_rate(soft, images, replicates=replicates)
low, high = rate.low, rate.high
""",
    "scipy.stats.bootstrap": """
codes = pandas.factorize(images)[0]
sums, sizes = np.bincount(codes, weights=events), np.bincount(codes)
found = scipy.stats.bootstrap(
    (sums, sizes), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True, vectorized=True,
    n_resamples=replicates, batch=100, method="percentile", rng=rng,
).confidence_interval
low, high = found.low, found.high
""",
}


def measure(program: str, replicates: int) -> list[float]:
    """Seconds, processor seconds, MB beyond the data, MB of the process, and both ends of the interval."""
    command = [sys.executable, "-c", DATA + program + REPORT, str(replicates)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    numbers: list[float] = json.loads(done.stdout)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    best = {}
    for label, program in PROGRAMS.items():
        best[label] = min(measure(program, args.replicates) for _ in range(args.repeats))
        seconds, cpu, more, total, low, high = best[label]
        print(
            f"{label:<26} {seconds:6.2f} s  {cpu:6.2f} s of processor time  {more:5.0f} MB more, {total:4.0f} in all  "
            f"[{low:.5f}, {high:.5f}]"
        )
    ours, soft, rival = best.values()
    print(f"scipy / cluster_rate: time x{rival[0] / ours[0]:.0f}, processor time x{rival[1] / ours[1]:.0f}")
    if max(abs(a - b) for a, b in zip(ours[4:], rival[4:], strict=True)) > 0.05 * (rival[5] - rival[4]):
        raise SystemExit("the intervals differ")
    if max(ours[1], soft[1]) > LIMIT_SECONDS or max(ours[3], soft[3]) > LIMIT_MB:
        raise SystemExit(f"over the limit of {LIMIT_SECONDS:g} s of processor time and {LIMIT_MB:g} MB")


if __name__ == "__main__":
    main()
