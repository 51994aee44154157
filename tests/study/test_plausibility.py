"""Plausibility checks: each rule on a table made by hand, all of them on the published tables and on honest ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_eval_stability.paper import COLUMNS, SIZES, TABLES, read_table, table_path
from lmms_eval_stability.plausibility import CHECKS, Finding, Options, check_table, read_results
from lmms_eval_stability.plausibility.numbers import Number

HEADER = "table,base_model,method,perturbation,benchmark,metric,value,n,scoring\n"


def findings(text: str, folder: Path, options: Options | None = None, header: str = HEADER) -> list[Finding]:
    """What is found in lines such as "1,M,fastv,none,gqa,DR,12.5,,"."""
    path = folder / "table.csv"
    path.write_text(header + "".join(f"{line.strip()}\n" for line in text.strip().splitlines()), encoding="utf-8")
    return [found for outcome in check_table(read_results([path], "t", options)) for found in outcome.findings]


def cell(n: str = "", scoring: str = "", method: str = "fastv", benchmark: str = "b", **values: str) -> str:
    """One cell's lines."""
    return "\n".join(f"1,M,{method},none,{benchmark},{name},{value},{n},{scoring}" for name, value in values.items())


def names(found: list[Finding]) -> list[str]:
    return [finding.check for finding in found]


# --- printed numbers


def test_a_printed_number_is_an_interval_with_its_ends() -> None:
    number = Number.parse("2.30")
    assert (number.low, number.high) == (Fraction(2295, 1000), Fraction(2305, 1000))
    assert Number.parse("7").low == Fraction(13, 2)
    assert Number.parse("-1.5e-3").high == Fraction(-145, 100000)
    assert Number.parse("0.126", exact=True).high < Fraction(1260001, 10**7)


@pytest.mark.parametrize("text", ["", "n/a", "nan", "inf", "1e999999", "1e-400", "12,5", "12 %"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|scale"):
        Number.parse(text)


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(0, 6))
def test_a_share_that_is_printed_is_recognised(k: int, n: int, digits: int) -> None:
    """Rounded to any number of digits, by Python's rule (half to even) as by any other."""
    k = min(k, n)
    assert Number.parse(f"{100 * k / n:.{digits}f}").is_share_of(n, 100)
    assert Number.parse(repr(k / n), exact=True).is_share_of(n, 1)
    beside = Fraction(2 * k + 1, 2 * n)  # halfway to the next
    assert not Number(str(beside), beside, beside).is_share_of(n, 1)


# --- each rule on tables made by hand: what breaks it, what just does not


@pytest.mark.parametrize(
    ("broken", "fine", "check"),
    [
        (cell(DR="100.01"), cell(DR="100.00"), "rate-range"),
        (cell(NDR="-0.6"), cell(NDR="-0.0"), "rate-range"),
        (cell(DR="2.29", NDR="2.31"), cell(DR="2.29", NDR="2.30"), "dr-below-ndr"),
        (cell(DR="5.0", NDR="3.0", PDR="2.2"), cell(DR="5.0", NDR="3.0", PDR="2.1"), "dr-below-flips"),
        # NDR + PDR = 2 NDR - drop = 5.2 +- 0.15
        (cell("", "binary", DR="4.9", NDR="3.2", drop="1.2"), cell("", "binary", DR="5.0", NDR="3.2", drop="1.2"),
         "dr-below-flips"),
        (cell("", "binary", DR="9", NDR="3.0", PDR="1.0", drop="2.2"),
         cell("", "binary", DR="9", NDR="3.0", PDR="1.0", drop="2.1"), "drop-not-flips"),
        (cell("", "binary", DR="9", NDR="3.0", drop="3.2"), cell("", "binary", DR="9", NDR="3.0", drop="3.1"),
         "drop-not-flips"),
        (cell("900", DR="9.45"), cell("900", DR="9.44"), "no-count"),
        (cell("900", "binary", score="35.60"), cell("900", "binary", score="35.56"), "no-count"),
        (cell("900", "binary", score="35.60"), cell("900", "soft", score="35.60"), "no-count"),
        (cell(method="baseline", score="60.00") + "\n" + cell(score="58.00", drop="2.02"),
         cell(method="baseline", score="60.00") + "\n" + cell(score="58.00", drop="2.01"), "drop-not-difference"),
        (cell(score="58.00", drop="2.00") + "\n" + cell(method="awq", score="59.00", drop="1.03"),
         cell(score="58.00", drop="2.00") + "\n" + cell(method="awq", score="59.00", drop="1.02"),
         "drop-not-difference"),
        (cell(DR="4") + "\n" + cell(benchmark="c", DR="6") + "\n" + cell(benchmark="Average", DR="7"),
         cell(DR="4") + "\n" + cell(benchmark="c", DR="6") + "\n" + cell(benchmark="Average", DR="5"),
         "average-not-mean"),
        (cell(rows="4") + "\n" + cell(benchmark="c", rows="6") + "\n" + cell(benchmark="TOTAL", rows="12"),
         cell(rows="4") + "\n" + cell(benchmark="c", rows="6") + "\n" + cell(benchmark="TOTAL", rows="10"),
         "total-not-sum"),
        (cell(method="baseline", score="60.00") + "\n" + cell(score="58.00", drop="0.020"),
         cell(method="baseline", score="60.00") + "\n" + cell(score="58.00", drop="2.000"), "units"),
        (cell(DR="4.00") + "\n2,M,fastv,none,b,DR,4.02,,", cell(DR="4.00") + "\n2,M,fastv,none,b,DR,4.004,,",
         "tables-disagree"),
        (cell(score="58") + "\n" + cell(benchmark="c", score="0.58"),
         cell(score="58") + "\n" + cell(benchmark="c", score="0.00"), "mixed-units"),
        (cell(score="58.31") + "\n1,M,fastv,text,b,score,58.31,,",
         cell(score="58.31") + "\n1,M,fastv,text,b,score,58.30,,", "identical-scores"),
        (cell(score="58.31", DR="9.00", NDR="3.00") + "\n" + cell(method="awq", score="58.31", DR="9.00", NDR="3.00"),
         cell(score="58.31", DR="9.00", NDR="3.00") + "\n" + cell(method="awq", score="58.31", DR="9.01", NDR="3.00"),
         "identical-methods"),
    ],
)  # fmt: skip
def test_each_rule_by_hand(broken: str, fine: str, check: str, tmp_path: Path) -> None:
    assert names(findings(broken, tmp_path)) == [check]
    assert findings(fine, tmp_path) == []


def test_soft_scores_are_no_counts_and_their_drop_is_no_difference_of_rates(tmp_path: Path) -> None:
    assert findings(cell("900", "soft", DR="5.00", NDR="1.00", drop="3.00", score="35.6"), tmp_path) == []
    # POPE has F1, MMBench counts groups, and an unknown benchmark may have any score
    for name in ("POPE", "MMBench", "VQAv2", "something"):
        assert findings(cell(benchmark=name, DR="5.00", NDR="1.00", drop="3.00"), tmp_path) == []
    options = Options(binary=frozenset({"something"}))
    for name in ("GQA", "gqa", "something"):
        text = cell(benchmark=name, DR="5.00", NDR="1.00", drop="3.00")
        assert names(findings(text, tmp_path, options)) == ["drop-not-flips"]


def test_an_average_that_leaves_out_a_benchmark_says_which(tmp_path: Path) -> None:
    text = "\n".join(cell(benchmark=name, DR=dr) for name, dr in [("a", "1"), ("b", "20"), ("c", "3"), ("Avg", "2")])
    (finding,) = findings(text, tmp_path)
    assert finding.check == "average-not-mean"
    assert "mean of the 3 benchmarks is 8; without b it is as printed" in finding.why


def test_a_finding_says_where(tmp_path: Path) -> None:
    (finding,) = findings("7,M,awq,text,b,DR,1.0,,\n7,M,awq,text,b,score,50,,\n7,M,awq,text,b,NDR,2.0,,", tmp_path)
    assert finding.where == "table 7 · M · awq · text · b"
    assert finding.numbers == {"DR": "1.0", "NDR": "2.0"}
    assert finding.lines == (2, 4)
    assert finding.severity == "error"


GRID = {
    (method, benchmark): base * factor
    for method, base in {"m1": 2.0, "m2": 4.1, "m3": 7.8, "m4": 11.0}.items()
    for benchmark, factor in {"b1": 1.0, "b2": 1.52, "b3": 0.41, "b4": 2.03}.items()
}


def grid(numbers: dict[tuple[str, str], float]) -> str:
    """A DR of every method on every benchmark, with a little noise that is no part of the two terms."""
    return "\n".join(
        cell(method=m, benchmark=b, DR=f"{value * (1 + 0.02 * ((7 * i) % 5 - 2)):.3f}")
        for i, ((m, b), value) in enumerate(numbers.items())
    )


@pytest.mark.parametrize("place", [("m1", "b1"), ("m4", "b3")])
def test_one_cell_apart_from_its_method_and_benchmark(place: tuple[str, str], tmp_path: Path) -> None:
    assert findings(grid(GRID), tmp_path) == []
    (finding,) = findings(grid({**GRID, place: 4 * GRID[place]}), tmp_path)
    assert (finding.check, finding.method, finding.benchmark) == ("cell-apart", *place)
    assert finding.severity == "suspicious"
    assert findings(grid({key: value for key, value in GRID.items() if key != ("m2", "b2")}), tmp_path) == []


def test_methods_in_two_groups_need_both_numbers(tmp_path: Path) -> None:
    dr = {"a": "8.0", "b": "10.0", "c": "43.0", "d": "46.0"}
    score = {"a": "45.1", "b": "45.9", "c": "48.2", "d": "48.6"}
    text = "\n".join(cell(method=m, DR=dr[m], score=score[m]) for m in dr)
    (finding,) = findings(text, tmp_path)
    assert (finding.check, finding.method) == ("methods-apart", "c, d")
    mixed = dict(zip(dr, ["48.2", "45.9", "45.1", "48.6"], strict=True))
    assert findings("\n".join(cell(method=m, DR=dr[m], score=mixed[m]) for m in dr), tmp_path) == []
    assert findings("\n".join(cell(method=m, DR=dr[m], score=score[m]) for m in "abc"), tmp_path) == []
    # a gap of 33 below, then above, a group that is itself 34 wide
    for wide in ({"a": "8", "b": "42", "c": "75.5", "d": "76"}, {"a": "8", "b": "8.5", "c": "42", "d": "76"}):
        assert findings("\n".join(cell(method=m, DR=wide[m], score=score[m]) for m in wide), tmp_path) == []


def test_a_row_in_alphabetical_order_of_other_benchmarks(tmp_path: Path) -> None:
    """True rates stand under z, a, m in the order of a, m, z."""
    ndr, dr = {"z": "1.0", "a": "6.0", "m": "3.0"}, {"z": "2.0", "a": "8.0", "m": "4.0"}
    printed = dict(zip(ndr, [dr[name] for name in sorted(dr)], strict=True))
    text = "\n".join(cell(benchmark=b, NDR=ndr[b], DR=printed[b]) for b in ndr)
    found = {finding.check: finding for finding in findings(text, tmp_path)}
    assert set(found) == {"dr-below-ndr", "row-permuted"}
    assert "a 8.0, m 4.0, z 2.0" in found["row-permuted"].why
    # another mistake in the same row, which no order repairs
    text = text.replace(",NDR,1.0", ",NDR,9.0")
    assert "row-permuted" not in names(findings(text, tmp_path))


# --- tables of real verdicts never break a rule


@st.composite
def verdicts(draw: st.DrawFn) -> list[tuple[bool, bool, bool]]:
    """(right before, right after, changed): an answer whose verdict differs has changed."""
    pairs = draw(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60))
    repeats = draw(st.integers(1, 40))
    return [(before, after, changed or before != after) for before, after, changed in pairs] * repeats


@settings(max_examples=60, deadline=None)
@given(
    benchmarks=st.lists(verdicts(), min_size=1, max_size=4),
    digits=st.integers(0, 5),
    percent=st.booleans(),
    with_baseline=st.booleans(),
)
def test_a_table_of_real_verdicts_has_no_finding(
    benchmarks: list[list[tuple[bool, bool, bool]]],
    digits: int,
    percent: bool,
    with_baseline: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever the verdicts, the digits, the unit and the columns printed; drops and averages from exact values."""
    scale, lines, rows = 100 if percent else 1, [], []
    for i, pairs in enumerate(benchmarks):
        n = len(pairs)
        before, after = (sum(pair[side] for pair in pairs) for side in (0, 1))
        negative = sum(b and not a for b, a, _ in pairs)
        positive = sum(a and not b for b, a, _ in pairs)
        shares = {"DR": sum(c for *_, c in pairs), "NDR": negative, "drop": before - after, "score": after}
        shares |= {"PDR": positive} if i % 2 else {}
        values = {name: Fraction(scale * k, n) for name, k in shares.items()}
        rows.append({name: values[name] for name in ("DR", "NDR", "drop", "score")})
        lines.append(cell(str(n), "binary", benchmark=f"b{i}", **printed(values, digits)))
        if with_baseline:
            score = printed({"score": Fraction(scale * before, n)}, digits)
            lines.append(cell(str(n), "binary", method="baseline", benchmark=f"b{i}", **score))
    means = {name: sum((row[name] for row in rows), Fraction()) / len(rows) for name in rows[0]}
    lines.append(cell(benchmark="Average", **printed(means, digits)))
    found = findings("\n".join(lines), tmp_path_factory.mktemp("t"), Options(scale=scale))
    # a score of 0.5 % beside one of 50 % is possible, and looks like a fraction
    assert [finding for finding in found if finding.check != "mixed-units"] == []


def printed(values: dict[str, Fraction], digits: int) -> dict[str, str]:
    return {name: f"{float(value):.{digits}f}" for name, value in values.items()}


# --- the published tables


@pytest.fixture(scope="module")
def published() -> list[Finding]:
    table = read_results([table_path(number) for number in TABLES], "paper", Options(sizes=SIZES))
    return [finding for outcome in check_table(table) for finding in outcome.findings]


#: Every known inconsistency of the published tables that a table alone can show: (check, table, model, method,
#: perturbation, benchmark), and a number of it.
KNOWN = [
    ("dr-below-ndr", "2", "LLaVA-Next", "GPTQ", "none", "OKVQA", "1.51"),
    ("dr-below-flips", "2", "LLaVA-Next", "GPTQ", "none", "AI2D", "6.95"),
    ("dr-below-flips", "2", "LLaVA-Next", "GPTQ", "none", "MMMU", "9.45"),
    ("no-count", "2", "LLaVA-Next", "GPTQ", "none", "AI2D", "6.95"),
    ("no-count", "2", "LLaVA-Next", "GPTQ", "none", "ScienceQA", "21.33"),
    ("no-count", "2", "LLaVA-Next", "GPTQ", "none", "MMMU", "9.45"),
    ("row-permuted", "2", "LLaVA-Next", "GPTQ", "none", "", "11.82"),
    ("total-not-sum", "7", "", "", "", "TOTAL", "253972"),
    *[
        ("average-not-mean", "10", "Qwen2-VL", method, "none", "Average", value)
        for method, values in {
            "baseline": ["64.03"],
            "AWQ": ["61.46", "2.57", "21.72", "7.36637"],
            "GPTQ": ["61.19", "2.84", "19.92", "6.60597"],
        }.items()
        for value in values
    ],
    ("identical-scores", "11", "LLaVA-1.5", "HiRED", "none, text", "GQA", "61.226"),
    ("identical-scores", "11", "LLaVA-Next", "HiRED", "vision, text", "GQA", "39.831"),
    ("identical-scores", "11", "LLaVA-Next", "HiRED", "none, vision, text", "VQAv2", "77.571"),
    ("cell-apart", "2", "Qwen2.5-VL", "GPTQ", "none", "GQA", "34.58"),
    ("methods-apart", "1, 2", "LLaVA-1.5", "HiRED, AWQ, GPTQ", "none", "TextVQA", "44.92"),
    ("mixed-units", "12", "LLaVA-1.5, Qwen2.5-VL", "", "vision, text", "", "0.551"),
    # found by these checks: not among those known before
    ("no-count", "1", "LLaVA-1.5", "HiRED", "none", "MMMU", "35.60"),
    ("identical-methods", "2", "Qwen2.5-VL", "AWQ, GPTQ", "none", "AI2D", "82.25"),
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: "-".join(known).replace(" ", ""))
def test_known_inconsistencies_are_found(known: tuple[str, ...], published: list[Finding]) -> None:
    check, *place, number = known
    found = [
        finding
        for finding in published
        if (finding.check, finding.table, finding.base_model, finding.method, finding.perturbation, finding.benchmark)
        == (check, *place)
        and number in finding.numbers.values()
    ]
    assert len(found) == 1


def test_all_drops_of_table_11_are_fractions(published: list[Finding]) -> None:
    (finding,) = [finding for finding in published if finding.check == "units"]
    assert (finding.table, finding.count) == ("11", 60)


def test_no_error_beyond_the_known_ones(published: list[Finding]) -> None:
    """Every error is explained: 17 cells and the unit of table 11."""
    errors = [finding for finding in published if finding.severity == "error"]
    assert len(errors) == sum(CHECKS[check].severity == "error" for check, *_ in KNOWN) + 1


def test_the_averages_of_table_10_are_without_vqav2(published: list[Finding]) -> None:
    averages = [finding for finding in published if finding.check == "average-not-mean"]
    assert len(averages) == 9
    assert all("without VQAv2" in finding.why for finding in averages)


def test_row_permuted_reads_the_row_as_it_was_meant(published: list[Finding]) -> None:
    (finding,) = [finding for finding in published if finding.check == "row-permuted"]
    meant = "AI2D 11.82, GQA 6.95, MMBench 6.38, MMMU 21.33, OKVQA 15.26, POPE 1.51, ScienceQA 8.78, TextVQA 13.86"
    assert f"{meant}, VizWiz 9.45, VQAv2 6.92" in finding.why


@pytest.mark.parametrize("number", list(TABLES))
def test_published_tables_as_data(number: int) -> None:
    frame = read_table(number)
    assert [*COLUMNS, "printed"] == list(frame.columns)
    assert (frame["table"] == number).all()
    assert (frame["printed"].map(float) == frame["value"]).all()
    assert not frame.duplicated(["base_model", "method", "perturbation", "benchmark", "metric"]).any()


def test_numbers_of_the_paper_spot_checked() -> None:
    """Typed from print, so that no row is shifted."""
    one, ten = read_table(1), read_table(10)
    row = one[(one.base_model == "LLaVA-Next") & (one.method == "HiRED") & (one.metric == "DR")]
    assert dict(zip(row.benchmark, row.printed, strict=True))["TextVQA"] == "25.78"
    assert (len(one), len(ten)) == (462, 99)
    levels = {number: int(read_table(number)["value"].sum()) for number in (8, 9)}
    assert levels == {8: 87, 9: 96}


def test_every_check_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands" / "check-table.md").read_text(encoding="utf-8")
    for name in CHECKS:
        assert f"| `{name}` |" in page
