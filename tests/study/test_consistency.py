"""Change of the spectrum against unchanged answers: numbers with known results, and from logs to every output."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import permutations
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from scipy.stats import spearmanr

from lmms_eval_stability import compare_runs
from lmms_eval_stability.consistency import IprColumns, across_runs, measure_consistency, spearman
from lmms_eval_stability.report.figures import draw_consistency, draw_frontier

from .conftest import WriteRun, sample

Compare = Callable[..., Result]
N = 60


def test_rho_is_scipys_and_p_counts_all_orders() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 2.0, 5.0, 4.0]  # with a tie
    found = spearman(x, y)
    assert found.exact
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    orders = [abs(spearmanr(x, order).statistic) for order in permutations(y)]
    assert found.p == pytest.approx(np.mean([rho >= abs(found.rho) - 1e-12 for rho in orders]))


def test_a_perfect_order_of_few_has_the_least_p_there_is() -> None:
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3]).rho == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3]).p == pytest.approx(2 / 24)


def test_random_permutations_agree_with_the_asymptotic_p() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = 0.12 * x + rng.normal(size=400)
    found = spearman(x, y, seed=1)
    assert not found.exact
    assert found.resamples == 9999
    assert found.p == pytest.approx(spearmanr(x, y).pvalue, abs=0.01)
    assert spearman(x, y, seed=1) == found


def test_p_is_uniform_where_nothing_is_related() -> None:
    rng = np.random.default_rng(3)
    ps = [spearman(rng.normal(size=30), rng.random(30) < 0.3, resamples=199, seed=i).p for i in range(300)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.035)


@pytest.mark.parametrize(("x", "y"), [([1.0, 2.0], [1.0, 2.0]), ([1.0] * 5, [1.0, 2, 3, 4, 5]), ([], [])])
def test_what_cannot_be_correlated_has_no_rho(x: list[float], y: list[float]) -> None:
    assert isnan(spearman(x, y).rho)
    assert spearman(x, y).record()["p"] is None


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 values against 2"):
        spearman([1, 2, 3], [1, 2])


def test_a_planted_relation_is_found_across_samples_and_across_runs() -> None:
    rng, runs = np.random.default_rng(4), []
    for strength in (0.01, 0.02, 0.05, 0.1, 0.2):
        change = rng.random(400) * strength
        changed = rng.random(400) < change * 4
        change[:10] = np.nan  # prompts without an image
        runs.append(measure_consistency(f"r{strength}", change, changed))
    across = across_runs(runs)
    assert across.exact
    assert across.rho == pytest.approx(-1.0)
    assert across.p == pytest.approx(2 / 120)
    assert (runs[-1].n, runs[-1].missing) == (390, 10)
    assert runs[-1].samples.rho < -0.2
    assert runs[-1].samples.p < 0.01
    assert runs[-1].consistency.value == pytest.approx(1 - changed[10:].mean())


def test_samples_without_numbers_are_counted_and_left_out() -> None:
    found = measure_consistency("a", [0.1, nan, 0.3, 0.4], [False, True, True, True])
    assert (found.n, found.missing, found.change) == (3, 1, pytest.approx(0.8 / 3))
    assert found.consistency.value == pytest.approx(1 / 3)
    assert found.samples.rho == pytest.approx(spearmanr([0.1, 0.3, 0.4], [1, 0, 0]).statistic)
    nothing = measure_consistency("b", [nan], [True])
    assert isnan(across_runs([found, found, nothing]).rho)
    assert across_runs([found, found, nothing]).n == 2


def test_only_ratios_of_a_log_count() -> None:
    columns = IprColumns()
    hostile: list[Any] = [
        None, [], "x", {}, {"ipr_full": [0.5]}, {"ipr_full": [0.5], "ipr_kept": [0.1, 0.2]},
        {"ipr_full": [None], "ipr_kept": [0.2]}, {"ipr_full": [float("nan")], "ipr_kept": [0.2]},
        {"ipr_full": ["1"], "ipr_kept": [0.2]}, {"ipr_full": [True], "ipr_kept": [0.2]},
        {"ipr_full": [7.0], "ipr_kept": [0.2]}, {"ipr_full": 0.5, "ipr_kept": 0.2},
        {"ipr_full": [[1]], "ipr_kept": [{}]},
    ]  # fmt: skip
    for doc, diagnostics in enumerate(hostile):
        columns.add(doc, diagnostics)
    assert len(columns) == 0
    assert np.isnan(columns.changes([0, 1])).all()
    columns.add(7, {"ipr_full": [0.5, None, 0.2], "ipr_kept": [0.1, 0.3, 0.4]})
    columns.add(3, {"ipr_full": [0.5], "ipr_kept": [0.5]})
    columns.add(7, {"ipr_full": [0.5], "ipr_kept": [0.5]})  # a second line of the document
    np.testing.assert_allclose(columns.changes([3, 5, 7]), [0, nan, 0.3])


def rows(change: float, wrong: int, told: bool = True) -> list[dict[str, Any]]:
    """A log whose spectrum changes by `change`, a little more in the first, `wrong` samples, whose answers change."""
    lines = []
    for i in range(N):
        broken = i < wrong
        counts: dict[str, Any] = {"output_tokens": 1}
        if told:
            counts["diagnostics"] = {"ipr_full": [0.2], "ipr_kept": [0.2 + change + (0.01 if broken else 0)]}
        lines.append(sample(i, "no" if broken else "yes", float(not broken), token_counts=[counts]))
    return lines


@pytest.fixture
def runs(write_run: WriteRun) -> list[Path]:
    base = write_run("base", {"shapes_vqa": rows(0, 0, told=False)})
    others = [
        write_run(f"r{n}", {"shapes_vqa": rows(n / 10, 4 * n)}, model="llava_fastv", args=f"pretrained=demo,r=0.{n}")
        for n in range(1, 6)
    ]
    return [base, *others, write_run("int8", {"shapes_vqa": rows(0, 3, told=False)}, model="llava_int8")]


def test_every_output(runs: list[Path], run_compare: Compare, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    done = run_compare(*runs, "-o", folder, "--html")
    assert done.exit_code == 0, done.output
    said = "Spearman ρ of mean |ΔIPR| and 1 − DR across 5 runs −1.00 (p 0.017, two-sided, all permutations)"
    assert said in done.stdout
    (task,) = json.loads((folder / "summary.json").read_text())["consistency"]
    assert task["across"] == {"points": 5, "rho": pytest.approx(-1), "p": pytest.approx(2 / 120)} | {
        "exact": True, "resamples": 0,
    }  # fmt: skip
    assert len(task["runs"]) == 5
    third = task["runs"][2]
    assert (third["n"], third["missing"]) == (N, 0)
    assert third["ipr_change"] == pytest.approx(0.3 + 0.01 * 12 / N)
    assert third["consistency"] == pytest.approx(1 - 12 / N)
    assert third["consistency_low"] < third["consistency"] < third["consistency_high"]
    assert third["rho"] == pytest.approx(-1)  # the samples that changed are those whose spectrum changed more
    assert third["p"] == pytest.approx(1 / 10_000)
    with (folder / "consistency.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] == "" for row in table] == [False] * 5 + [True]
    assert float(table[2]["ipr_change"]) == pytest.approx(third["ipr_change"])
    markdown = (folder / "divergence.md").read_text()
    assert "Spectrum of the visual tokens and unchanged answers, shapes" in markdown
    page = (folder / "report.html").read_text()
    assert "figure-consistency" in page
    assert "figure-frontier" in page
    assert {"consistency.svg", "consistency.png", "frontier.svg", "frontier.png"} <= {
        path.name for path in folder.iterdir()
    }


def test_logs_without_the_numbers_have_no_part_in_it(runs: list[Path], run_compare: Compare, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    assert run_compare(runs[0], runs[-1], "-o", folder).exit_code == 0
    assert json.loads((folder / "summary.json").read_text())["consistency"] == []
    assert not (folder / "consistency.csv").exists()


def test_runs_of_one_method_are_one_line_of_the_frontier() -> None:
    import pandas as pd

    costs = {"speedup": [nan] * 4, "tokens": [0.5, 0.25, 0.5, nan], "flops": [0.6, 0.4, 0.6, 1.0]}
    rates = {"dr": [0.1, 0.2, 0.05, 0.01], "ndr": [0.05, 0.1, 0.02, 0.0]}
    methods = ["fastv", "fastv", "random", "int8"]
    figure = draw_frontier(pd.DataFrame({"run": list("abcd"), "method": methods, **costs, **rates}))
    assert len(figure.axes) == 4  # two rates, two costs that the logs know
    front = figure.axes[0].lines[0]
    assert (list(front.get_xdata()), list(front.get_ydata())) == ([25, 50], [20, 5])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Pareto frontier", "fastv", "random", "int8"]


def test_labels_of_points_that_lie_together_do_not_lie_on_each_other(runs: list[Path]) -> None:
    (task,) = compare_runs(runs[0], runs[1:]).consistency
    figure = draw_consistency(task, {run.run: "m" for run in task.runs})
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(texts) == 5
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
