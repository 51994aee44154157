"""Run a notebook's code cells and store what they show: the outputs in docs/ are what the code gives.

python scripts/run_notebook.py docs/compare_in_python.ipynb

No Jupyter is needed. What a cell prints is kept, and the value of its last expression: as text, as HTML where the value
has any, and as a picture if it is a matplotlib figure. Cells run in the folder of the notebook.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def execute(notebook: dict[str, Any], folder: Path) -> list[Cell]:
    """The cells with the outputs of a new run; an error in a cell ends it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells: list[Cell] = []
    with _inside(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count = 1 + sum(one["cell_type"] == "code" for one in cells)
                cell = {**cell, "execution_count": count, "outputs": _outputs("".join(cell["source"]), names, count)}
            cells.append(cell)
    return cells


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _outputs(source: str, names: dict[str, Any], count: int) -> list[Cell]:
    tree = ast.parse(source, f"cell {count}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
    outputs: list[Cell] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = _shown(value)
        outputs.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    from matplotlib.figure import Figure

    if isinstance(value, Figure):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=100, facecolor="white", metadata={"Software": None})
        encoded = base64.b64encode(picture.getvalue()).decode()
        return {"image/png": encoded, "text/plain": ["<Figure>"]}
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return data if html is None else {"text/html": html.splitlines(keepends=True), **data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    path = parser.parse_args().notebook
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = execute(notebook, path.parent)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
