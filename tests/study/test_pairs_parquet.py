"""pairs.parquet holds what pairs.csv holds, with types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from lmms_eval_stability import compare, compare_runs
from lmms_eval_stability.errors import OutputError
from lmms_eval_stability.report.folder import PAIR_COLUMNS, ReportFolder

from .conftest import BASE, FASTV, WriteRun, sample, samples_file

Compare = Callable[..., Result]


def test_the_same_rows_as_pairs_csv_with_types(
    base: Path, write_run: WriteRun, tmp_path: Path, run_compare: Compare
) -> None:
    runs = [write_run(name, {"gqa": FASTV}, model=name) for name in ("x", "y")]
    assert run_compare(base, *runs, "-o", tmp_path / "report").exit_code == 0
    frame = pd.read_parquet(tmp_path / "report" / "pairs.parquet")
    pd.testing.assert_frame_equal(frame, compare(base, runs).pairs, check_dtype=False, check_categorical=False)
    assert tuple(frame) == PAIR_COLUMNS
    assert {name: str(frame[name].dtype) for name in ("doc_id", "score_run", "correct_run", "changed", "task")} == {
        "doc_id": "int64",
        "score_run": "float64",
        "correct_run": "bool",
        "changed": "bool",
        "task": "category",
    }
    csv = pd.read_csv(tmp_path / "report" / "pairs.csv", keep_default_na=False, dtype={"prediction_run": str})
    assert csv["prediction_run"].tolist() == frame["prediction_run"].tolist()


def test_odd_texts_survive_and_lone_surrogates_do_not_stop_it(
    write_run: WriteRun, tmp_path: Path, run_compare: Compare
) -> None:
    rows = [sample(0, "nan", 1.0), sample(1, 'a "b", c\nd | é\x00', 1.0), sample(2, "xLONEy", 1.0)]
    base, run = write_run("a", {"some": rows}), write_run("b", {"some": rows}, model="m\ud800")
    for folder in (base, run):
        log = samples_file(folder, "some")
        log.write_bytes(log.read_bytes().replace(b"LONE", rb"\ud800"))
    assert run_compare(base, run, "-o", tmp_path / "report").exit_code == 0
    frame = pd.read_parquet(tmp_path / "report" / "pairs.parquet")
    assert frame["prediction_run"].tolist() == ["nan", 'a "b", c\nd | é\x00', "x?y"]


def test_many_rows_are_written_in_groups(write_run: WriteRun, tmp_path: Path) -> None:
    rows = [sample(i, str(i), 1.0) for i in range(20_001)]
    base, run = write_run("a", {"some": rows}), write_run("b", {"some": rows}, model="m")
    with ReportFolder(tmp_path / "report") as folder:
        folder.finish(compare_runs(base, [run], on_pairs=folder.add_pairs))
    file = pq.ParquetFile(tmp_path / "report" / "pairs.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [20_000, 1]
    assert file.read(["doc_id"])["doc_id"].to_pylist() == list(range(20_001))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named(base: Path, fastv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ReportFolder, name: str) -> Path:
        return Path("/dev/full") if name == "pairs.parquet" else tmp_path / name

    monkeypatch.setattr(ReportFolder, "_temporary", full)
    with pytest.raises(OutputError, match="No space left"), ReportFolder(tmp_path / "report") as folder:
        folder.finish(compare_runs(base, [fastv], on_pairs=folder.add_pairs))


def test_the_columns_are_those_of_pairs_csv(tmp_path: Path) -> None:
    from lmms_eval_stability.report.pairs_parquet import PairsParquet

    with (tmp_path / "file").open("wb") as stream:
        assert PairsParquet(stream).columns == PAIR_COLUMNS


def test_the_baseline_is_left_alone(base: Path, fastv: Path, tmp_path: Path, run_compare: Compare) -> None:
    before = {path: path.read_bytes() for path in (*base.rglob("*.json*"), *fastv.rglob("*.json*"))}
    run_compare(base, fastv, "-o", tmp_path / "report")
    assert {path: path.read_bytes() for path in before} == before
    assert len(BASE) == len(pd.read_parquet(tmp_path / "report" / "pairs.parquet"))


def test_a_file_that_cannot_be_begun_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(stream: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmms_eval_stability.report.folder.PairsParquet", nowhere)
    with pytest.raises(OutputError, match="No space left"), ReportFolder(tmp_path / "report"):
        pass
    assert not (tmp_path / "report").exists()
