"""Corruption errors against sums worked out by hand, and an interval that covers."""

from __future__ import annotations

from math import isnan

import numpy as np
import pandas as pd
import pytest

from lmms_eval_stability.corruption import MEAN, CleanErrors, ScoreRangeError, corruption_errors


def frame_of(
    levels: list[tuple[str, str]], before: list[float], after: list[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return pairs and labels of documents 10, 11, ..., one per level named."""
    docs = np.arange(10, 10 + len(levels))
    frame = pd.DataFrame({"doc_id": docs, "score_baseline": before, "score_run": after})
    labels = pd.DataFrame(levels, columns=["perturbation", "severity"], index=pd.Index(docs, name="doc_id"))
    return frame, labels.iloc[::-1]


def test_errors_are_summed_over_levels_not_over_samples() -> None:
    levels = [("fog", "1"), ("fog", "1"), ("fog", "2"), ("snow", "1"), ("snow", "1")]
    frame, labels = frame_of(levels, [1, 0, 0, 1, 0.5], [0, 0, 0, 0.5, 0.5])
    fog, snow, mean = corruption_errors("task", frame, labels, CleanErrors(0.1, 0.2))
    # fog: baseline 0.5 at level 1 and 1 at level 2; the run 1 and 1
    assert (fog.method, fog.n, fog.levels) == ("fog", 3, 2)
    assert (fog.error_baseline, fog.error_run) == (0.75, 1.0)
    assert fog.ce.value == pytest.approx(2 / 1.5)
    assert fog.relative == pytest.approx((2 - 0.4) / (1.5 - 0.2))
    assert snow.ce.value == pytest.approx(0.5 / 0.25)
    assert mean.method == MEAN
    assert mean.ce.value == pytest.approx((2 / 1.5 + 2) / 2)
    assert mean.relative == pytest.approx((fog.relative + snow.relative) / 2)
    assert (mean.n, mean.levels, mean.undefined) == (5, 3, 0)


def test_a_method_without_baseline_errors_is_left_out_and_counted() -> None:
    frame, labels = frame_of([("fog", "1"), ("snow", "1")], [1, 0], [0, 0])
    fog, snow, mean = corruption_errors("task", frame, labels, CleanErrors(0.0, 0.0))
    assert isnan(fog.ce.value)
    assert fog.record()["ce"] is None
    assert snow.ce.value == mean.ce.value == 1.0
    assert mean.undefined == 1


def test_without_clean_errors_nothing_is_relative_and_unnamed_pairs_do_not_count() -> None:
    frame, labels = frame_of([("fog", "1"), (None, None)], [0, 0], [0.5, 0])  # type: ignore[list-item]
    fog, mean = corruption_errors("task", frame, labels)
    assert (fog.n, mean.n) == (1, 1)
    assert isnan(fog.relative)
    assert isnan(mean.relative)
    assert corruption_errors("task", frame, labels.drop(columns="perturbation")) == []


def test_scores_beyond_one_are_refused() -> None:
    frame, labels = frame_of([("fog", "1")], [50], [40])
    with pytest.raises(ScoreRangeError, match=r"task t: scores from 50 to 50 .*--metric"):
        corruption_errors("t", frame, labels)


def world(rng: np.random.Generator, images: int) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Four questions per image, errors correlated within it; true CE: 1.5 for either method."""
    codes = np.repeat(np.arange(images), 4)
    hard = np.repeat(rng.random(images) < 0.4, 4)
    before = hard & (rng.random(4 * images) < 0.8)
    after = np.repeat(rng.random(images) < 0.6, 4) & (rng.random(4 * images) < 0.8)
    method = rng.choice(["fog", "snow"], size=4 * images)
    frame, labels = frame_of([(name, "1") for name in method], list(1.0 - before), list(1.0 - after))
    return frame, labels, codes


def test_the_interval_of_the_mean_covers_under_clusters() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(80):
        frame, labels, codes = world(rng, 150)
        mean = corruption_errors("task", frame, labels, codes=codes, replicates=200, seed=seed)[-1]
        hits += mean.ce.low <= 1.5 <= mean.ce.high
    assert hits >= 70  # 95 % of 80 are 76; fewer than 70 have a chance below 1 in 500


def test_clusters_widen_the_interval_and_order_does_not_matter() -> None:
    frame, labels, codes = world(np.random.default_rng(1), 200)
    clustered = corruption_errors("task", frame, labels, codes=codes)[-1].ce
    independent = corruption_errors("task", frame, labels)[-1].ce
    assert clustered.high - clustered.low > 1.2 * (independent.high - independent.low)
    assert clustered.value == independent.value
    shuffled = frame.sample(frac=1, random_state=0)
    again = corruption_errors("task", shuffled, labels, codes=codes[shuffled.index])[-1].ce
    assert again.value == pytest.approx(clustered.value)
