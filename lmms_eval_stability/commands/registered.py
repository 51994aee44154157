"""`lmms-eval-stability models` and `tasks`: what this package adds to lmms-eval, which cannot list it itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORMAT = click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)


@click.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability models\n"
    "  lmms-eval --model llava_fastv --model_args pretrained=demo,k=3,r=0.5 --tasks shapes_vqa --limit 100\n"
)
@_FORMAT
def models(layout: str) -> None:
    """List the models that this package adds to lmms-eval, for `lmms-eval --model NAME`.

    Each takes the checkpoints of the architectures named beside it: the same `pretrained=` as lmms-eval's own models.
    """
    from ..plugin import registered_models

    found = registered_models()
    if layout == "json":
        click.echo(json.dumps([asdict(model) for model in found], indent=2))
        return
    rows = [
        (
            model.name,
            ", ".join(model.checkpoints),
            ", ".join(f"{name}={value}" for name, value in model.parameters.items()),
            model.summary,
        )
        for model in found
    ]
    print_table(("model", "checkpoints", "parameters", "what it does"), rows)
    click.echo(
        "Every name has aliases (--format json lists them). pretrained=demo is the model shipped with the package."
    )


@click.command(epilog="\b\nExample:\n  lmms-eval-stability tasks --format json\n")
@_FORMAT
def tasks(layout: str) -> None:
    """List the tasks that this package adds to lmms-eval, for `lmms-eval --tasks NAME`."""
    from ..plugin import registered_tasks

    found = registered_tasks()
    if layout == "json":
        click.echo(json.dumps([asdict(task) | {"file": str(task.file)} for task in found], indent=2))
        return
    print_table(("task", "metrics", "what it is"), [(t.name, ", ".join(t.metrics), t.description) for t in found])


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a plain table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False)
    console.print(table)
