"""Cells of the published tables that are wrong, doubtful or in another unit, each with the reason.

All were found by recomputing the tables: `lmms-eval-stability check-table paper`. The CSV files stay as printed; this
is what a comparison with them has to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .published import table_rows

#: What happens to a cell in a comparison.
CORRECTED, LEFT_OUT, DOUBTFUL = "corrected", "left out", "doubtful"
AVERAGE = "Average"


@dataclass(frozen=True)
class Remark:
    """Something to know about some cells of some tables. An empty selector selects everything.

    Attributes:
        kind: `CORRECTED` (another value is compared), `LEFT_OUT` (nothing is) or `DOUBTFUL` (compared all the same).
        why: the footnote.
        values: by benchmark, the corrected values as text.
    """

    kind: str
    why: str
    tables: frozenset[int]
    base_models: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    perturbations: frozenset[str] = frozenset()
    benchmarks: frozenset[str] = frozenset()
    metrics: frozenset[str] = frozenset()
    values: Mapping[str, str] = field(default_factory=dict, hash=False)

    def covers(self, cell: PublishedCell) -> bool:
        selected = (
            (self.base_models, cell.base_model),
            (self.methods, cell.method),
            (self.perturbations, cell.perturbation),
            (self.benchmarks, cell.benchmark),
            (self.metrics, cell.metric),
        )
        return cell.table in self.tables and all(not chosen or name in chosen for chosen, name in selected)


@dataclass(frozen=True)
class PublishedCell:
    """One published number.

    Attributes:
        printed: as it stands in print. text: as it is compared, in points of percent; "" for a cell that is left out.
        remarks: what there is to know about it.
    """

    table: int
    base_model: str
    method: str
    perturbation: str
    benchmark: str
    metric: str
    printed: str
    text: str
    remarks: tuple[Remark, ...] = ()

    @property
    def row(self) -> tuple[str, str, str, str]:
        """What an average is the mean of."""
        return (self.base_model, self.method, self.perturbation, self.metric)

    @property
    def left_out(self) -> bool:
        return not self.text


def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


_HIRED = "the published score is the same on different inputs, so the cell pairs different inputs"

REMARKS: tuple[Remark, ...] = (
    Remark(
        CORRECTED,
        "the DR of LLaVA-Next GPTQ is printed in alphabetical order of the benchmarks; read in that order here",
        frozenset({2}),
        _names("LLaVA-Next"),
        _names("GPTQ"),
        metrics=_names("DR"),
        values={
            "VQAv2": "6.92", "AI2D": "11.82", "GQA": "6.95", "ScienceQA": "8.78", "TextVQA": "13.86",
            "OKVQA": "15.26", "VizWiz": "9.45", "MMBench": "6.38", "MMMU": "21.33", "POPE": "1.51",
        },
    ),
    Remark(
        LEFT_OUT, _HIRED, frozenset({3, 11}), _names("LLaVA-1.5"), _names("HiRED"), _names("text"), _names("GQA")
    ),
    Remark(
        LEFT_OUT, _HIRED, frozenset({3, 11}), _names("LLaVA-Next"), _names("HiRED"), _names("vision"), _names("GQA")
    ),
    Remark(
        LEFT_OUT, _HIRED, frozenset({3, 11}), _names("LLaVA-Next"), _names("HiRED"), _names("vision", "text"),
        _names("VQAv2"),
    ),
    Remark(
        LEFT_OUT,
        "DR 34.58 and NDR 15.32 of Qwen2.5-VL GPTQ on GQA are four times what method and benchmark lead one to expect "
        "and do not go with the drop of 0.48: probably paired with other samples",
        frozenset({2, 4}),
        _names("Qwen2.5-VL"),
        _names("GPTQ"),
        _names("none"),
        _names("GQA"),
        _names("DR", "NDR"),
    ),
    Remark(
        LEFT_OUT,
        "on TextVQA, HiRED, AWQ and GPTQ of LLaVA-1.5 are a group apart in DR (43 to 46, the others 7 to 24) and "
        "score: probably another code path than the baseline's, not the acceleration",
        frozenset({1, 2}),
        _names("LLaVA-1.5"),
        _names("HiRED", "AWQ", "GPTQ"),
        benchmarks=_names("TextVQA"),
    ),
    Remark(
        DOUBTFUL,
        "a score of 35.60 is no multiple of 1/900; 320 right answers are 35.56",
        frozenset({1}),
        _names("LLaVA-1.5"),
        _names("HiRED"),
        benchmarks=_names("MMMU"),
        metrics=_names("score"),
    ),
    Remark(
        DOUBTFUL,
        "AWQ and GPTQ of Qwen2.5-VL have equal score, DR and NDR on AI2D",
        frozenset({2}),
        _names("Qwen2.5-VL"),
        _names("AWQ", "GPTQ"),
        benchmarks=_names("AI2D"),
        metrics=_names("score", "drop", "DR", "NDR"),
    ),
)  # fmt: skip

_BLOCKS = "methods are read off the order of the blocks; the printed labels are shifted or missing"
#: What to know about a whole table.
TABLE_NOTES: dict[int, tuple[str, ...]] = {
    1: ("averages are unweighted means of the ten benchmarks",),
    2: ("averages are unweighted means of the ten benchmarks",),
    5: ("scores of a judge (a language model) relative to the reference's; the paper's header row is garbled",),
    6: (
        _BLOCKS,
        "the drop is weighted by samples: over open and closed questions together",
        "the paper's 2,248 questions are 949 open and 1,299 closed ones by the original annotation; task vqa_rad has "
        "2,244, four repeated ones left out, and calls closed what is answered by yes or no",
    ),
    10: ("averages leave out VQAv2, as the published ones do", _BLOCKS),
    11: ("drops are printed as fractions under a heading in percent; here in percent, against the perturbed baseline",),
    12: (
        "scores and drops on perturbed inputs are printed as fractions under a heading in percent; here in percent, "
        "drops against the perturbed baseline",
    ),
}
#: Benchmarks that an average leaves out, by table.
AVERAGE_WITHOUT: dict[int, frozenset[str]] = {10: frozenset({"VQAv2"})}

_IN_AVERAGE = "the average of a row in which a cell is left out is left out, too"
_FRACTION = "printed as a fraction"


def published_cells(number: int) -> list[PublishedCell]:
    """The cells of a table as they are compared: corrected, in points of percent, wrong ones with an empty text."""
    cells = list(_marked(number))
    holed = {cell.row for cell in cells if cell.left_out}
    without = Remark(LEFT_OUT, _IN_AVERAGE, frozenset({number}), benchmarks=_names(AVERAGE))
    return [
        replace(cell, text="", remarks=(*cell.remarks, without))
        if cell.benchmark == AVERAGE and cell.row in holed
        else cell
        for cell in cells
    ]


def _marked(number: int) -> Iterator[PublishedCell]:
    for row in table_rows(number):
        printed = row["value"]
        text = _percent(printed) if row["note"].startswith(_FRACTION) else printed
        cell = PublishedCell(
            table=number,
            base_model=row["base_model"],
            method=row["method"],
            perturbation=row["perturbation"],
            benchmark=row["benchmark"],
            metric=row["metric"],
            printed=printed,
            text=text,
        )
        remarks = tuple(remark for remark in REMARKS if remark.covers(cell))
        for remark in remarks:
            if remark.kind == CORRECTED:
                text = remark.values.get(cell.benchmark, text)
            elif remark.kind == LEFT_OUT:
                text = ""
        # an average is about its row, not one of the cells that were corrected
        kept = tuple(one for one in remarks if one.kind != CORRECTED or cell.benchmark in one.values)
        yield replace(cell, text=text, remarks=kept)


def _percent(fraction: str) -> str:
    """0.007 as 0.7: the same digits, the point moved."""
    from decimal import Decimal

    return str(Decimal(fraction).scaleb(2))
