"""`lmms-eval-stability quantize`: make a GPTQ or AWQ checkpoint of a vision-language model."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import StabilityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DTYPES = ("auto", "float32", "float16", "bfloat16")


class MissingExtraError(StabilityError):
    """A command needs packages that an extra of this package installs."""


class QuantizeError(StabilityError):
    """A quantised checkpoint could not be made."""


@click.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability quantize --model llava-hf/llava-1.5-7b-hf --method gptq \\\n"
    "      --calibration gqa --skip 5000 --output llava-gptq\n"
    "  lmms-eval-stability quantize --model demo --method awq --group-size 32 \\\n"
    "      --calibration questions.jsonl --output demo-awq\n"
    "  lmms-eval --model llava_awq --model_args pretrained=demo-awq --tasks shapes_vqa --limit 500\n"
)
@click.option("--model", required=True, metavar="PATH", help="Folder, hub name or `demo`: a 16-bit or fp32 checkpoint.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of a hub checkpoint.")
@click.option("--method", type=click.Choice(["gptq", "awq"]), required=True, help="Algorithm.")
@click.option("--bits", type=click.Choice(["3", "4", "8"]), default="4", show_default=True, help="Bits per weight.")
@click.option(
    "--group-size",
    type=click.IntRange(min=8),
    default=128,
    show_default=True,
    help="Input columns that share a scale; must divide the layers' input width.",
)
@click.option(
    "--calibration",
    required=True,
    metavar="FILE|TASK",
    help='JSONL of {"image": PATH, "question": TEXT}, or the name of an lmms-eval task.',
)
@click.option("--samples", type=click.IntRange(min=1), default=128, show_default=True, help="Documents to read.")
@click.option("--skip", type=click.IntRange(min=0), default=0, show_default=True, help="Leave out a task's first N.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice of documents.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True, help="To load and compute in.")
@click.option(
    "--store-dtype",
    type=click.Choice(_DTYPES),
    default="auto",
    show_default=True,
    help="Of scales and of what is not quantised; auto: as computed.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that this command wrote.")
def quantize(**options: Any) -> None:
    """Quantise the language model of a vision-language model by GPTQ or AWQ, and write a checkpoint.

    Calibration reads images and questions as an evaluation would. Vision tower, projector and output layer are not
    quantised. What is written loads with `lmms-eval --model ..._gptq` or `..._awq`, and says how to make it again.

    Needs llm-compressor: pip install 'lmms-eval-stability[quantize]', with Python 3.11 or later.
    """
    from lmms_eval_stability.model_wrappers.errors import WrapperError

    try:
        facts = _make(**options)
    except WrapperError as error:
        raise QuantizeError(str(error)) from error
    calibration, output = facts["calibration"], options["output"]
    used, available = len(calibration["ids"]), calibration["available"]
    if used < options["samples"]:
        click.echo(f"note: there were only {available} documents to calibrate on, not {options['samples']}", err=True)
    click.echo(f"{output}: {facts['quantized_linears']} layers quantised, {facts['bytes'] / 1e6:,.1f} MB of weights")
    click.echo(f"lmms-eval --model {facts['model']} --model_args pretrained={output} --tasks TASK")


def _make(**options: Any) -> dict[str, Any]:
    """Check what can be checked at once, then make the checkpoint; return the facts of its card."""
    from lmms_eval_stability.model_wrappers.quantization.make import calibration, output

    output.check_folder(options["output"], options["overwrite"])
    choice = calibration.Choice(options["samples"], options["seed"], options["skip"])
    source: Any = options["calibration"]
    if calibration.is_file(source):
        source = calibration.read_file(Path(source), choice)
    _require_extra()
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: dozens of bars would tear ours apart
    from lmms_eval_stability.model_wrappers.quantization.make.recipe import Recipe
    from lmms_eval_stability.model_wrappers.quantization.make.run import Job, make

    job = Job(
        model=options["model"],
        recipe=Recipe(options["method"], int(options["bits"]), options["group_size"]),
        calibration=source,
        choice=choice,
        output=options["output"],
        command=_command(options),
        revision=options["revision"],
        overwrite=options["overwrite"],
        dtype=options["dtype"],
        store_dtype=options["store_dtype"],
    )
    with _progress() as report:
        facts: dict[str, Any] = make(job, report)
    return facts


def _require_extra() -> None:
    if find_spec("llmcompressor") is not None:
        return
    python = "" if sys.version_info >= (3, 11) else " with Python 3.11 or later, since llm-compressor needs it"
    raise MissingExtraError(
        "quantize needs llm-compressor, which is not installed: pip install 'lmms-eval-stability[quantize]'"
        f"{python}; best in an environment of its own, since it may bring an older transformers"
    )


def _command(options: dict[str, Any]) -> str:
    """Return the command line that does the same again, with every option that matters."""
    words = ["lmms-eval-stability", "quantize"]
    for name in ("model", "revision", "method", "bits", "group_size", "calibration", "samples", "skip", "seed"):
        words += [f"--{name.replace('_', '-')}", str(options[name])]
    for name in ("dtype", "store_dtype", "output"):
        words += [f"--{name.replace('_', '-')}", str(options[name])]
    return shlex.join(words)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show what is under way: a live bar in a terminal, one line per step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)
        shown = ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal shown
            progress.update(bar, description=what, completed=done, total=total or None)
            if what != shown and not console.is_terminal:
                click.echo(what, err=True)
            shown = what

        yield report
