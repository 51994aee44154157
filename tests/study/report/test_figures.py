from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lmms_eval_stability.calibration import flip_rate_by_margin
from lmms_eval_stability.divergence import AVERAGE
from lmms_eval_stability.overlap import DivergedSet, overlap_table
from lmms_eval_stability.report.figures import (
    DARK,
    LIGHT,
    NEUTRAL,
    Theme,
    draw_margin,
    draw_overlap,
    draw_pareto,
    draw_score_drop,
    draw_upset,
    intersections,
    pareto_front,
    save_figure,
)
from lmms_eval_stability.report.figures.overlap import MEASURES
from lmms_eval_stability.report.figures.style import label, marks

from .pages import HOSTILE

RUNS = ("one", "two", "three")
rng = np.random.default_rng(5)


def records(runs: tuple[str, ...] = RUNS, tasks: tuple[str, ...] = ("gqa", "pope")) -> pd.DataFrame:
    rows = [
        {"run": run, "task": task, "score_unit": "fraction", "drop": 0.01 * i + 0.005 * j, "dr": 0.1 + 0.02 * i * j,
         "dr_low": 0.08, "dr_high": 0.3, "ndr": 0.05 + 0.01 * i, "ndr_low": 0.04, "ndr_high": 0.2}
        for i, run in enumerate(runs)
        for j, task in enumerate(tasks)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def sets(names: tuple[str, ...] = RUNS, n: int = 200) -> dict[str, DivergedSet]:
    risk = rng.random(n) < 0.7
    return {name: DivergedSet(np.arange(n), risk, risk & (rng.random(n) < 0.3)) for name in names}


def member_table(names: tuple[str, ...] = RUNS) -> pd.DataFrame:
    return pd.DataFrame({name: one.diverged for name, one in sets(names).items()})


def bins(names: tuple[str, ...] = RUNS) -> dict[str, pd.DataFrame]:
    margin = rng.random(300) * 5
    return {name: flip_rate_by_margin(margin, rng.random(300) < 0.3) for name in names}


def costs(names: tuple[str, ...] = RUNS) -> pd.DataFrame:
    n = len(names)
    prices = {"tokens": np.linspace(0.2, 1, n), "speedup": np.linspace(2, 1, n), "flops": np.linspace(0.3, 1, n)}
    rates = {"ndr": np.linspace(0.2, 0, n), "ndr_low": 0.0, "ndr_high": 0.3, "dr": 0.2, "dr_low": 0.1, "dr_high": 0.3}
    return pd.DataFrame({"run": names, **prices, **rates})


def every_figure(names: tuple[str, ...], theme: Theme) -> dict[str, Any]:
    return {
        "score_drop": draw_score_drop(records(names), theme),
        "overlap": draw_overlap(overlap_table(sets(names)), theme=theme),
        "upset": draw_upset(member_table(names), theme=theme),
        "margin": draw_margin(bins(names), theme),
        "pareto": draw_pareto(costs(names), theme=theme),
    }


def saved(figure: Any, kind: str) -> bytes:
    stream = io.BytesIO()
    save_figure(figure, stream, kind)
    return stream.getvalue()


def points(container: Any) -> list[tuple[float, float]]:
    return list(zip(*(values.tolist() for values in container.lines[0].get_data()), strict=True))


class TestScoreDrop:
    def test_a_point_per_run_and_task_with_its_interval(self) -> None:
        frame = records()
        figure = draw_score_drop(frame)
        for axes, rate in zip(figure.axes, ("dr", "ndr"), strict=True):
            for container, run in zip(axes.containers, RUNS, strict=True):
                part = frame[frame["run"] == run]
                assert points(container) == [(100 * a, 100 * b) for a, b in zip(part["drop"], part[rate], strict=True)]
                assert container.get_label() == run
                (bars,) = container.lines[2]
                ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
                np.testing.assert_allclose(ends, 100 * part[[f"{rate}_low", f"{rate}_high"]].to_numpy())

    def test_averages_and_native_scores_have_no_point_and_the_latter_are_counted(self) -> None:
        frame = records(("one",), ("gqa", "mme", AVERAGE))
        frame.loc[1, "score_unit"] = "native"
        (left, _) = draw_score_drop(frame).axes
        assert len(points(left.containers[0])) == 1
        assert "not drawn: 1 without a score from 0 to 1" in [text.get_text() for text in left.texts]

    def test_rank_correlation(self) -> None:
        frame = records(tuple("abcdef"), ("gqa",))
        frame["dr"], frame["ndr"] = frame["drop"] ** 3, -frame["drop"]
        left, right = draw_score_drop(frame).axes
        assert [axes.get_title(loc="left") for axes in (left, right)] == [
            "Spearman's ρ 1.00 (6 points)",
            "Spearman's ρ -1.00 (6 points)",
        ]

    def test_rates_without_an_interval_are_drawn_without_one(self) -> None:
        frame = records(("one",), ("gqa",))
        frame[["dr_low", "dr_high"]] = None
        (bars,) = draw_score_drop(frame).axes[0].containers[0].lines[2]
        assert bars.get_segments()[0][:, 1].tolist() == [10, 10]


class TestOverlap:
    @pytest.mark.parametrize("measure", list(MEASURES))
    def test_the_cells_are_those_of_the_table(self, measure: str) -> None:
        table = overlap_table(sets())
        axes = draw_overlap(table, measure).axes[0]
        values = axes.images[0].get_array()
        for row in table.to_dict("records"):
            shown = values[RUNS.index(row["method"]), RUNS.index(row["other"])]
            assert shown == pytest.approx(row[measure] * (1 if measure == "lift" else 100))

    def test_cells_say_share_and_lift_and_the_diagonal_the_size(self) -> None:
        table = overlap_table(sets())
        texts = {text.get_position(): text.get_text() for text in draw_overlap(table).axes[0].texts}
        first = table.iloc[0]
        assert texts[1, 0] == f"{100 * first['containment']:.0f}\n×{first['lift']:.1f}"
        assert texts[0, 0] == f"n={first['n_method']}"

    def test_a_method_that_breaks_nothing_has_no_shares(self) -> None:
        some = sets(("one",), 50)["one"]
        none = DivergedSet(some.doc_id, some.at_risk, np.zeros(50, dtype=bool))
        texts = [text.get_text() for text in draw_overlap(overlap_table({"a": none, "b": some})).axes[0].texts]
        assert texts[:2] == ["n=0", "–"]

    def test_one_method_has_no_overlap(self) -> None:
        figure = draw_overlap(overlap_table(sets(("one",))))
        assert figure.texts[0].get_text() == "overlap needs at least two methods"

    def test_each_task_has_a_matrix_of_its_own(self) -> None:
        tables = {"gqa": overlap_table(sets()), "pope": overlap_table(sets(("one", "two")))}
        tables["none"] = overlap_table(sets(("one",)))
        panels = draw_overlap(tables).axes
        assert [axes.get_title(loc="left") for axes in panels] == ["gqa", "pope"]
        for axes, table in zip(panels, tables.values(), strict=False):
            shown = axes.images[0].get_array().compressed() if hasattr(axes.images[0].get_array(), "compressed") else ()
            assert sorted(shown) == pytest.approx(sorted(100 * table["containment"]))

    def test_matrices_of_tasks_share_one_scale(self) -> None:
        some = overlap_table(sets())
        large = some.assign(lift=7.5)
        assert [axes.images[0].get_clim() for axes in draw_overlap({"a": some, "b": large}, "lift").axes] == [
            (0, 7.5)
        ] * 2

    @pytest.mark.parametrize("names", [("one", "two"), tuple("abcdefghijk")])
    def test_the_words_above_fit_into_the_picture(self, names: tuple[str, ...]) -> None:
        figure = draw_overlap({"gqa": overlap_table(sets(names))})
        figure.canvas.draw()
        words = figure.get_suptitle()
        assert "share of the row" in words
        (title,) = [text for text in figure.texts if text.get_text() == words]
        box = title.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width

    def test_another_measure(self) -> None:
        with pytest.raises(ValueError, match="expected containment, jaccard, lift"):
            draw_overlap(overlap_table(sets()), "cosine")


class TestUpset:
    def test_exclusive_intersections_by_hand(self) -> None:
        table = pd.DataFrame({"a": [1, 1, 1, 0, 0, 1], "b": [1, 1, 0, 0, 1, 1], "c": [0, 0, 0, 0, 0, 1]}).astype(bool)
        found = intersections(table)
        assert found.astype(int).to_numpy().tolist() == [[1, 1, 0, 2], [1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]]

    def test_sizes_sum_to_the_samples_that_diverge_at_all(self) -> None:
        table = member_table(tuple("abcdef"))
        found = intersections(table)
        assert found["size"].sum() == table.any(axis=1).sum()
        for name in table:
            assert found.loc[found[name], "size"].sum() == table[name].sum()

    def test_bars_and_dots(self) -> None:
        table = member_table()
        found = intersections(table)
        bars, dots, totals = draw_upset(table).axes
        assert [bar.get_height() for bar in bars.patches] == found["size"].tolist()
        assert [bar.get_width() for bar in totals.patches] == table.sum().tolist()
        filled = [set(line.get_ydata()) for line in dots.lines[1::2]]
        assert filled == [{i for i, name in enumerate(RUNS) if row[name]} for row in found.to_dict("records")]

    def test_what_is_left_out_is_counted(self) -> None:
        table = member_table()
        found = intersections(table)
        bars = draw_upset(table, most=2).axes[0]
        rest = found["size"].iloc[2:]
        assert bars.get_title(loc="right") == f"not shown: {len(rest)} more combinations with {rest.sum()} samples"
        assert len(bars.patches) == 2

    def test_each_task_has_a_plot_of_its_own(self) -> None:
        tables = {"gqa": member_table(), "pope": member_table(("one", "two")), "none": pd.DataFrame({"a": [False]})}
        drawn = draw_upset(tables).axes
        assert len(drawn) == 6
        for bars, table, task in zip(drawn[::3], tables.values(), tables, strict=False):
            assert bars.get_title(loc="left") == task
            assert [bar.get_height() for bar in bars.patches] == intersections(table)["size"].tolist()
        assert drawn[0].get_xlim() == drawn[3].get_xlim() == drawn[1].get_xlim()

    def test_nothing_diverges(self) -> None:
        figure = draw_upset(pd.DataFrame({"a": [False]}))
        assert figure.texts[0].get_text() == "no sample diverges under any method"


class TestMargin:
    def test_lines_and_bands(self) -> None:
        tables = bins()
        for axes, (name, table) in zip(draw_margin(tables).axes, tables.items(), strict=True):
            assert axes.get_title(loc="left") == name
            np.testing.assert_allclose(axes.lines[-1].get_ydata(), 100 * table["rate"])
            band = axes.collections[0].get_paths()[0].vertices[:, 1]
            assert band.min() == pytest.approx(100 * table["rate_low"].min())
            assert band.max() == pytest.approx(100 * table["rate_high"].max())
            assert len(axes.lines) == len(tables)

    def test_runs_without_margins_have_no_panel(self) -> None:
        tables = bins(("one",)) | {"none": flip_rate_by_margin([], [])}
        assert len(draw_margin(tables).axes) == 1
        assert "no log holds" in draw_margin({"none": tables["none"]}).texts[0].get_text()


class TestPareto:
    def test_the_front_is_what_nothing_dominates(self) -> None:
        x, y = rng.integers(0, 9, 60).astype(float), rng.integers(0, 9, 60).astype(float)
        x[3] = np.nan
        dominated = [
            any(a <= x[i] and b <= y[i] and (a < x[i] or b < y[i]) for a, b in zip(x, y, strict=True))
            for i in range(60)
        ]
        expected = [not worse and i != 3 for i, worse in enumerate(dominated)]
        assert pareto_front(x, y).tolist() == expected

    @pytest.mark.parametrize(("axis", "factor"), [("tokens", 100), ("speedup", 1), ("flops", 100)])
    def test_points(self, axis: str, factor: int) -> None:
        frame = costs()
        drawn = {line.get_label(): line for line in draw_pareto(frame, axis).axes[0].lines}
        for row in frame.to_dict("records"):
            line = drawn[row["run"]]
            assert line.get_xdata() == pytest.approx([factor * row[axis]])
            assert line.get_ydata() == pytest.approx([100 * row["ndr"]])

    def test_more_speed_is_better_and_fewer_tokens_are(self) -> None:
        frame = pd.DataFrame({"run": ["a", "b"], "tokens": [0.1, 0.9], "speedup": [1.0, 2.0], "ndr": [0.1, 0.1]})
        for axis, best in (("tokens", "a"), ("speedup", "b")):
            lines = {line.get_label(): line for line in draw_pareto(frame, axis).axes[0].lines}
            filled = [name for name in "ab" if lines[name].get_markerfacecolor() != "none"]
            assert filled == [best]

    def test_runs_without_a_value_are_counted(self) -> None:
        frame = costs()
        frame.loc[0, "tokens"] = np.nan
        texts = [text.get_text() for text in draw_pareto(frame).axes[0].texts]
        assert texts == ["not drawn: 1 runs whose logs do not say"]
        frame["tokens"] = np.nan
        assert draw_pareto(frame).texts[0].get_text() == "no log says: visual tokens kept (%)"
        with pytest.raises(ValueError, match="expected speedup, tokens, flops"):
            draw_pareto(frame, "price")


@pytest.mark.parametrize("theme", [LIGHT, DARK, NEUTRAL], ids=lambda theme: theme.name)
def test_every_figure_with_hostile_names_is_a_picture_without_background(theme: Theme) -> None:
    names = tuple(f"{text} {'long ' * 30}" for text in HOSTILE)
    for name, figure in every_figure(names, theme).items():
        root = ElementTree.fromstring(saved(figure, "svg"))
        assert root.tag.endswith("svg"), name
        assert not [node.tag for node in root.iter() if node.tag.endswith(("script", "image", "foreignObject"))] or (
            name == "overlap"  # its matrix is a bitmap, inlined
        )
        assert all("http" not in value for node in root.iter() for key, value in node.items() if "href" in key)
        picture = Image.open(io.BytesIO(saved(figure, "png"))).convert("RGBA")
        assert picture.getpixel((0, 0))[3] == 0, name
        assert np.asarray(picture)[..., 3].max() == 255, name


def test_the_same_numbers_give_the_same_file() -> None:
    frame = records()
    for kind in ("svg", "png"):
        assert saved(draw_score_drop(frame), kind) == saved(draw_score_drop(frame), kind)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("theme", "background"), [(LIGHT, "#ffffff"), (DARK, "#14181d"), (NEUTRAL, "#ffffff"), (NEUTRAL, "#0d1117")]
)
def test_colours_can_be_read(theme: Theme, background: str) -> None:
    least = 4.1 if theme is NEUTRAL else 4.5
    assert contrast(theme.text, background) >= least
    assert contrast(theme.faint, background) >= least
    assert min(contrast(colour, background) for colour in theme.series) >= 3


def test_runs_look_different_by_more_than_colour() -> None:
    look = marks([str(i) for i in range(63)], LIGHT)
    assert len(set(look.values())) == 63
    assert len({mark.marker for mark in list(look.values())[:9]}) == 9


def test_labels_are_one_short_line() -> None:
    assert label("a\n\tb\x00c\ud800") == "a b c?"
    assert label("model (k=3, some long argument, pretrained=demo)", 20) == "model (k=3, …d=demo)"
    assert len(label("x" * 100, 20)) == 20
