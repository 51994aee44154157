from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_eval_stability.divergence import wilson
from lmms_eval_stability.noise import excess_divergence, noise_floor
from lmms_eval_stability.pairing import PairedSamples
from tests.study.statistics.builders import pairs


def changed(marks: str, docs: list[int] | None = None) -> PairedSamples:
    """One sample per letter; "x" where the prediction is not the baseline's."""
    right = [1.0] * len(marks)
    return pairs(right, right, (["a"] * len(marks), ["b" if mark == "x" else "a" for mark in marks]), docs)


def test_one_rerun_is_a_plain_rate() -> None:
    floor = noise_floor([changed("x...x.....")])
    assert floor.reruns == 1
    assert floor.n == 10
    assert floor.dr == floor.each[0] == floor.ever == wilson(2, 10)


def test_reruns_are_pooled() -> None:
    floor = noise_floor([changed("x...x....."), changed("x........."), changed("x.......x.")])
    assert floor.dr.value == pytest.approx(5 / 30)
    assert [rate.value for rate in floor.each] == [0.2, 0.1, 0.2]
    assert floor.ever == wilson(3, 10)
    assert floor.dr.low < 5 / 30 < floor.dr.high


def test_reruns_that_agree_tell_no_more_than_one() -> None:
    rng = np.random.default_rng(0)
    marks = "".join(rng.choice(["x", "."], 400, p=[0.1, 0.9]))
    once = noise_floor([changed(marks)])
    five = noise_floor([changed(marks)] * 5)
    width = once.dr.high - once.dr.low
    assert five.dr.value == once.dr.value
    assert five.dr.high - five.dr.low == pytest.approx(width, rel=0.1)
    naive = wilson(5 * marks.count("x"), 5 * 400)
    assert naive.high - naive.low < 0.5 * width


def test_independent_reruns_tell_more() -> None:
    rng = np.random.default_rng(1)
    runs = [changed("".join(rng.choice(["x", "."], 400, p=[0.1, 0.9]))) for _ in range(4)]
    floor = noise_floor(runs)
    assert floor.dr.high - floor.dr.low < 0.7 * (floor.each[0].high - floor.each[0].low)


def test_questions_about_one_image_are_drawn_together() -> None:
    run = changed("xxxxx....." * 20)
    images = pd.Series(np.arange(200) // 5, index=np.arange(200))
    single, clustered = noise_floor([run]), noise_floor([run], images)
    assert clustered.dr.value == single.dr.value == 0.5
    assert clustered.dr.high - clustered.dr.low > 1.8 * (single.dr.high - single.dr.low)


def test_no_noise_is_bounded_and_not_certain() -> None:
    floor = noise_floor([changed("." * 50)] * 3)
    assert (floor.dr.value, floor.dr.low, floor.dr.high) == (0.0, 0.0, wilson(0, 50).high)


def test_excess_by_hand() -> None:
    excess = excess_divergence(changed("xxx.x....."), [changed("x........x"), changed("..........")])
    assert (excess.n, excess.dr, excess.floor) == (10, 0.4, 0.1)
    assert excess.excess.value == pytest.approx(0.3)
    assert excess.excess.low < 0.3 < excess.excess.high


def test_a_further_rerun_has_no_excess() -> None:
    rng = np.random.default_rng(2)
    draws = [changed("".join(rng.choice(["x", "."], 300, p=[0.1, 0.9]))) for _ in range(120)]
    covered = [
        (rate := excess_divergence(run, others, replicates=400).excess).low <= 0 <= rate.high
        for run, *others in zip(*[iter(draws)] * 3, strict=True)
    ]
    assert np.mean(covered) >= 0.85


def test_samples_that_someone_lacks_are_left_out_and_counted() -> None:
    run, rerun = changed("xx..", [0, 1, 2, 3]), changed("..x", [1, 2, 9])
    excess = excess_divergence(run, [rerun])
    assert (excess.n, excess.left_out, excess.dr, excess.floor) == (2, 3, 0.5, 0.0)
    floor = noise_floor([run, rerun])
    assert (floor.n, floor.left_out, floor.dr.value) == (2, 3, 0.25)
    assert floor.each[1].value == pytest.approx(1 / 3)


def test_nothing_in_common_is_nan() -> None:
    floor = noise_floor([changed("x", [1]), changed("x", [2])])
    assert floor.n == 0
    assert math.isnan(floor.dr.value)
    excess = excess_divergence(changed("x", [1]), [changed("x", [2])])
    assert math.isnan(excess.dr)
    assert math.isnan(excess.excess.value)


def test_no_rerun_and_missing_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="no re-run"):
        noise_floor([])
    with pytest.raises(ValueError, match="no re-run"):
        excess_divergence(changed("x"), [])
    with pytest.raises(ValueError, match="2 of 3 samples have no cluster, the first is 1"):
        noise_floor([changed("x..")], pd.Series(["a"], index=[0]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("x.", min_size=6, max_size=6), min_size=2, max_size=5))
def test_order_of_reruns_does_not_matter_and_excess_is_a_difference(marks: list[str]) -> None:
    runs = [changed(one) for one in marks]
    assert noise_floor(runs, replicates=50).dr == noise_floor(runs[::-1], replicates=50).dr
    excess = excess_divergence(runs[0], runs[1:], replicates=50)
    floor = noise_floor(runs[1:], replicates=50)
    assert excess.excess.value == pytest.approx(excess.dr - floor.dr.value, abs=1e-8)
    assert max(rate.value for rate in floor.each) <= floor.ever.value + 1e-12
