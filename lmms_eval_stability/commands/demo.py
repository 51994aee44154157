"""`lmms-eval-stability demo`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

#: What a run of the demo needs beside this package's own dependencies, and the extra that installs it.
_NEEDS = {
    "llava_int8": ("bitsandbytes", "int8"),
    "llava_nf4": ("bitsandbytes", "int8"),
    "llava_gptq": ("compressed_tensors", "compressed"),
    "llava_awq": ("compressed_tensors", "compressed"),
}

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..study.legacy import Study, StudyRun


@click.command(epilog="\b\nExample:\n  lmms-eval-stability demo -o demo-runs\n")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo-runs"),
    show_default=True,
    metavar="DIR",
    help="Folder of the runs and, in DIR/report, of the report.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Questions per run; by default 500.")
def demo(output: Path, limit: int | None) -> None:
    """Run the demo study on the model that is shipped, and compare its runs.

    A small LLaVA that was really trained answers questions about drawn scenes: as it is, once more, with each
    token-reduction method, and quantised. Needs no GPU, no network and no token, and takes minutes.
    """
    from dataclasses import replace

    from ..comparison import compare_runs
    from ..report.folder import ReportFolder
    from ..report.terminal import print_comparison
    from ..study.legacy import BASELINE, RERUN, demo_config, load_study, run_study

    study = _runnable(load_study(demo_config()))
    if limit is not None:
        study = replace(study, limit=limit)
    with _progress(study) as on_start:
        run_study(study, output, on_start)
    report = output / "report"
    with ReportFolder(report, page=True, images="dataset") as folder:
        comparison = compare_runs(
            output / BASELINE,
            [output / run.name for run in study.runs],
            rerun=output / RERUN if study.rerun else None,
            # An exception would have stopped the run, so an empty answer is one that the model gave.
            accept=["empty"],
            on_pairs=folder.add_pairs,
        )
        written = folder.finish(comparison)
    click.echo()
    print_comparison(comparison, sys.stdout)
    click.echo(f"\nreport: {', '.join(str(path) for path in written)}")


def _runnable(study: Study) -> Study:
    """Leave out the runs whose packages are not installed, and say which and how to have them."""
    from dataclasses import replace

    missing: dict[str, list[str]] = {}
    for run in study.runs:
        package, extra = _NEEDS.get(run.model, ("", ""))
        if package and find_spec(package) is None:
            missing.setdefault(extra, []).append(run.name)
    for extra, names in missing.items():
        click.echo(f"not run: {', '.join(names)}; to run them: pip install 'lmms-eval-stability[{extra}]'", err=True)
    left_out = {name for names in missing.values() for name in names}
    return replace(study, runs=tuple(run for run in study.runs if run.name not in left_out))


@contextmanager
def _progress(study: Study) -> Iterator[Callable[[StudyRun], None]]:
    """Show which run is under way: a live bar in a terminal, one line per run elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=len(study.all_runs))
        started: list[StudyRun] = []

        def on_start(run: StudyRun) -> None:
            arguments = ",".join(f"{name}={value}" for name, value in run.model_args.items())
            line = f"{run.name}: lmms-eval --model {run.model} --model_args {arguments}"
            progress.update(bar, completed=len(started), description=line)
            started.append(run)
            if not console.is_terminal:
                click.echo(f"[{len(started)}/{len(study.all_runs)}] {line}", err=True)

        yield on_start
        progress.update(bar, completed=len(study.all_runs), description="compared below")
