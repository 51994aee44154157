"""How often intervals for differences of ECE and its parts hold the true difference, on models of known calibration.

    python scripts/simulate_calibration_intervals.py                                    # all of it
    python scripts/simulate_calibration_intervals.py --n 500 --clusters 4 --trials 100  # a part

Both models answer the same samples. Confidences are logistic of a normal number, `spread` (mean 0.5, standard
deviation 1.5: 90 % lie between 0.12 and 0.95) or `sure` (3.2 and 1.6: half lie above 0.96). A model is right with a
chance that is a known function of its confidence; ease and luck are shared by both models, and in clusters
(correlation 0.3). The true difference is that of infinitely many samples, in the bins of the simulated data. Beside the
intervals of `binned_intervals` stand percentiles of the same bootstrap, and intervals after Fang and Santos (Review of
Economic Studies 86 (2019)) that choose a side of the kink at sqrt(log clusters) standard errors. With T trials a share
of 95 % is known to 1.96 sqrt(0.95 * 0.05 / T).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from multiprocessing import Pool

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from lmms_eval_stability.binned_intervals import BINNED, Gaps, corrected_difference
from lmms_eval_stability.calibration import bin_numbers

Floats = NDArray[np.float64]
BINS, REFERENCE = 15, 200_000
SHAPES = {"spread": (0.5, 1.5), "sure": (3.2, 1.6)}
METHODS = ("ours", "percentiles", "Fang-Santos")


def _local(errors: float, mixed: bool = False) -> Callable[[Floats, int], Floats]:
    """Gaps of so many standard errors of a bin's, whatever n is; `mixed`: of changing sign."""

    def chance(c: Floats, n: int) -> Floats:
        sign = np.where(np.floor(logit(c) / 0.8) % 2 == 0, 1.0, -1.0) if mixed else 1.0
        return np.clip(c - sign * errors * np.sqrt(c * (1 - c) * BINS / n), 0, 1)

    return chance


#: The chance to be right, of confidence and n.
MODELS: dict[str, Callable[[Floats, int], Floats]] = {
    "calibrated": lambda c, _: c,
    "over": lambda c, _: expit(logit(c) - 0.7),
    "far over": lambda c, _: expit(logit(c) - 1.2),
    "under": lambda c, _: expit(logit(c) + 0.5),
    "mixed": lambda c, _: expit(logit(c) + 0.8 * np.cos(1.3 * logit(c))),
    "0.5 se": _local(0.5),
    "1 se": _local(1),
    "1 se mixed": _local(1, mixed=True),
    "1.5 se": _local(1.5),
    "2 se": _local(2),
    "2 se mixed": _local(2, mixed=True),
}
#: Baseline and run; "near": the run's answers are the baseline's but for a few, as after quantisation.
PAIRS = (
    ("calibrated", "calibrated"), ("calibrated", "near calibrated"), ("calibrated", "over"), ("calibrated", "mixed"),
    ("over", "near over"), ("over", "far over"), ("over", "mixed"), ("mixed", "under"), ("calibrated", "0.5 se"),
    ("calibrated", "1 se"), ("calibrated", "1 se mixed"), ("calibrated", "1.5 se"), ("calibrated", "2 se mixed"),
    ("1 se", "over"), ("1 se", "2 se"), ("2 se mixed", "1 se"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    n: int
    cluster: int
    shape: str
    pair: tuple[str, str]
    trials: int
    replicates: int


def chance(model: str, c: Floats, n: int) -> Floats:
    return MODELS[model.removeprefix("near ")](c, n)


def draw(rng: np.random.Generator, case: Case) -> list[tuple[Floats, NDArray[np.bool_]]]:
    """Confidence and verdict of each sample, of baseline and run."""
    mean, spread = SHAPES[case.shape]

    def related() -> Floats:
        own, shared = rng.normal(size=case.n), rng.normal(size=case.n // case.cluster)
        return np.sqrt(0.7) * own + np.sqrt(0.3) * np.repeat(shared, case.cluster)

    common = related(), related()
    last, sides = common, []
    for model in case.pair:
        near = model.startswith("near ")
        start, shares = (last, (0.999, 0.999)) if near else (common, (0.9, 0.8))
        ease, luck = last = tuple(
            share * part + np.sqrt(1 - share**2) * rng.normal(size=case.n)
            for part, share in zip(start, shares, strict=True)
        )
        c = expit(mean + spread * ease)
        sides.append((c, ndtr(luck) < chance(model, c, case.n)))
    return sides


class Model:
    """The true gaps of a model in any bins."""

    def __init__(self, case: Case, name: str) -> None:
        mean, spread = SHAPES[case.shape]
        self._sure = expit(mean + spread * ndtri((np.arange(REFERENCE) + 0.5) / REFERENCE))
        self._summed = np.append(0, np.cumsum(self._sure - chance(name, self._sure, case.n)) / REFERENCE)

    def gaps(self, highest: Floats) -> Floats:
        """Of bins that end at these confidences, the last one at 1."""
        ends = np.searchsorted(self._sure, highest[:-1], side="right")
        return np.diff(self._summed[np.concatenate([[0], ends, [REFERENCE]])])


def part_of(part: str, gaps: Floats) -> Floats:
    """Sum over the bins of |gap|, or of its positive or negative part."""
    return {"size": np.abs(gaps), "over": np.maximum(gaps, 0), "under": np.maximum(-gaps, 0)}[part].sum(axis=-1)


def derivative(part: str, gaps: Gaps, cut: float) -> Floats:
    """Fang and Santos' estimate: of the draws, on the side of the kink that a test chooses, or on both."""
    moves = gaps.drawn - gaps.values
    clear = np.abs(gaps.values) > cut * gaps.drawn.std(axis=0)
    one_side = {"size": np.sign(gaps.values), "over": gaps.values > 0, "under": -1.0 * (gaps.values < 0)}[part] * moves
    both = {"size": np.abs(moves), "over": np.maximum(moves, 0), "under": np.maximum(-moves, 0)}[part]
    return np.where(clear, one_side, both).sum(axis=-1)


def intervals(part: str, sides: Sequence[Gaps], cut: float) -> dict[str, tuple[float, float]]:
    ours = corrected_difference(sides[0], sides[1], part)
    naive = part_of(part, sides[1].drawn) - part_of(part, sides[0].drawn)
    found = part_of(part, sides[1].values) - part_of(part, sides[0].values)
    low, high = np.quantile(derivative(part, sides[1], cut) - derivative(part, sides[0], cut), [0.025, 0.975])
    ends = [(ours.low, ours.high), tuple(np.quantile(naive, [0.025, 0.975])), (found - high, found - low)]
    return dict(zip(METHODS, ends, strict=True))


def trial(rng: np.random.Generator, case: Case, models: Sequence[Model]) -> dict[tuple[str, str], tuple[bool, float]]:
    """Of each number and method, whether its interval holds the true difference, and how wide it is."""
    clusters = case.n // case.cluster
    drawn = rng.integers(0, clusters, (case.replicates, clusters))
    times = np.stack([np.bincount(one, minlength=clusters) for one in drawn]).astype(float)
    sides: dict[str, list[Gaps]] = {"mass": [], "width": []}
    true: dict[str, list[Floats]] = {"mass": [], "width": []}
    for (sure, right), model in zip(draw(rng, case), models, strict=True):
        for scheme in sides:
            numbers = np.unique(bin_numbers(sure, BINS, scheme), return_inverse=True)[1]
            place = np.arange(case.n), numbers
            each, highest = np.zeros((case.n, numbers.max() + 1)), np.zeros(numbers.max() + 1)
            each[place] = (sure - right) / case.n
            np.maximum.at(highest, numbers, sure)
            summed = each.reshape(clusters, case.cluster, -1).sum(axis=1)
            errors = np.sqrt(np.bincount(numbers, sure * (1 - sure))) / case.n
            sides[scheme].append(Gaps(summed.sum(axis=0), times @ summed, errors))
            true[scheme].append(model.gaps(highest))
    found = {}
    for name, (scheme, part) in BINNED.items():
        truth = part_of(part, true[scheme][1]) - part_of(part, true[scheme][0])
        for method, (low, high) in intervals(part, sides[scheme], np.sqrt(np.log(clusters))).items():
            found[name, method] = (bool(low <= truth <= high), high - low)
    return found


def simulate(case: Case) -> tuple[Case, dict[tuple[str, str], tuple[float, float]]]:
    """The share of intervals that hold the true difference, and their mean width."""
    rng, models = np.random.default_rng(case.n + case.cluster), [Model(case, name) for name in case.pair]
    trials = [trial(rng, case, models) for _ in range(case.trials)]
    means = {key: np.mean([one[key] for one in trials], axis=0) for key in trials[0]}
    return case, {key: (float(held), float(width)) for key, (held, width) in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", nargs="+", type=int, default=[240, 500, 2000, 4000], help="samples")
    parser.add_argument("--clusters", nargs="+", type=int, default=[1, 4], help="samples of a cluster")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    grid = product(args.n, args.clusters, SHAPES, PAIRS)
    cases = [Case(*one, trials=args.trials, replicates=args.replicates) for one in grid]
    print("Percent of intervals that hold the true difference: ours / percentiles / Fang-Santos; of ECE (mass), in")
    print("brackets, the mean width of ours over that of percentiles.\n")
    print("| n | cluster | confidence | baseline | run |", " | ".join(BINNED), "|")
    print("|---|---|---|---|---|---|---|---|---|")
    every: dict[str, list[float]] = {method: [] for method in METHODS}
    with Pool(args.processes) as pool:
        for case, found in pool.imap(simulate, cases):
            cells = [" / ".join(f"{100 * found[name, method][0]:.1f}" for method in METHODS) for name in BINNED]
            cells[0] += f" ({found['ece_mass', 'ours'][1] / found['ece_mass', 'percentiles'][1]:.2f})"
            print("|", " | ".join([str(case.n), str(case.cluster), case.shape, *case.pair, *cells]), "|", flush=True)
            for (_, method), (held, _) in found.items():
                every[method].append(100 * held)
    for method, shares in every.items():
        ends = np.quantile(shares, [0, 0.05, 0.5, 0.95, 1])
        print(f"\n{method}: least, 5 %, median, 95 %, greatest share {', '.join(f'{end:.1f}' for end in ends)}", end="")
    print()


if __name__ == "__main__":
    main()
