"""The page of the statistics: its example runs, and what it says of all numbers holds on one comparison of logs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.study.conftest import WriteRun, sample

PAGE = (Path(__file__).parents[3] / "docs" / "statistics.md").read_text(encoding="utf-8")
PACKAGE = Path(__file__).parents[3] / "lmms_eval_stability"


def test_the_example_runs(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(scores: list[int]) -> list[dict[str, Any]]:
        records = [{"kind": "count" if i % 2 else "colour", "image_id": f"scene {i // 2}"} for i in range(6)]
        return [
            sample(i, "red" if score else f"not {i}", float(score), shapes_record=record)
            for i, (score, record) in enumerate(zip(scores, records, strict=True))
        ]

    base = write_run("base", {"shapes_vqa": rows([1, 1, 1, 1, 0, 0])})
    run = write_run("fastv", {"shapes_vqa": rows([1, 0, 1, 0, 0, 1])}, model="llava_fastv")
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(code.replace('"runs/base"', json.dumps(str(base))).replace('"runs/fastv"', json.dumps(str(run))), names)
    printed = capsys.readouterr().out
    assert "colour" in printed
    table = names["category_table"](names["by_category"](names["pairs"], names["labels"]["kind"], "kind", "a", "b"))
    assert table["ndr"].tolist() == pytest.approx([0, 2 / 3])
    assert table["pdr"].tolist() == pytest.approx([0, 1 / 3])
    assert "clusters=3" in printed
    assert "value=0.333" in printed


MODULES = (
    "averages",
    "bootstrap",
    "calibration",
    "categories",
    "changes",
    "logits",
    "multiplicity",
    "noise",
    "openanswers",
    "overlap",
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_part_of_the_page(module: str) -> None:
    assert (PACKAGE / f"{module}.py").is_file()
    assert re.search(rf"^## .*`{module}\b", PAGE, re.MULTILINE) or f"`{module}." in PAGE


def test_every_dimension_and_cluster_is_on_the_page() -> None:
    from lmms_eval_stability.categories import CLUSTERS, DIMENSIONS

    for one in DIMENSIONS:
        line = rf"^\| [a-z, ]*\b{one.name}\b[a-z, ]* \|.*"
        tasks = " ".join(re.findall(line, PAGE, re.MULTILINE))
        assert all(f"`{task}`" in tasks for task in one.tasks or ()), one.name
        assert tasks, one.name
    for one in CLUSTERS:
        assert all(re.search(rf"^\|.*`{task}`.*\|", PAGE, re.MULTILINE) for task in one.tasks or ())
