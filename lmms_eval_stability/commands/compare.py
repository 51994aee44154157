"""`lmms-eval-stability compare`."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import OptionError, OutputError
from ..problems import KINDS
from ..verdicts.policies import POLICIES, SCORED

if TYPE_CHECKING:
    from ..comparison import Comparison

_ACCEPT = "\n".join(f"  {name:<12} {kind.what}: {kind.accepted}" for name, kind in KINDS.items())


@click.command(
    epilog=f"\b\nWhat --accept knows:\n{_ACCEPT}\n\n\b\n"
    "Examples:\n"
    "  lmms-eval-stability compare runs/base runs/fastv\n"
    "  lmms-eval-stability compare runs/base runs/fastv runs/int8 --rerun runs/base-again -o report\n"
    "  lmms-eval-stability compare runs@20251120_140128 runs@20251120_153000 --format markdown\n",
)
@click.argument("base")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--rerun",
    metavar="RUN",
    multiple=True,
    help="The baseline run again: its DR is the noise floor of every other DR; repeatable.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write the report files there.")
@click.option(
    "--reliability",
    is_flag=True,
    help="Say how far confidence can be relied on, and which samples flip; needs logged log-probabilities.",
)
@click.option(
    "--ood",
    metavar="ID:OOD",
    multiple=True,
    help="Say how well confidence tells task ID from OOD (TASK@CATEGORY: a part); with --reliability, repeatable.",
)
@click.option("--html", "page", is_flag=True, help="Write report.html and its figures, too (with -o).")
@click.option("--images", metavar="DIR|dataset", help="Pictures for --html: files TASK/DOC_ID.png, or the tasks' data.")
@click.option("--wandb", metavar="[ENTITY/]PROJECT", help="Write the numbers to Weights & Biases, too.")
@click.option("--push-to-hub", "hub", metavar="OWNER/DATASET", help="Upload to a Hugging Face dataset, too (with -o).")
@click.option("--push-pairs", is_flag=True, help="Push the files with questions and answers, too.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "csv", "markdown"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option(
    "--correct-at",
    type=float,
    default=0.9,
    show_default=True,
    metavar="SCORE",
    help="Least score that counts as correct, on the benchmark's own scale.",
)
@click.option(
    "--prediction",
    type=click.Choice(list(POLICIES)),
    default=SCORED,
    show_default=True,
    help=f"Which text of an answer is compared. {'; '.join(f'{name}: {what}' for name, what in POLICIES.items())}.",
)
@click.option("--accept", multiple=True, metavar="KIND[,KIND]", help="Count these problems instead of refusing them.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Compare this task only; repeatable.")
@click.option("--metric", multiple=True, metavar="[TASK=]NAME", help="Which logged number is the score; repeatable.")
def compare(
    base: str,
    runs: tuple[str, ...],
    rerun: tuple[str, ...],
    output: Path | None,
    reliability: bool,
    ood: tuple[str, ...],
    page: bool,
    images: str | None,
    wandb: str | None,
    hub: str | None,
    push_pairs: bool,
    layout: str,
    correct_at: float,
    prediction: str,
    accept: tuple[str, ...],
    tasks: tuple[str, ...],
    metric: tuple[str, ...],
) -> None:
    """Compare RUN... with the baseline BASE, sample by sample.

    BASE and each RUN are folders that lmms-eval wrote with --log_samples --output_path (or the results JSON in them).
    A folder with several runs stands for its newest; FOLDER@TIMESTAMP names another one.

    Samples are joined by task and document. Logs that do not describe the same samples are refused, with everything
    that is wrong and the option that accepts it.
    """
    from ..comparison import compare_runs
    from ..push import Push
    from ..report.folder import ReportFolder

    if page and output is None:
        raise OptionError("--html writes into a folder: name it with -o DIR")
    if images is not None and not page:
        raise OptionError("--images are for the page: add --html")
    push = Push.checked(wandb, hub, push_pairs, output)
    with ReportFolder(output, page=page, images=images) if output is not None else nullcontext() as folder:
        comparison = compare_runs(
            base,
            runs,
            rerun=rerun,
            correct_at=correct_at,
            accept=accept,
            tasks=tasks,
            metric=metric,
            prediction=prediction,
            reliability=reliability,
            ood=ood,
            on_pairs=folder.add_pairs if folder is not None else None,
        )
        written = folder.finish(comparison) if folder is not None else []
    try:
        _print(comparison, layout)
    except BrokenPipeError:  # the reader has seen enough: no error, click knows
        raise
    except OSError as error:
        # what is left in the buffer would fail once more when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output: cannot write: {error.strerror}") from error
    if written:
        click.echo(f"written to {output}: {', '.join(path.name for path in written)}", err=True)
    for line in push.send(comparison, output):
        click.echo(f"pushed to {line}", err=True)


def _print(comparison: Comparison, layout: str) -> None:
    from ..report.machine import to_csv, to_json
    from ..report.markdown import to_markdown
    from ..report.terminal import print_comparison
    from ..report.values import footnotes

    if layout == "table":
        print_comparison(comparison, sys.stdout)
        return
    writer = {"json": to_json, "csv": to_csv, "markdown": to_markdown}[layout]
    click.echo(writer(comparison), nl=False)
    if layout == "csv":  # the one layout without room for what to know before believing the numbers
        for run in comparison.runs:
            for line in footnotes(run):
                click.echo(f"{run.label}: {line}", err=True)
