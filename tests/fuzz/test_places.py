"""Things that are no files, or absurd ones, under the names of logs and results: named errors, and never a wait."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..study.conftest import BASE, FASTV, STAMP, results_json, sample
from .damage import ODD_VALUES, Damage, apply, damages, examples
from .test_damaged_logs import EVERYTHING, check_counts, compare, encoded


def write(folder: Path, lines: list[dict[str, Any]], model: str) -> Path:
    home = folder / "demo"
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{STAMP}_samples_gqa.jsonl").write_bytes(encoded(lines))
    (home / f"{STAMP}_results.json").write_text(json.dumps(results_json({"gqa": lines}, model, "pretrained=demo")))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "base", BASE, "llava"), write(tmp_path / "run", FASTV, "llava_fastv")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


THINGS = [a_folder, a_link_to_itself, a_link_to_nothing, a_fifo, a_device]


@pytest.mark.parametrize("make", THINGS)
@pytest.mark.parametrize("name", [f"{STAMP}_samples_gqa.jsonl", f"{STAMP}_results.json"])
def test_what_is_no_file_is_named(runs: tuple[Path, Path], name: str, make: Callable[[Path], None]) -> None:
    path = runs[1] / "demo" / name
    path.unlink()
    make(path)
    result = compare(*runs)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert compare(runs[0], path).exit_code == 2


def test_a_second_task_that_is_no_file_is_named(runs: tuple[Path, Path]) -> None:
    for folder in runs:
        os.mkfifo(folder / "demo" / f"{STAMP}_samples_pope.jsonl")
    result = compare(*runs)
    assert result.exit_code == 2
    assert "samples_pope.jsonl" in result.stderr


def test_links_in_circles_and_links_to_logs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    plain = compare(*runs, "--format", "csv").stdout
    (runs[1] / "demo" / "loop").symlink_to(runs[1])
    linked = runs[1] / "demo" / f"{STAMP}_samples_gqa.jsonl"
    shutil.move(linked, tmp_path / "elsewhere.jsonl")
    linked.symlink_to(tmp_path / "elsewhere.jsonl")
    assert compare(*runs, "--format", "csv").stdout == plain


def test_compressed_logs_are_named(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "demo" / f"{STAMP}_samples_gqa.jsonl"
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed)
    assert "not UTF-8" in compare(*runs).stderr
    path.unlink()
    path.with_suffix(".jsonl.gz").write_bytes(packed)
    result = compare(*runs)
    assert result.exit_code == 2
    assert "has no samples" in result.stderr


@pytest.mark.parametrize("key", ["filtered_resps", "input", "resps", "target", "unknown"])
def test_a_line_of_a_hundred_megabytes_is_read_like_any_other(runs: tuple[Path, Path], key: str) -> None:
    size = 100_000_000 if key == "filtered_resps" else 3_000_000
    huge = sample(2, "2", 1.0) | {key: "a, b's. " * (size // 8)}
    result = compare(runs[0], write(runs[1], [*FASTV[:2], huge, *FASTV[3:]], "llava_fastv"), "--format", "json")
    if key in ("input", "target"):
        assert result.exit_code == 2
        assert len(result.stderr) < 3000
    else:
        assert json.loads(result.stdout)["comparisons"][0]["n"] == len(BASE)


def test_a_huge_line_that_is_no_record(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "demo" / f"{STAMP}_samples_gqa.jsonl"
    path.write_bytes(path.read_bytes() + b"[" * 20_000_000)
    result = compare(*runs)
    assert result.exit_code == 2
    assert f"line {len(FASTV) + 1}" in result.stderr
    assert len(result.stderr) < 3000


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize("key", ["filtered_resps", "target", "input", "exact_match", "token_counts", "resps", "doc_id"])
def test_every_odd_value_in_every_place(runs: tuple[Path, Path], key: str, value: str) -> None:
    from .damage import replace_value

    lines = encoded(FASTV).splitlines(keepends=True)
    log = b"".join([*lines[:2], replace_value(lines[2], key, value), *lines[3:]])
    (runs[1] / "demo" / f"{STAMP}_samples_gqa.jsonl").write_bytes(log)
    compare(*runs)
    result = compare(*runs, "--accept", EVERYTHING, "--format", "json")
    if result.exit_code == 0:
        check_counts({runs[0]: encoded(BASE), runs[1]: log}, json.loads(result.stdout))


SECTIONS = ["results", "configs", "versions", "higher_is_better", "config", "n-samples", "date", "run", "model_source"]


@examples(60)
@given(
    harm=st.lists(damages, max_size=2),
    odd=st.lists(st.tuples(st.sampled_from(SECTIONS), st.sampled_from(ODD_VALUES), st.booleans()), max_size=2),
)
def test_a_damaged_results_json_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, harm: list[Damage], odd: list[tuple[str, str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("results")
    runs = write(folder / "base", BASE, "llava"), write(folder / "run", FASTV, "llava_fastv")
    path = runs[1] / "demo" / f"{STAMP}_results.json"
    sections = {name: json.dumps(value) for name, value in json.loads(path.read_bytes()).items()}
    for name, value, inside in odd:
        sections[name] = f'{{"gqa": {value}, "model_args": {value}, "model": {value}}}' if inside else value
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in sections.items()) + "}"
    path.write_bytes(apply(text.encode("utf-8", "replace"), harm))
    compare(*runs)
    result = compare(*runs, "--accept", EVERYTHING, "--format", "json", "--metric", "exact_match")
    if result.exit_code == 0:
        assert json.loads(result.stdout)["comparisons"][0]["n"] == len(BASE)
