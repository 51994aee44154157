"""`lmms-eval-stability demo`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

#: What a run of the demo needs beside this package's own dependencies, and the extra that installs it.
_NEEDS = {
    "int8": ("bitsandbytes", "int8"),
    "nf4": ("bitsandbytes", "int8"),
    "gptq": ("compressed_tensors", "compressed"),
    "awq": ("compressed_tensors", "compressed"),
}

if TYPE_CHECKING:
    from ..study import Study


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
    from ..study import demo_config, load_study, plan_study
    from ..study.folder import clear, open_folder
    from .study import run_and_compare

    study = _runnable(load_study(demo_config()))
    if limit is not None:
        study = study.model_copy(update={"limit": limit})
    open_folder(output, study.name)
    clear(output)
    if code := run_and_compare(plan_study(study), str(output), report=output / "report"):
        click.get_current_context().exit(code)


def _runnable(study: Study) -> Study:
    """Leave out the runs whose packages are not installed, and say which and how to have them."""
    missing: dict[str, list[str]] = {}
    for label, run in study.methods.items():
        package, extra = _NEEDS.get(run.method, ("", ""))
        if package and find_spec(package) is None:
            missing.setdefault(extra, []).append(label)
    for extra, names in missing.items():
        click.echo(f"not run: {', '.join(names)}; to run them: pip install 'lmms-eval-stability[{extra}]'", err=True)
    left_out = {name for names in missing.values() for name in names}
    return study.model_copy(
        update={"methods": {label: run for label, run in study.methods.items() if label not in left_out}}
    )
