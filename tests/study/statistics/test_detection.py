"""Detection of out-of-distribution inputs against closed forms and scikit-learn, and the coverage of its intervals."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from lmms_eval_stability.detection import DETECTION_SCORES, Confidences, Detector, detection_scores


def values(inside: object, outside: object) -> dict[str, float]:
    found = Detector(inside, outside).scores(  # type: ignore[arg-type]
        np.ones((1, len(np.asarray(inside)))), np.ones((1, len(np.asarray(outside))))
    )
    assert list(found) == list(DETECTION_SCORES)
    return {name: float(score[0]) for name, score in found.items()}


def test_worked_out_by_hand_with_ties() -> None:
    # thresholds from the top: 0.9 accepts 2 ID; 0.5 another 1 ID and 2 OOD, together; 0.1 the last of either
    found = values([0.9, 0.9, 0.5, 0.1], [0.5, 0.5, 0.1])
    assert found["auroc"] == pytest.approx((2 * 3 + 1 * (1 + 2 / 2) + 1 * 1 / 2) / 12)
    assert found["aupr_in"] == pytest.approx((2 * 2 / 2 + 1 * 3 / 5 + 1 * 4 / 7) / 4)
    # OOD found from the bottom: 0.1 holds 1 of both, then 0.5
    assert found["aupr_out"] == pytest.approx((1 * 1 / 2 + 2 * 3 / 5) / 3)
    assert found["fpr95"] == 1.0  # 95 % of four are four, and the last one is tied with an OOD input
    assert (found["confidence_in"], found["confidence_out"]) == pytest.approx((0.6, 1.1 / 3))


def test_a_threshold_takes_all_that_are_tied_with_it() -> None:
    inside = np.linspace(0.5, 0.95, 20)
    # 19 of 20 are accepted from the second lowest on: OOD inputs just below do not matter, those at it do
    assert values(inside, [inside[1] - 1e-9, 0.1])["fpr95"] == 0.0
    assert values(inside, [inside[1], 0.1])["fpr95"] == 0.5


def test_equal_sets_cannot_be_told_apart_and_parted_ones_always() -> None:
    same = np.random.default_rng(0).random(200).round(1)
    found = values(same, same)
    assert found["auroc"] == pytest.approx(0.5)
    assert found["aupr_in"] == pytest.approx(found["aupr_out"], abs=0.02)
    assert found["fpr95"] >= 0.95
    one = values([0.7] * 50, [0.7] * 150)  # one tie
    assert (one["auroc"], one["aupr_in"], one["aupr_out"], one["fpr95"]) == (0.5, 0.25, 0.75, 1.0)
    best = values([0.8, 0.9], [0.1, 0.7, 0.2])
    assert (best["auroc"], best["aupr_in"], best["aupr_out"], best["fpr95"]) == (1, 1, 1, 0)


def test_two_known_distributions() -> None:
    rng = np.random.default_rng(1)
    found = values(rng.normal(1.5, 1, 200_000), rng.normal(0, 1, 200_000))
    assert found["auroc"] == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.003)
    assert found["fpr95"] == pytest.approx(norm.sf(1.5 + norm.ppf(0.05)), abs=0.006)


@pytest.mark.parametrize("digits", [8, 1])
def test_equal_to_scikit_learn(digits: int) -> None:
    rng = np.random.default_rng(2)
    inside, outside = rng.beta(4, 2, 300).round(digits), rng.beta(3, 3, 170).round(digits)
    truth, scores = np.repeat([1, 0], [300, 170]), np.concatenate([inside, outside])
    found = values(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, scores))
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - truth, -scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(fpr[tpr >= 0.95][0])


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(3)
    inside, outside = rng.random(30).round(1), rng.random(20).round(1)
    times, others = rng.integers(0, 4, 30), rng.integers(0, 4, 20)
    detector = Detector(inside, outside)
    found = detector.scores(times[None].astype(float), others[None].astype(float))
    repeated = values(np.repeat(inside, times), np.repeat(outside, others))
    assert {name: float(score[0]) for name, score in found.items()} == pytest.approx(repeated)
    nothing = detector.scores(np.zeros((1, 30)), np.ones((1, 20)))
    assert all(isnan(score[0]) for score in nothing.values())


def test_equal_runs_differ_by_nothing_and_a_seed_repeats() -> None:
    rng = np.random.default_rng(4)
    parts = [Confidences(sure := rng.random(60), sure, np.repeat(np.arange(15), 4)) for _ in range(2)]
    found = {score.name: score for score in detection_scores(*parts)}
    assert (found["auroc"].difference.value, found["fpr95"].difference.value) == (0, 0)
    assert isnan(found["auroc"].difference.low)  # all replicates agree: no interval
    assert found["auroc"].baseline.low < found["auroc"].baseline.value < found["auroc"].baseline.high
    assert repr(detection_scores(*parts)) == repr(list(found.values()))
    # the two sets are drawn independently, though they are alike
    twin = Confidences(parts[0].baseline, np.square(parts[0].run), parts[0].clusters)
    assert {score.name: score for score in detection_scores(twin, twin)}["auroc"].baseline.low < 0.5


def test_what_cannot_be_measured_is_refused_or_has_no_interval() -> None:
    with pytest.raises(ValueError, match="each needs samples"):
        detection_scores(Confidences([], []), Confidences([0.5], [0.5]))
    with pytest.raises(ValueError, match="all of them known"):
        Detector([0.5, float("nan")], [0.5])
    with pytest.raises(ValueError, match="not one of each"):
        detection_scores(Confidences([0.5], [0.5, 0.6]), Confidences([0.5], [0.5]))
    (auroc, *_) = detection_scores(
        Confidences([0.5, 0.9], [0.4, 0.8], [0, 0]), Confidences([0.1, 0.2, 0.6], [0.1, 0.2, 0.9])
    )
    assert auroc.baseline.value == pytest.approx(5 / 6)
    assert isnan(auroc.baseline.low)


def test_the_interval_of_the_difference_covers_under_clusters() -> None:
    """Both runs see an image's difficulty, four questions to an image; the run separates worse by a known amount."""
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(80), 4)
    true = norm.cdf(0.8 / np.sqrt(4)) - norm.cdf(1.6 / np.sqrt(4))

    def part(shift: float, kept: float) -> Confidences:
        shared = np.repeat(rng.normal(0, 1, 80), 4)
        before, after = (shared + rng.normal(0, 1, 320) + by for by in (shift, kept))
        return Confidences(before, after, codes)

    hits = 0
    for seed in range(60):
        found = detection_scores(part(1.6, 0.8), part(0, 0), replicates=200, seed=seed)
        hits += found[0].difference.low <= true <= found[0].difference.high
    assert hits >= 51  # of 60 at 95 %: fewer have a chance of 1 in 2,000
