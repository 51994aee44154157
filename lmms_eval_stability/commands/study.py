"""`lmms-eval-stability study`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import OptionError


@click.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability study configs/demo.yaml -o demo-runs --dry-run\n"
    "  lmms-eval-stability study my-study.yaml -o runs/my-study\n"
    "  lmms-eval-stability study --schema > study.schema.json\n",
)
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", metavar="DIR|URL", help="Folder of the study: new, empty, or to be continued.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what is finished of it; run nothing.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a study's YAML, for editors.")
def study(config: Path | None, output: str | None, dry_run: bool, schema: bool) -> None:
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
    plan = plan_study(load_study(config))
    if dry_run:
        from rich.console import Console

        from ..study.overview import print_plan
        from ..study.store import Store

        finished = Store(output).finished() if output is not None else {}
        print_plan(Console(highlight=False, emoji=False), plan, finished, plan.study.engine.workers or 1)
        return
    raise OptionError("only --dry-run so far")
