"""`lmms-eval-stability spectrum`: spectra of weights and activations, before and after quantisation."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, OutputError

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.spectrum import Measured, Spectrum

COLUMNS = ("scheme", "what", "layer", "name", "ipr", "ipr_baseline", "effective_rank", "effective_rank_baseline")


@dataclass(frozen=True)
class Line:
    """One spectrum and the baseline's: a weight by module name, or the tokens ("visual", "all") after a layer."""

    scheme: str
    what: str
    layer: int
    name: str
    own: Spectrum
    baseline: Spectrum

    def cells(self) -> tuple[Any, ...]:
        """The values of `COLUMNS`."""
        numbers = (self.own.ipr, self.baseline.ipr, self.own.effective_rank, self.baseline.effective_rank)
        return (self.scheme, self.what, self.layer, self.name, *(f"{number:.9g}" for number in numbers))


@click.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability spectrum --model demo --scheme int8,nf4,gptq:demo-gptq,awq:demo-awq \\\n"
    "      --documents shapes_vqa -o spectra.csv\n"
    "  lmms-eval-stability spectrum --model llava-hf/llava-1.5-7b-hf --scheme int8 --documents questions.jsonl\n"
)
@click.option("--model", required=True, metavar="PATH", help="Folder, hub name or `demo`: a 16-bit or fp32 checkpoint.")
@click.option(
    "--scheme",
    "schemes",
    required=True,
    metavar="NAME[:PATH],...",
    help="int8 and nf4 quantise the model while it loads; gptq and awq need the PATH of a checkpoint made from it.",
)
@click.option(
    "--documents",
    metavar="FILE|TASK",
    help='Measure activations, too: JSONL of {"image": PATH, "question": TEXT}, or the name of an lmms-eval task.',
)
@click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Documents to read.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice of documents.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="CSV file to write."
)
def spectrum(model: str, schemes: str, documents: str | None, samples: int, seed: int, output: Path | None) -> None:
    """Measure how concentrated the spectra of weights and activations are, before and after quantisation.

    Inverse participation ratio and effective rank of every linear layer of the language model and, with --documents, of
    the visual and of all tokens after every decoder layer.
    """
    subjects = parse_schemes(schemes, model)
    if output is not None and not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
    from lmms_eval_stability.model_wrappers.errors import WrapperError

    try:
        lines = list(_measure(model, subjects, documents, samples, seed))
    except WrapperError as error:
        raise OptionError(str(error)) from error
    if output is not None:
        _write(lines, output)
    _print(lines)
    if output is not None:
        click.echo(str(output))


def parse_schemes(text: str, model: str) -> list[tuple[str, str]]:
    """Read "int8,gptq:PATH" into (scheme, checkpoint).

    Raises:
        OptionError: there is no such scheme, or it needs a checkpoint of its own and has none.
    """
    from ..plugin import registered_models

    known = dict.fromkeys(one.method for one in registered_models() if one.kind == "quantization")
    found = []
    for part in (part.strip() for part in text.split(",")):
        name, _, path = part.partition(":")
        if name not in known:
            raise OptionError(f"--scheme: there is no quantisation scheme '{name}'; there are {', '.join(known)}")
        if name in ("gptq", "awq") and not path:
            raise OptionError(f"--scheme {name}: name a checkpoint made from {model}, as in {name}:PATH")
        found.append((name, path or model))
    return found


def _measure(
    model: str, schemes: Sequence[tuple[str, str]], documents: str | None, samples: int, seed: int
) -> Iterator[Line]:
    from lmms_eval_stability.model_wrappers.quantization.make.calibration import Choice
    from lmms_eval_stability.model_wrappers.spectrum import Subject, measure, read_documents

    chosen = None if documents is None else read_documents(documents, Choice(samples, seed), model)
    with _progress() as report:
        baseline = measure(Subject("", model), chosen, report)
        for scheme, path in schemes:
            yield from compared(scheme, baseline, measure(Subject(scheme, path), chosen, report))


def compared(scheme: str, baseline: Measured, own: Measured) -> Iterator[Line]:
    """Put the spectra of one model beside the baseline's, weights first.

    Raises:
        OptionError: the models do not have the same layers.
    """
    if own.weights.keys() != baseline.weights.keys() or own.activations.keys() != baseline.activations.keys():
        odd = sorted(own.weights.keys() ^ baseline.weights.keys())
        raise OptionError(f"--scheme {scheme}: not made from this model: {', '.join(odd[:3]) or 'its depth'} differs")
    for name, found in own.weights.items():
        layer = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
        yield Line(scheme, "weight", layer, name, found, baseline.weights[name])
    for (layer, tokens), found in own.activations.items():
        yield Line(scheme, "activation", layer, tokens, found, baseline.activations[layer, tokens])


def _write(lines: Sequence[Line], output: Path) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *(line.cells() for line in lines)])
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
        partial.replace(output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error


def _print(lines: Sequence[Line]) -> None:
    """One row per scheme and kind of matrix: means, and the largest relative change."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("scheme", "of", "matrices", "IPR", "baseline", "largest change", "effective rank", "baseline"):
        table.add_column(
            heading, justify="left" if heading in ("scheme", "of") else "right", no_wrap=heading in ("scheme", "of")
        )
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        kind = line.name.rsplit(".", 1)[-1] if line.what == "weight" else f"{line.name} tokens"
        groups.setdefault((line.scheme, kind), []).append(line)
    for (scheme, kind), group in groups.items():
        change = max(abs(line.own.ipr / line.baseline.ipr - 1) for line in group)
        means = [
            sum(getattr(getattr(line, side), name) for line in group) / len(group)
            for name in ("ipr", "effective_rank")
            for side in ("own", "baseline")
        ]
        cells = (f"{means[0]:.4g}", f"{means[1]:.4g}", f"{100 * change:.2f} %", f"{means[2]:.4g}", f"{means[3]:.4g}")
        table.add_row(scheme, kind, str(len(group)), *cells)
    Console().print(table)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show what is under way, in a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=None)
        yield lambda what, done, total: progress.update(bar, description=what, completed=done, total=total or None)
