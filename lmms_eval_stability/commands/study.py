"""`lmms-eval-stability study`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import OptionError, OutputError

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from ..study.finish import BaseReport
    from ..study.plan import Plan
    from ..study.schema import Study
    from ..study.store import Store

#: Exit codes beside 0 and 2 (bad input): cells or comparisons are missing; interrupted.
INCOMPLETE, INTERRUPTED = 1, 130


@click.command(
    epilog="\b\nExit code: 0 all is complete and compared, 1 something is missing (said at the end),\n"
    "2 the study cannot be run as it is written, 130 interrupted; the same command goes on.\n\n\b\nExamples:\n"
    "  lmms-eval-stability study configs/demo.yaml -o demo-study --dry-run\n"
    "  lmms-eval-stability study my-study.yaml -o runs/my-study\n"
    "  lmms-eval-stability study --schema > study.schema.json\n",
)
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", metavar="DIR|URL", help="Folder of the study: new, empty, or to be continued.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what is finished of it; run nothing.")
@click.option("--local", type=click.Path(path_type=Path), metavar="DIR", help="Folder on a disk, where -o is a URL.")
@click.option(
    "--ray-address", metavar="auto|HOST:PORT", help="Run on this Ray cluster, whatever engine the YAML names."
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a study's YAML, for editors.")
def study(
    config: Path | None, output: str | None, dry_run: bool, local: Path | None, ray_address: str | None, schema: bool
) -> None:
    """Run the study that CONFIG (a YAML) describes, and compare its runs.

    Every run is a real lmms-eval process. What is finished in DIR is not run again, so a study that was interrupted, or
    whose YAML has grown, goes on where it is.
    """
    from ..study import json_schema, load_study, plan_study

    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    if config is None:
        raise OptionError("name the study's YAML: lmms-eval-stability study CONFIG -o DIR")
    plan = plan_study(_on_ray(load_study(config), ray_address))
    if dry_run:
        _print_plan(plan, output)
        return
    if output is None:
        raise OptionError("name a folder for the study with -o DIR, or add --dry-run")
    if local is not None and "://" not in output:
        raise OptionError("--local is for a study behind a URL; -o names a folder already")
    if code := run_and_compare(plan, output, local):
        click.get_current_context().exit(code)


def _on_ray(study: Study, address: str | None) -> Study:
    """The study with the engine that the command line names."""
    from ..study.checks import address_problem

    if address is None:
        return study
    if problem := address_problem(address):
        raise OptionError(f"--ray-address {problem}")
    return study.model_copy(update={"engine": study.engine.model_copy(update={"kind": "ray", "address": address})})


def _print_plan(plan: Plan, output: str | None) -> None:
    from rich.console import Console

    from ..study.engines import workers_of
    from ..study.overview import print_plan
    from ..study.store import Store

    finished = Store(output).finished() if output is not None else {}
    print_plan(Console(highlight=False, emoji=False), plan, finished, workers_of(plan.study.engine))


def run_and_compare(plan: Plan, output: str, local: Path | None = None, report: Path | None = None) -> int:
    """Run what is missing of a study, compare what is complete, and print both; returns the exit code.

    Args:
        plan: the study.
        output: its folder, or a URL. local: a folder on a disk, where `output` is a URL; by default named as the study.
        report: folder of the report, for a study with one base; by default `report/BASE` in the study's folder.
    """
    from rich.console import Console

    from ..study.folder import describe, only_one, open_folder
    from ..study.store import Store

    remote = "://" in output
    folder = (local or Path(plan.study.name)) if remote else Path(output)
    open_folder(folder, plan.study.name)
    console = Console(stderr=True, highlight=False, emoji=False)
    with only_one(folder), _ended_as_interrupt():
        describe(folder, plan)
        store = Store(output if remote else str(folder.resolve()))
        try:
            return _run_and_compare(plan, store, folder, report, console)
        except KeyboardInterrupt:
            click.echo("interrupted: what is finished is kept; the same command goes on from there", err=True)
            return INTERRUPTED


def _run_and_compare(plan: Plan, store: Store, folder: Path, report: Path | None, console: Console) -> int:
    import shutil

    from ..study.engines import make_engine
    from ..study.finish import compare_bases, missing_lines, write_runs
    from ..study.progress import StudyProgress
    from ..study.runner import run_plan

    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of processes that no longer run: only_one() saw to that
    engine = make_engine(plan.study.engine)
    try:
        with StudyProgress(console) as progress:
            result = run_plan(plan, store, engine, progress, scratch=engine.scratch(work))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    lines = missing_lines(result)
    reports: list[BaseReport] = []
    try:
        write_runs(plan, result, store, folder)
        if plan.study.methods:
            several = len(plan.study.bases) > 1
            reports = compare_bases(
                plan,
                result,
                folder,
                lambda base: report or folder / "report" / base,
                lambda one: _print_base(one, several),
            )
        store.put_folders(folder, ("runs", "report"))
    except OutputError as error:  # what else is missing is said, too
        lines.append(str(error))
    if lines:
        click.echo("\nnot complete; the same command runs what is missing:\n  " + "\n  ".join(lines), err=True)
    return INCOMPLETE if lines or any(one.problem for one in reports) else 0


def _print_base(one: BaseReport, several: bool) -> None:
    from ..report.terminal import print_comparison

    click.echo()
    if several:
        click.echo(f"== {one.base}")
    if one.comparison is None:
        click.echo(f"error: {one.base} was not compared: {one.problem}", err=True)
        return
    print_comparison(one.comparison, sys.stdout)
    click.echo(f"\nreport: {', '.join(str(path) for path in one.written)}")


@contextmanager
def _ended_as_interrupt() -> Iterator[None]:
    """Take SIGTERM, which batch systems send before they kill, for Ctrl-C: processes are ended, the folder is sound."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
