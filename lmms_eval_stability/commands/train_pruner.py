"""`lmms-eval-stability train-pruner`: train the modules of LVPruning for a vision-language model."""

from __future__ import annotations

import os
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, StabilityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DTYPES = ("auto", "float32", "bfloat16")
#: What the command line of the card leaves out: it says how the result was made, not how it was gone on with.
_NOT_REPEATED = ("resume", "overwrite", "device", "micro_batch", "checkpoint_every")


class TrainPrunerError(StabilityError):
    """A pruner could not be trained."""


@click.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability train-pruner --model demo --data shapes --layers 1-2-4 --keep 0.5-0.25-0.1 -o my-pruner\n"
    "  accelerate launch --num_processes 8 -m lmms_eval_stability.cli train-pruner \\\n"
    "      --model llava-hf/llava-1.5-7b-hf --data instructions.jsonl --layers 4-8-16 --keep 0.5-0.25-0.1 \\\n"
    "      --steps 5000 --batch-size 64 --micro-batch 2 --learning-rate 1e-4 -o llava-pruner\n"
    "  lmms-eval --model llava_lvpruning --model_args pretrained=demo,pruner=my-pruner --tasks shapes_vqa\n"
)
@click.option(
    "--model", required=True, metavar="PATH", help="Folder, hub name or `demo`: the base, which stays as it is."
)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of a hub checkpoint.")
@click.option(
    "--data",
    required=True,
    metavar="FILE|TASK|shapes",
    help='JSONL of {"image": PATH, "question": TEXT, "answer": TEXT}, an lmms-eval task, or the generator of the demo.',
)
@click.option("--skip", type=click.IntRange(min=0), default=0, show_default=True, help="Leave out a task's first N.")
@click.option(
    "--layers", required=True, metavar="L-L-L", help="Decoder layers (from 0) before which tokens are dropped."
)
@click.option("--keep", required=True, metavar="S-S-S", help="Share of the visual tokens that is left after each.")
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Steps of the optimiser.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Examples per step.")
@click.option(
    "--micro-batch", type=click.IntRange(min=1), help="Examples per forward pass and process; default: all of a step."
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="After the warm-up; cosine to zero.")
@click.option("--answer-weight", type=float, default=1.0, show_default=True, help="Of the answer's cross-entropy.")
@click.option(
    "--ratio-weight", type=float, default=2.0, show_default=True, help="Of the squared error of the share kept."
)
@click.option(
    "--distill-weight", type=float, default=0.5, show_default=True, help="Of the divergence from the unpruned model."
)
@click.option(
    "--distill-temperature", type=float, default=1.0, show_default=True, help="By which logits are divided for it."
)
@click.option(
    "--sampling",
    type=click.Choice(["gumbel", "topk"]),
    default="gumbel",
    show_default=True,
    help="Each token decides for itself, or the best of each prompt stay; both with noise, straight-through.",
)
@click.option(
    "--noise",
    type=click.Choice(["spread", "random"]),
    default="spread",
    show_default=True,
    help="Chance added to the logits: evenly over the image, at inference too; or by token, in training only.",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the decisions' gradient.")
@click.option(
    "--text",
    type=click.Choice(["all", "question"]),
    default="all",
    show_default=True,
    help="Text tokens that the modules read: all of the prompt, or those behind the last image.",
)
@click.option("--width", type=click.IntRange(min=1), help="Of the modules; default: half the decoder's, at most 512.")
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True, help="Of their cross-attention.")
@click.option("--seed", default=0, show_default=True, help="Of initial weights, order of examples and noise.")
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    default="auto",
    show_default=True,
    help="To compute the base in; auto: as stored, float16 as bfloat16.",
)
@click.option("--device", help="Device of a single process; default: cuda where there is one, else cpu.")
@click.option(
    "--checkpoint-every", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between checkpoints."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output folder, with the same options.")
@click.option("--overwrite", is_flag=True, help="Replace a pruner, or a training, in the output folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
def train_pruner(**options: Any) -> None:
    """Train the modules by which LVPruning drops visual tokens, and write them for `--model ..._lvpruning`.

    The base model is frozen. Its answers with masked tokens are compared with the right ones and with its own without
    masks, and the share of tokens that stay with what --keep wants. Under `accelerate launch` the examples of a step
    are shared out among the processes.
    """
    from lmms_eval_stability.model_wrappers.errors import WrapperError
    from lmms_eval_stability.model_wrappers.pruner_training.make import make

    try:
        with _progress() as report:
            facts = make(_job(options), report)
    except WrapperError as error:
        raise TrainPrunerError(str(error)) from error
    if not facts["main"]:
        return
    output = options["output"]
    click.echo(f"{output}: {facts['parameters']:,} parameters, {facts['steps']} steps")
    arguments = f"pretrained={options['model']},pruner={output}"
    click.echo(f"lmms-eval --model {facts['model']} --model_args {arguments} --tasks TASK")


def _job(options: dict[str, Any]) -> Any:
    from lmms_eval_stability.model_wrappers.pruner_training.losses import LossWeights
    from lmms_eval_stability.model_wrappers.pruner_training.settings import Job, TrainingSettings

    weights = LossWeights(
        options["answer_weight"], options["ratio_weight"], options["distill_weight"], options["distill_temperature"]
    )
    names = (
        "text",
        "width",
        "heads",
        "steps",
        "batch_size",
        "learning_rate",
        "sampling",
        "noise",
        "temperature",
        "seed",
    )
    settings = TrainingSettings(
        layers=tuple(_numbers("--layers", options["layers"], int)),
        keep=tuple(_numbers("--keep", options["keep"], float)),
        weights=weights,
        **{name: options[name] for name in names},
    )
    own = ("model", "data", "output", "revision", "skip", "dtype", "device", "micro_batch", "checkpoint_every")
    return Job(
        **{name: options[name] for name in (*own, "resume", "overwrite")},
        settings=settings,
        command=_command(options),
    )


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Read numbers joined by hyphens."""
    try:
        return [kind(part) for part in text.split("-")]
    except ValueError:
        raise OptionError(
            f"{option} must be numbers joined by hyphens, such as 1-2-4 or 0.5-0.25-0.1, not {text!r}"
        ) from None


def _command(options: dict[str, Any]) -> str:
    """Return the command line that does the same again, with every option that matters."""
    words = ["lmms-eval-stability", "train-pruner"]
    for name, value in options.items():
        if name not in _NOT_REPEATED and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show what is under way: a live bar in a terminal, lines elsewhere; nothing on any process but the first."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console, first = Console(stderr=True), os.environ.get("RANK", "0") == "0"
    live = console.is_terminal and first
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not live) as progress:
        bar = progress.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total or None)
            if first and not live:
                click.echo(f"step {done} of {total}: {what}" if total else what, err=True)

        yield report
