"""Files of `-o DIR` at every moment of their writing: whole, and of the last comparison only."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
from click.testing import Result

from lmms_eval_stability.report.placing import MANIFEST, put_in_place, remove_leftovers

from ..conftest import BASE, FASTV, WriteRun

Compare = Callable[..., Result]

#: A program that runs `compare` and sends itself a signal right before its `at`-th change of a file in the folder.
VICTIM = """
import os, sys
at, number, folder, *args = sys.argv[1:]
seen = 0

def watch(event, found):
    global seen
    if event not in ("open", "os.rename", "os.remove") or not isinstance(found[0], (str, bytes, os.PathLike)):
        return
    if event == "open" and not (isinstance(found[1], str) and set(found[1]) & set("wax+")):
        return
    if os.fsdecode(found[0]).startswith(folder):
        seen += 1
        if seen == int(at):
            os.kill(os.getpid(), int(number))

sys.addaudithook(watch)
from lmms_eval_stability.cli import main
try:
    main(["compare", *args, "-o", folder], standalone_mode=False)
finally:
    print(seen)
"""


def victim(at: int, number: int, folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", VICTIM, str(at), str(number), str(folder), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize(("options", "more"), [((), 1), (("--html",), 0)], ids=["files", "page"])
def test_a_killed_process_leaves_whole_files(
    base: Path,
    fastv: Path,
    write_run: WriteRun,
    run_compare: Compare,
    tmp_path: Path,
    options: tuple[str, ...],
    more: int,
) -> None:
    other = write_run("int8", {"gqa": FASTV[::-1]}, model="llava_int8")
    folder = tmp_path / "report"
    events = int(victim(0, 0, folder, base, fastv, *options).stdout.split()[-1])
    old = contents(folder)
    assert run_compare(base, other, "-o", tmp_path / "new", *options).exit_code == 0
    new = contents(tmp_path / "new")
    assert events >= 2 * len(new)
    # the last quarter of the changes are renames
    moments = [events - 4, events // 2, *random.Random(1).sample(range(events // 2, events), more)]
    for moment, number in zip(moments, cycle([signal.SIGKILL, signal.SIGINT]), strict=False):
        done = victim(moment, number, folder, base, other, *options)
        assert done.returncode != 0
        found = contents(folder)
        found.pop(MANIFEST)
        for name, content in found.items():
            assert content in (old.get(name), new.get(name)), f"{name}, killed by {number} at {moment}"
        assert (number != signal.SIGINT) or not list(folder.glob(".*.tmp"))
    assert run_compare(base, other, "-o", folder, *options).exit_code == 0
    assert contents(folder) == new
    assert not list(folder.glob(".*"))


def test_files_of_an_earlier_comparison_go(
    base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare, tmp_path: Path
) -> None:
    other = write_run("int8", {"gqa": FASTV}, model="llava_int8")
    folder = tmp_path / "report"
    assert run_compare(base, fastv, "-o", folder, "--html").exit_code == 0
    (folder / "notes.md").write_text("mine")
    assert (folder / "report.html").exists()
    stale = {path.name for path in folder.glob("leaderboard_*")}
    assert run_compare(base, other, "-o", folder).exit_code == 0
    names = {path.name for path in folder.iterdir()}
    assert not names & (stale | {"report.html"})
    assert json.loads((folder / MANIFEST).read_text()) == {
        "complete": True,
        "files": [name for name in json.loads((folder / MANIFEST).read_text())["files"] if name in names],
    }
    assert names == {*json.loads((folder / MANIFEST).read_text())["files"], MANIFEST, "notes.md"}
    assert (folder / "notes.md").read_text() == "mine"


def test_a_refused_comparison_removes_nothing(
    base: Path, fastv: Path, write_run: WriteRun, run_compare: Compare, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    assert run_compare(base, fastv, "-o", folder).exit_code == 0
    before = contents(folder)
    assert run_compare(base, write_run("short", {"gqa": BASE[:2]}), "-o", folder).exit_code == 2
    assert contents(folder) == before


@pytest.mark.parametrize(
    "manifest",
    [
        '{"files": ["../outside", "/etc/hostname", "sub/deep", "sub", "..", ".", "", null, 7, "a\\u0000b"]}',
        '{"files": "mine"}',
        "[]",
        "{",
        "[" * 5000,
        "\xff",
    ],
)
def test_a_strange_manifest_removes_nothing(tmp_path: Path, manifest: str) -> None:
    folder = tmp_path / "report"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "outside", folder / "sub" / "deep", folder / "mine"):
        path.write_text("mine")
    (folder / MANIFEST).write_text(manifest, encoding="latin-1")
    (folder / ".a.tmp").write_text("new")
    assert put_in_place(folder, {folder / "a": folder / ".a.tmp"}) == [folder / "a"]
    for path in (tmp_path / "outside", folder / "sub" / "deep", folder / "mine"):
        assert path.read_text() == "mine"
    assert json.loads((folder / MANIFEST).read_text()) == {"complete": True, "files": ["a"]}


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = f".pairs.csv.{os.getpid()}.tmp"
    for name in (f".pairs.csv.{dead.pid}.tmp", own, ".mine.tmp", ".a.99999999999999999.tmp"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {own, ".mine.tmp"}
