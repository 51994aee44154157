"""Reliability diagrams and risk-coverage curves: what is drawn, in any theme, of any names."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from lmms_eval_stability.calibration import calibrate
from lmms_eval_stability.divergence import NO_RATE
from lmms_eval_stability.reliability import Bin, ConfidenceComparison
from lmms_eval_stability.reliability_scores import risk_coverage
from lmms_eval_stability.report.figures import (
    DARK,
    LIGHT,
    NEUTRAL,
    Theme,
    draw_reliability,
    draw_risk_coverage,
    save_figure,
)

from .pages import HOSTILE


def confidences(seed: int = 0, n: int = 200) -> ConfidenceComparison:
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.3, 1, n)
    sides = [(sure, rng.random(n) < sure), (sure, rng.random(n) < sure / 2)]
    diagrams = [
        tuple(
            Bin(row["low"], row["high"], int(row["n"]), row["confidence"], row["accuracy"])
            for row in calibrate(*side).bins.to_dict("records")
        )
        for side in sides
    ]
    curves = [risk_coverage(*side) for side in sides]
    return ConfidenceComparison("answer", n, 0, n, 1000, 15, (), *diagrams, *curves, NO_RATE)


@pytest.mark.parametrize("draw", [draw_reliability, draw_risk_coverage])
@pytest.mark.parametrize("theme", [LIGHT, DARK, NEUTRAL], ids=lambda theme: theme.name)
def test_one_panel_per_run_with_both_runs_in_it(draw, theme: Theme) -> None:  # type: ignore[no-untyped-def]
    found = {name: confidences(seed) for seed, name in enumerate(("one", "two", "$x^2$", HOSTILE[0], HOSTILE[8]))}
    figure = draw(found, theme)
    assert len(figure.axes) == 5
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["baseline", "run"]
    assert figure.axes[2].get_title(loc="left") == "$x^2$"
    stream = io.BytesIO()
    save_figure(figure, stream, "svg")
    ElementTree.fromstring(stream.getvalue())


def test_points_are_the_bins() -> None:
    one = confidences()
    points = draw_reliability({"a": one}).axes[0].collections[1].get_offsets()
    expected = [[100 * part.confidence, 100 * part.accuracy] for part in one.diagram_run]
    np.testing.assert_allclose(np.asarray(points), expected)


def test_curves_end_at_the_error_of_all() -> None:
    one = confidences()
    before, after = draw_risk_coverage({"a": one}).axes[0].lines
    for line, curve in ((before, one.curve_baseline), (after, one.curve_run)):
        assert line.get_xdata()[-1] == 100
        assert line.get_ydata()[-1] == pytest.approx(100 * curve.risk[-1])


def test_nothing_to_draw_says_so() -> None:
    for draw in (draw_reliability, draw_risk_coverage):
        (text,) = draw({}).texts
        assert "log-probabilities" in text.get_text()
