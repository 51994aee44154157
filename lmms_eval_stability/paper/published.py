"""Where the published tables are, what each is about, and how to read them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

#: What each table is about, by its number in the paper.
TABLES: dict[int, str] = {
    1: "token reduction on LLaVA-1.5 and LLaVA-Next, ten benchmarks: score, drop, DR, NDR",
    2: "quantisation of LLaVA-1.5, LLaVA-Next and Qwen2.5-VL, ten benchmarks: score, drop, DR, NDR",
    3: "token reduction on perturbed inputs (VQAv2, GQA): DR, NDR",
    4: "quantisation on perturbed inputs (VQAv2, GQA): DR, NDR",
    5: "LLaVA-Med on biomedical conversations, judged by a language model",
    6: "LLaVA-Med on VQA-RAD: recall of open and score of closed questions; drop, DR, NDR",
    7: "samples per benchmark",
    8: "text perturbations and their numbers of severity levels",
    9: "image perturbations and their numbers of severity levels",
    10: "quantisation of Qwen2-VL, ten benchmarks: score, drop, DR, NDR",
    11: "token reduction on perturbed inputs (VQAv2, GQA): score, drop",
    12: "quantisation on perturbed inputs (VQAv2, GQA): score, drop",
}

#: Columns of every table. In tables 7 to 9 some are empty, and `metric` is the split or "severity_levels".
COLUMNS: dict[str, str] = {
    "table": "number of the table in the paper",
    "base_model": "base model, as the paper spells it",
    "method": 'method, or "baseline"',
    "perturbation": '"none", "vision" or "text" (in table 9 "image")',
    "benchmark": 'benchmark, "Average", or a perturbation method in tables 8 and 9',
    "metric": '"score", "drop", "DR" or "NDR", in points of percent; "recall" in table 6',
    "value": "the number as printed, digits included",
    "note": "what was unclear in print, else empty",
}

#: Rows that DR and NDR are shares of. As table 7 has them, but for MMBench: its 4,377 are all of the English dev split,
#: while the printed rates are multiples of 1/4329.
SIZES: dict[str, int] = {
    "VQAv2": 214354,
    "AI2D": 3088,
    "GQA": 12578,
    "MMBench": 4329,
    "MMMU": 900,
    "OKVQA": 5046,
    "POPE": 9000,
    "ScienceQA": 2017,
    "TextVQA": 5000,
    "VizWiz": 4319,
    "VQA-RAD": 2248,
}


def table_path(number: int) -> Path:
    """The CSV file of table `number`, 1 to 12."""
    if number not in TABLES:
        raise OptionError(f"the paper has no table {number}; there are tables {min(TABLES)} to {max(TABLES)}")
    return Path(__file__).parent / "tables" / f"table{number}.csv"


def table_rows(number: int) -> list[dict[str, str]]:
    """Table `number` as texts, one dict with `COLUMNS` per number, without pandas."""
    with table_path(number).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_table(number: int) -> pd.DataFrame:
    """Table `number` as a data frame with `COLUMNS`; `value` as a float, and `printed` with its digits as text."""
    import pandas as pd

    frame = pd.read_csv(table_path(number), dtype=str, keep_default_na=False)
    frame["printed"] = frame["value"]
    return frame.astype({"table": int, "value": float})
