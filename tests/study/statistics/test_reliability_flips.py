"""Which samples flip: planted coefficients, statsmodels' own fit, and what cannot be estimated, by name."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import statsmodels.api as sm

from lmms_eval_stability.reliability_flips import OTHER, FlipRegression, lowest_margins, regress_flips

N = 6000


def planted(seed: int = 0, n: int = N) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Flips with log-odds -2 - 0.9 margin (per SD) + 0.5 kept (per SD) + 1.2 for kind b."""
    rng = np.random.default_rng(seed)
    margin, kept = rng.normal(3, 2, n), rng.choice([0.25, 0.5, 1.0], n)
    kind = rng.choice(["a", "a", "b"], n).astype(object)
    odds = -2 - 0.9 * _scaled(margin) + 0.5 * _scaled(kept) + 1.2 * (kind == "b")
    return rng.random(n) < 1 / (1 + np.exp(-odds)), {"margin": margin, "kept tokens": kept}, kind


def _scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def ratios(found: FlipRegression) -> dict[str, float]:
    return {one.term: one.odds_ratio for one in found.ratios}


def test_planted_coefficients_are_found() -> None:
    flipped, numbers, kind = planted()
    found = regress_flips(flipped, numbers, {"kind": kind})
    assert found.refused == ""
    assert found.covariance == "model"
    truth = {"margin": exp(-0.9), "kept tokens": exp(0.5), "kind: b": exp(1.2)}
    assert ratios(found).keys() == truth.keys()
    for one in found.ratios:
        assert log(one.odds_ratio) == pytest.approx(log(truth[one.term]), abs=0.12)
        assert one.low < truth[one.term] < one.high
        assert one.p < 1e-6
    assert found.ratios[2].against == "a"
    assert found.ratios[0].against == f"+1 SD ({numbers['margin'].std():.3g})"
    assert 0.7 < found.auroc < 0.9


def test_equal_to_statsmodels_with_and_without_clusters() -> None:
    flipped, numbers, kind = planted(1, 900)
    codes = np.arange(900) // 5
    matrix = np.stack([*map(_scaled, numbers.values()), kind == "b", np.ones(900)], axis=1).astype(float)
    plain = sm.GLM(flipped.astype(float), matrix, family=sm.families.Binomial()).fit()
    robust = sm.GLM(flipped.astype(float), matrix, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": codes}
    )
    for found, reference in (
        (regress_flips(flipped, numbers, {"kind": kind}), plain),
        (regress_flips(flipped, numbers, {"kind": kind}, codes), robust),
    ):
        ends = np.exp(reference.conf_int())
        for i, one in enumerate(found.ratios):
            assert one.odds_ratio == pytest.approx(exp(reference.params[i]), rel=1e-6)
            assert (one.low, one.high) == pytest.approx(tuple(ends[i]), rel=1e-6)
            assert one.p == pytest.approx(reference.pvalues[i], rel=1e-5)
    assert regress_flips(flipped, numbers, {"kind": kind}, codes).clusters == 180


def test_related_samples_widen_intervals() -> None:
    flipped, numbers, kind = planted(2, 300)
    several = [np.repeat(values, 8) for values in (flipped, numbers["margin"], kind)]
    codes = np.repeat(np.arange(300), 8)  # eight copies of one sample tell no more than one
    alone = regress_flips(flipped, {"margin": numbers["margin"]})
    copied = regress_flips(several[0], {"margin": several[1]}, clusters=codes)
    taken = regress_flips(several[0], {"margin": several[1]})
    widths = [log(one.ratios[0].high / one.ratios[0].low) for one in (alone, copied, taken)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.5 * widths[0]


def test_the_order_of_samples_does_not_matter() -> None:
    flipped, numbers, kind = planted(3, 500)
    places = np.random.default_rng(1).permutation(500)
    one = regress_flips(flipped, numbers, {"kind": kind})
    other = regress_flips(flipped[places], {k: v[places] for k, v in numbers.items()}, {"kind": kind[places]})
    assert ratios(other) == pytest.approx(ratios(one))


@pytest.mark.parametrize("flips", [0, 9, 491, 500])
def test_too_few_flips_or_others(flips: int) -> None:
    found = regress_flips(np.arange(500) < flips, {"margin": np.arange(500.0)})
    assert not found.ratios
    assert "500" in found.refused
    assert "least: 10" in found.refused
    assert found.flips == flips


def test_constants_unknown_numbers_and_combinations_are_left_out_by_name() -> None:
    flipped, numbers, kind = planted(4, 800)
    numbers = {
        "margin": numbers["margin"],
        "confidence": 3 - 2 * numbers["margin"],
        "kept tokens": np.full(800, 0.5),
        "severity": np.full(800, np.nan),
    }
    found = regress_flips(flipped, numbers, {"kind": kind, "twin": np.where(kind == "b", "y", "x").astype(object)})
    assert ratios(found).keys() == {"margin", "kind: b"}
    notes = "; ".join(found.notes)
    for name, reason in {
        "kept tokens": "is the same for all",
        "severity": "is not known",
        "confidence": "follows from the terms before it (collinear)",
        "twin: y": "follows from the terms before it (collinear)",
    }.items():
        assert f"{name} {reason}" in notes


def test_terms_that_nearly_say_the_same_are_kept_and_named() -> None:
    flipped, numbers, _ = planted(5, 800)
    noise = np.random.default_rng(0).normal(0, 0.2, 800)
    found = regress_flips(flipped, {"margin": numbers["margin"], "confidence": numbers["margin"] + noise})
    assert len(found.ratios) == 2
    assert any("variance inflated" in note and "margin" in note and "confidence" in note for note in found.notes)


def test_separation_is_named_and_the_other_terms_stay() -> None:
    rng = np.random.default_rng(6)
    margin, other = rng.normal(0, 1, 400), rng.normal(0, 1, 400)
    found = regress_flips(margin < -0.5, {"margin": margin, "other": other})
    assert ratios(found).keys() == {"other"}
    assert any(note.startswith("margin parts flips") and "separation" in note for note in found.notes)
    alone = regress_flips(margin < -0.5, {"margin": margin})
    assert alone.refused == "no term is left to explain flips by"
    assert any("separation" in note for note in alone.notes)


def test_quasi_complete_separation() -> None:
    # nobody with a high margin flips, and one half of the others does: no finite maximum either
    rng = np.random.default_rng(7)
    high = np.arange(400) < 200
    flipped = ~high & (rng.random(400) < 0.5)
    found = regress_flips(flipped, {"high": high.astype(float), "other": rng.normal(0, 1, 400)})
    assert ratios(found).keys() == {"other"}
    assert any(note.startswith("high parts flips") for note in found.notes)


def test_terms_that_separate_only_together() -> None:
    rng = np.random.default_rng(8)
    one, other = rng.normal(0, 1, 500), rng.normal(0, 1, 500)
    found = regress_flips(one - other > 0.3, {"one": one, "other": other})
    assert len(found.ratios) == 1
    assert sum("separation" in note for note in found.notes) == 1


def test_small_categories_are_taken_together() -> None:
    rng = np.random.default_rng(9)
    kind = np.array(["a"] * 300 + ["b"] * 180 + ["c"] * 12 + [None] * 8, dtype=object)
    found = regress_flips(rng.random(500) < 0.3, {"margin": rng.normal(0, 1, 500)}, {"kind": kind})
    assert {one.term for one in found.ratios} == {"margin", f"kind: {OTHER}", "kind: b"}
    assert any(note.startswith("kind: ") and OTHER in note for note in found.notes)
    never = np.where(np.arange(500) % 2, "x", "y").astype(object)
    flipped = (never == "x") & (rng.random(500) < 0.5)  # y never flips
    found = regress_flips(flipped, {"margin": rng.normal(0, 1, 500)}, {"kind": never})
    assert {one.term for one in found.ratios} == {"margin"}
    assert any(
        note.startswith(f"kind: {OTHER} parts flips") or note.startswith("kind: x parts") for note in found.notes
    )


def test_samples_without_all_numbers_are_counted() -> None:
    flipped, numbers, _ = planted(10, 600)
    numbers["margin"][:50] = np.nan
    found = regress_flips(flipped, numbers)
    assert found.n == 550
    assert any(note.startswith("50 samples are left out") for note in found.notes)


def test_few_clusters_and_few_events_are_said() -> None:
    flipped, numbers, kind = planted(11, 60)
    found = regress_flips(flipped, numbers, {"kind": kind}, np.arange(60) % 3)
    assert found.covariance == "model"
    assert any("3 clusters are too few" in note for note in found.notes)
    assert any("events for" in note for note in found.notes)


def test_lowest_margins() -> None:
    margin = np.arange(100.0)
    flipped = np.zeros(100, dtype=bool)
    flipped[[0, 1, 2, 3, 50, 60, 70, 99]] = True
    found = {one.share: one for one in lowest_margins(margin, flipped)}
    assert [found[share].flips.value for share in (0.05, 0.10, 0.25, 0.50)] == [0.5, 0.5, 0.5, 0.5]
    assert found[0.10].margin == 9
    assert found[0.10].rate == pytest.approx(0.4)
    assert found[0.10].rate_all == pytest.approx(0.08)
    assert found[0.10].flips.low < 0.5 < found[0.10].flips.high


def test_a_margin_that_tells_nothing_and_ties_hold_their_share() -> None:
    tied = lowest_margins(np.ones(40), np.arange(40) % 4 == 0)
    assert [one.flips.value for one in tied] == pytest.approx([0.05, 0.10, 0.25, 0.50])
    assert [one.rate for one in tied] == pytest.approx([0.25] * 4)


def test_lowest_margins_without_flips_or_margins() -> None:
    assert lowest_margins([1.0, 2.0], [False, False]) == []
    assert lowest_margins([np.nan], [True]) == []


def test_lowest_margins_with_clusters() -> None:
    rng = np.random.default_rng(3)
    margin = rng.exponential(1, 400)
    flipped = rng.random(400) < np.exp(-margin)
    plain = lowest_margins(margin, flipped)[1].flips
    images = lowest_margins(np.repeat(margin, 4), np.repeat(flipped, 4), np.repeat(np.arange(400), 4))[1].flips
    assert images.value == pytest.approx(plain.value, abs=1e-9)
    assert images.high - images.low == pytest.approx(plain.high - plain.low, rel=0.3)
