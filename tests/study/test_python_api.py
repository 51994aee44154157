"""`from lmms_eval_stability import load_run, compare`: the frames, the examples of docs/python.md, light imports."""

from __future__ import annotations

import csv
import doctest
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result

from lmms_eval_stability import PairingError, compare, compare_runs, load_run
from lmms_eval_stability.frames import Frames

from .conftest import BASE, FASTV, WriteRun, sample

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_of_the_page(
    base: Path, fastv: Path, write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run("base-again", {"gqa": [{**row, "token_counts": [{"output_tokens": 3}]} for row in BASE]})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "runs").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "here")
    with pd.option_context("display.width", 200, "display.max_columns", None):
        outcome = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8", verbose=False)
    assert outcome.failed == 0
    assert outcome.attempted >= 10


def test_every_option_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = {*inspect.signature(compare_runs).parameters, *inspect.signature(compare).parameters}
    for name in names - {"baseline", "options"}:
        assert f"`{name}`" in page or f"`{name}=`" in page, name


def test_frames_are_those_of_the_files(
    base: Path, fastv: Path, tmp_path: Path, run_compare: Callable[..., Result]
) -> None:
    run_compare(base, fastv, "-o", tmp_path / "report")
    found = compare(base, [fastv])
    with (tmp_path / "report" / "divergence.csv").open() as stream:
        assert list(found.table) == next(csv.reader(stream))
    written = pd.read_csv(tmp_path / "report" / "pairs.csv", keep_default_na=False)
    shown = found.pairs.astype(dict.fromkeys(("task", "run", "flip", "prediction_run"), str))
    pd.testing.assert_frame_equal(shown, written.astype({"prediction_run": str}), check_dtype=False)


def test_several_runs_and_tasks(write_run: WriteRun) -> None:
    base = write_run("a", {"gqa": BASE, "some": BASE})
    runs = [write_run(name, {"gqa": FASTV, "some": FASTV}, model=name) for name in ("x", "y")]
    found = compare(base, [runs[0], load_run(runs[1])])
    assert found.table[["run", "task"]].values.tolist() == [
        [run, task] for run in ("x", "y") for task in ("gqa", "some", "average")
    ]
    assert found.pairs.groupby(["run", "task"], observed=True).size().to_dict() == {
        (run, task): 5 for run in ("x", "y") for task in ("gqa", "some")
    }
    assert found.pairs["score_run"].dtype == float
    assert found.pairs["changed"].dtype == bool


def test_without_pairs(base: Path, fastv: Path) -> None:
    found = compare(base, fastv, pairs=False)
    assert isinstance(found, Frames)
    assert len(found.pairs) == 0
    assert list(found.pairs) == list(compare(base, fastv).pairs)
    assert found.table.equals(compare_runs(base, [fastv]).table)


def test_refused_and_accepted(base: Path, write_run: WriteRun) -> None:
    less = write_run("less", {"gqa": FASTV[:3]}, model="m")
    with pytest.raises(PairingError, match="unpaired"):
        compare(base, less)
    assert len(compare(base, less, accept=["unpaired"]).pairs) == 3
    with pytest.raises(TypeError, match="acept"):
        compare(base, less, acept=["unpaired"])


def test_answers_that_look_like_nothing_stay_texts(write_run: WriteRun) -> None:
    rows = [sample(0, "nan", 1.0), sample(1, "None", 1.0)]
    found = compare(write_run("a", {"some": rows}), write_run("b", {"some": rows}, model="m"))
    assert found.pairs["prediction_run"].tolist() == ["nan", "None"]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, lmms_eval_stability as s; s.__version__; dir(s)\n"
        "assert not {'pandas', 'numpy', 'torch', 'lmms_eval', 'lmms_eval_stability.frames'} & set(sys.modules)\n"
        "s.compare, s.load_run\n"
        "assert not {'torch', 'lmms_eval', 'matplotlib', 'pandas'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
