"""LaTeX tables: golden texts by hand, hostile names, and every published table read back from its LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms_eval_stability import compare_runs
from lmms_eval_stability.errors import OptionError
from lmms_eval_stability.paper import read_table
from lmms_eval_stability.report.folder import ReportFolder
from lmms_eval_stability.report.latex import Layout, comparison_latex, escape, tidy, to_latex

from .conftest import BASE, FASTV, WriteRun, samples

COLUMNS = ["base_model", "method", "benchmark", "metric", "value"]
SMALL = pd.DataFrame(
    [
        ("LLaVA-1.5", "baseline", "GQA", "score", 61.92),
        ("LLaVA-1.5", "baseline", "Average", "score", 60.3),
        ("LLaVA-1.5", "FastV", "GQA", "NDR", 4.41),
        ("LLaVA-1.5", "FastV", "GQA", "DR", 10.85),
        ("LLaVA-1.5", "FastV", "GQA", "drop", -0.004),
        ("LLaVA-1.5", "FastV", "Average", "drop", -0.69),
        ("LLaVA-Next", "HiRED", "GQA", "DR", float("nan")),
    ],
    columns=COLUMNS,
)


def test_rows_per_metric_by_hand() -> None:
    assert (
        to_latex(SMALL)
        == r"""% \usepackage{booktabs}
\begin{tabular}{llrr}
\toprule
Method &  & GQA & Average \\
\midrule
\multicolumn{4}{l}{\textit{LLaVA-1.5}} \\
baseline & Score & 61.92 & 60.30 \\
\addlinespace
FastV & Drop & 0.00 & $-0.69$ \\
 & DR & 10.85 & -- \\
 & NDR & 4.41 & -- \\
\midrule
\multicolumn{4}{l}{\textit{LLaVA-Next}} \\
HiRED & DR & -- & -- \\
\bottomrule
\end{tabular}
"""
    )


def test_columns_per_metric_by_hand() -> None:
    frame = SMALL[SMALL.base_model == "LLaVA-1.5"].assign(base_model="")
    layout = Layout(metrics="columns", decimals=1, caption="50 % of $x$", label="tab:small")
    assert (
        to_latex(frame, layout)
        == r"""% \usepackage{booktabs}
\begin{table*}
\centering
\begin{tabular}{lrrrrrr}
\toprule
 & \multicolumn{4}{c}{GQA} & \multicolumn{2}{c}{Average} \\
\cmidrule(lr){2-5}\cmidrule(lr){6-7}
Method & Score & Drop & DR & NDR & Score & Drop \\
\midrule
baseline & 61.9 & -- & -- & -- & 60.3 & -- \\
FastV & -- & 0.0 & 10.8 & 4.4 & -- & $-0.7$ \\
\bottomrule
\end{tabular}
\caption{50 \% of \$x\$}
\label{tab:small}
\end{table*}
"""
    )


def test_perturbations_are_columns_and_intervals_follow_their_value() -> None:
    rows = [
        ("M", "AWQ", state, "GQA", "DR", value, value - 1, value + 1.25)
        for state, value in [("none", 2.0), ("text", 0.5)]
    ]
    frame = pd.DataFrame(
        rows, columns=["base_model", "method", "perturbation", "benchmark", "metric", "value", "low", "high"]
    )
    frame.loc[1, "low"] = -0.5
    text = to_latex(frame)
    assert r" &  & \multicolumn{2}{c}{GQA} \\" in text
    assert r"\cmidrule(lr){3-4}" in text
    assert r"Method &  & none & text \\" in text
    assert r"AWQ & DR & 2.00 {\scriptsize [1.00, 3.25]} & 0.50 {\scriptsize [$-0.50$, 1.75]} \\" in text
    frame.loc[0, "high"] = float("nan")
    assert r"AWQ & DR & 2.00 & 0.50" in to_latex(frame)


def test_names_are_data() -> None:
    assert escape("a_b & 50% $x$ #1 {y}") == r"a\_b \& 50\% \$x\$ \#1 \{y\}"
    assert escape("\\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert escape('[2cm] * a--b---c ~^<|>`"') == (
        r"{[}2cm{]} {*} a-{}-b-{}-{}-c \textasciitilde{}\textasciicircum{}\textless{}\textbar{}\textgreater{}"
        r"\textasciigrave{}''"
    )
    assert escape("two\n\nlines\\\\\t\x00end") == r"two lines\textbackslash{}\textbackslash{} end"
    assert escape("é 中") == "é 中"


@given(st.text())
def test_no_name_leaves_its_cell(name: str) -> None:
    """Commands come from a short list, braces match, and what ends a cell, a row or a line is never bare."""
    text = escape(name)
    known = (
        r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave)\{\}|\\[&%$#_{}]"
    )
    rest = re.sub(rf"{known}|\{{[\[\]*]\}}|\{{\}}", "", text)
    assert not set(rest) & set('\\&%$#_{}~^<>|`"[]*\n\r')
    assert "--" not in text
    frame = pd.DataFrame([("m", name, "b", "DR", 1.0)], columns=COLUMNS)
    assert to_latex(frame).count("\n") == 9


def read_back(text: str) -> list[tuple[str, ...]]:
    """(model, method, metric, columns..., number) of every number in a table with a row per metric."""
    body = text.replace("\\%", "%").replace("$", "").splitlines()
    heads: list[list[str]] = []
    found, model, method = [], "", ""
    for line in body:
        if not line.endswith("\\\\"):
            continue
        cells = [cell.strip() for cell in line.removesuffix("\\\\").split(" & ")]
        block = re.fullmatch(r"\\multicolumn\{\d+\}\{l\}\{\\textit\{(.*)\}\}", cells[0])
        if block:
            model = block[1]
            continue
        spans = [re.fullmatch(r"\\multicolumn\{(\d+)\}\{c\}\{(.*)\}", cell) for cell in cells[2:]]
        if any(spans):
            heads.append([span[2] for span in spans if span for _ in range(int(span[1]))])
        elif cells[0] == "Method":
            heads.append(cells[2:])
        else:
            method = cells[0] or method
            assert len(cells) - 2 == len(heads[-1])
            for key, number in zip(zip(*heads, strict=True), cells[2:], strict=True):
                if number != "--":
                    found.append((model, method, cells[1], *key, number))
    return found


@pytest.mark.parametrize(("number", "decimals"), [(1, 2), (2, 2), (3, 2), (4, 2), (10, 2), (11, 3), (12, 3)])
def test_published_tables_lose_and_move_nothing(number: int, decimals: int) -> None:
    frame = read_table(number)
    text = to_latex(frame, Layout(decimals=decimals))
    states = ["perturbation"] if frame.perturbation.nunique() > 1 else []
    names = ["base_model", "method", "metric", "benchmark", *states]
    records = frame.to_dict("records")
    expected = {(*(row[name] for name in names), f"{row['value'] + 0.0:.{decimals}f}") for row in records}
    found = {(model, method, metric.replace("Score", "score").replace("Drop", "drop"), *rest)
             for model, method, metric, *rest in read_back(text)}  # fmt: skip
    assert found == expected
    assert len(read_back(text)) == len(frame)
    for layout in (Layout(), Layout(metrics="columns", caption="c", label="l")):
        text = to_latex(frame, layout)
        width = len(re.search(r"\\begin\{tabular\}\{(l+r+)\}", text)[1])  # type: ignore[index]
        for line in text.splitlines():
            if line.endswith("\\\\"):
                spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert line.count(" & ") + 1 - len(spans) + sum(spans) == width
        begun, ended = (re.findall(rf"\\{kind}\{{(.+?)\}}", text) for kind in ("begin", "end"))
        assert begun == ended[::-1]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (SMALL.drop(columns=["metric", "value"]), "lacks the columns metric, value"),
        (SMALL.iloc[:0], "no rows"),
        (pd.concat([SMALL, SMALL.iloc[2:3]]), "the same number: LLaVA-1.5, FastV, NDR, GQA"),
    ],
)
def test_frames_that_are_no_table(frame: pd.DataFrame, message: str) -> None:
    for metrics in ("rows", "columns"):
        with pytest.raises(OptionError, match=message):
            to_latex(frame, Layout(metrics=metrics))  # type: ignore[arg-type]


def test_a_label_is_no_text() -> None:
    with pytest.raises(OptionError, match="use letters, digits"):
        to_latex(SMALL, Layout(label="tab}\\input{x"))


def test_a_comparison_as_a_table(base: Path, fastv: Path, write_run: WriteRun) -> None:
    other = write_run("awq", {"gqa": BASE}, model="llava_awq")
    frame = tidy(compare_runs(str(base), [str(fastv), str(other)]).table)
    text = to_latex(frame, Layout(decimals=1))
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert rows[2] == r"baseline & Score & 60.0 \\"
    assert rows[3] == r"llava\_fastv (k=3, r=0.5) & Score & 60.0 \\"
    assert rows[4] == r" & Drop & 0.0 \\"
    assert rows[5] == r" & DR & 60.0 {\scriptsize [23.1, 88.2]} \\"
    assert sum("baseline & " in row for row in rows) == 1


def test_a_baseline_over_other_pairs_for_each_run_is_shown_for_each(write_run: WriteRun) -> None:
    base = write_run("base", {"gqa": BASE, "vizwiz_vqa": samples("a b", [0.3, 1.0])})
    runs = [
        write_run("one", {"gqa": FASTV, "vizwiz_vqa": samples("a c", [0.3, 0.0])}, model="llava_one"),
        write_run("two", {"gqa": FASTV[:2], "vizwiz_vqa": samples("a c", [0.3, 0.0])}, model="llava_two"),
    ]
    frame = tidy(compare_runs(str(base), list(map(str, runs)), accept=["unpaired"]).table)
    baselines = frame[frame.method.str.startswith("baseline")]
    scores = {(row.method, row.benchmark): row.value for row in baselines.itertuples()}
    assert scores["baseline", "vizwiz_vqa"] == pytest.approx(65.0)
    assert scores["baseline (pairs of llava_one)", "gqa"] == pytest.approx(60.0)
    assert scores["baseline (pairs of llava_two)", "gqa"] == pytest.approx(100.0)
    assert "baseline (pairs of llava" in to_latex(frame)


def test_the_table_of_a_report(base: Path, fastv: Path, write_run: WriteRun, tmp_path: Path) -> None:
    named = write_run("other", {"gqa": FASTV}, model="baseline", args="pretrained=demo")
    comparison = compare_runs(str(base), [str(fastv), str(named)])
    text = comparison_latex(comparison)
    assert text.startswith("% \\usepackage{booktabs}\n\\begin{table*}\n")
    assert "\\caption{Divergence from llava\\_baseline: score, drop," in text
    assert "95 \\% intervals (Wilson).}" in text
    # a run that is called "baseline" is not taken for the baseline
    assert [run.label for run in comparison.runs][1] == "baseline"
    assert "\nllava\\_baseline & Score & 60.00 \\\\\n" in text
    assert "\nbaseline & Score & 60.00 \\\\\n" in text
    with ReportFolder(tmp_path / "report") as folder:
        folder.finish(comparison)
    assert (tmp_path / "report" / "tables.tex").read_text(encoding="utf-8") == text
