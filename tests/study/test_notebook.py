"""The notebook of docs/: its code runs, and what it shows is what today's code gives."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "compare_in_python.ipynb"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "scripts" / "run_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(cell: dict[str, Any]) -> list[Any]:
    """What a reader sees of a cell: texts as they are, of pictures how large they are."""
    found: list[Any] = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        found.append("".join(output.get("text", data.get("text/plain", ""))))
        if "image/png" in data:
            found.append(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size)
        assert output["output_type"] != "error"
    return found


@pytest.fixture
def _usual_display() -> Any:
    with pd.option_context("display.width", 80):
        yield
    pd.reset_option("display.width")
    pd.reset_option("display.max_columns")
    pd.reset_option("display.max_colwidth")


@pytest.mark.usefixtures("_usual_display")
def test_the_stored_outputs_are_those_of_todays_code() -> None:
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = script().execute(stored, NOTEBOOK.parent)
    assert [shown(cell) for cell in cells] == [shown(cell) for cell in stored["cells"]]
    assert sum(bool(shown(cell)) for cell in cells) >= 9
    assert any("no confounders" in text for cell in cells for text in shown(cell) if isinstance(text, str))


def test_a_cell_that_fails_ends_the_run(tmp_path: Path) -> None:
    notebook = {"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}
    with pytest.raises(ZeroDivisionError):
        script().execute(notebook, tmp_path)


def test_outputs_are_kept_as_jupyter_keeps_them(tmp_path: Path) -> None:
    source = ["import pandas as pd\n", "print('a')\n", "pd.DataFrame({'x': [1]})"]
    (cell,) = script().execute({"cells": [{"cell_type": "code", "source": source}]}, tmp_path)
    printed, value = cell["outputs"]
    assert printed == {"name": "stdout", "output_type": "stream", "text": ["a\n"]}
    assert "".join(value["data"]["text/plain"]) == "   x\n0  1"
    assert "<td>1</td>" in "".join(value["data"]["text/html"])
