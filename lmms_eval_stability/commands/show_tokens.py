"""`lmms-eval-stability show-tokens`: which visual tokens each method keeps of an image, as one picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..report.token_picture import Panel

_METHODS = "fastv,pyramiddrop,sparsevlm,visionzip,hired,lofi"


@dataclass(frozen=True)
class MethodSpec:
    """A method as it was asked for: `text` is "fastv:k=3:r=0.75"."""

    text: str
    name: str
    parameters: dict[str, Any]


@click.command(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability show-tokens --image scene.png --question 'What color is the star?' --method fastv,hired\n"
    "  lmms-eval-stability show-tokens --model llava-hf/llava-1.5-7b-hf --image dog.jpg --question 'What is it?' \\\n"
    "      --method fastv:k=3:r=0.75,sparsevlm:tokens=200-100-50 -o dog_tokens.png\n"
)
@click.option(
    "--model", default="demo", show_default=True, help="Folder or hub name of a checkpoint, as for lmms-eval's models."
)
@click.option(
    "--image", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The picture."
)
@click.option("--question", required=True, metavar="TEXT", help="What the model is asked about it.")
@click.option(
    "--method",
    "methods",
    default=_METHODS,
    show_default=True,
    metavar="NAME[:PARAMETER=VALUE...],...",
    help="Token-reduction methods, separated by commas, with their parameters.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("tokens.png"),
    show_default=True,
    metavar="FILE",
    help="PNG file to write.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Length of an answer in tokens."
)
def show_tokens(model: str, image: Path, question: str, methods: str, output: Path, max_new_tokens: int) -> None:
    """Draw which visual tokens of an image each token-reduction method keeps, and what the model answers then.

    One PNG: the image as the model sees it, first as the model is, then with each method. Kept patches are clear,
    dropped ones dark, merged ones hatched.
    """
    specs = parse_methods(methods)
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
    picture = _read(image)

    from ..report.token_picture import save_tokens

    panels = list(_panels(model, picture, question, specs, max_new_tokens))
    try:
        save_tokens(panels, f"{model}: {question}", output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    width = max(len(panel.title) for panel in panels)
    for panel in panels:
        click.echo(f"{'≠' if panel.differs else ' '} {panel.title:{width}}  {panel.answer or '(empty)'}")
    click.echo(str(output))


def parse_methods(text: str) -> list[MethodSpec]:
    """Read "fastv:k=3:r=0.75,visionzip". The baseline may be named and is left out: it is always drawn.

    Raises:
        OptionError: a method or parameter that there is not, or one without a value.
    """
    from ..plugin import registered_models

    known = {model.method: model.parameters for model in registered_models() if model.kind == "token reduction"}
    specs = []
    for part in (part.strip() for part in text.split(",")):
        name, *given = (piece.strip() for piece in part.split(":"))
        if name == "baseline" and not given:
            continue
        if name not in known:
            raise OptionError(f"--method: there is no token-reduction method '{name}'; there are {', '.join(known)}")
        parameters = {}
        for piece in given:
            parameter, equals, value = (side.strip() for side in piece.partition("="))
            if not (parameter and equals and value):
                raise OptionError(f"--method {part}: write NAME:PARAMETER=VALUE, not '{piece}'")
            if parameter not in known[name]:
                takes = ", ".join(known[name])
                raise OptionError(f"--method {part}: {name} does not take {parameter}; it takes {takes}")
            parameters[parameter] = _value(value)
        specs.append(MethodSpec(part, name, parameters))
    return specs


def _value(text: str) -> Any:
    """Read a value as lmms-eval reads those of --model_args: True, False, a number, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _read(path: Path) -> Image:
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OptionError(f"--image {path} cannot be read as an image: {error}") from error


def _panels(model: str, picture: Image, question: str, specs: list[MethodSpec], max_new_tokens: int) -> Iterator[Panel]:
    """Run the model and yield what is to be drawn."""
    with _user_errors(), _progress(len(specs) + 1) as advance:
        from lmms_eval_stability.model_wrappers.token_reduction.show import load_any, make_method, show

        methods = [make_method(spec.name, spec.parameters) for spec in specs]
        loaded = load_any(model)
        shown = show(loaded, picture, _prompt(model, question), methods, max_new_tokens=max_new_tokens)
        baseline = ""
        for number, one in enumerate(shown):
            name = specs[number - 1].text if number else "baseline"
            baseline = baseline if number else one.answer
            yield _panel(name, one, one.answer != baseline)
            advance(name)


def _prompt(model: str, question: str) -> str:
    """Return the text of the prompt: the demo model knows questions only with the line that ends its task's."""
    from ..demo import SHORT_NAME
    from ..demo.training.prompts import INSTRUCTION

    if model != SHORT_NAME or INSTRUCTION.strip() in question:
        return question
    return question + INSTRUCTION


def _panel(name: str, one: Any, differs: bool) -> Panel:
    from ..report.token_picture import Panel

    fates, counts = one.fates, one.tokens.visual_tokens
    # one number per change: a stage that drops nothing, or the first layer twice, says nothing
    numbers = [count for i, count in enumerate(counts) if i == 0 or len(counts) == 2 or count != counts[i - 1]]
    layers = [str(layer) for layer in one.tokens.layers[1:] if layer]
    note = [f"before layer{'s' * (len(layers) > 1)} {', '.join(layers)}"] if layers else []
    if len(counts) > 1 and not layers:
        note = ["before the language model"]
    if len(counts) > 1:
        if len(fates.dropped_at) != counts[0]:
            height, width = one.canvas.picture.shape[:2]
            note.append(f"a smaller image, {width} x {height} pixels")
        else:
            note.append(f"{int(((fates.dropped_at == 0) & ~fates.merged).sum())} kept")
        if fates.merged_tokens:
            note.append(f"{int(fates.merged.sum())} merged into {fates.merged_tokens}")
        if fates.others:
            note.append(f"{fates.others} of no patch")
    return Panel(
        title=f"{name}  {' -> '.join(map(str, numbers))}",
        note=" · ".join(note) or "all tokens",
        answer=one.answer,
        differs=differs,
        picture=one.canvas.picture,
        boxes=one.canvas.boxes,
        dropped_at=fates.dropped_at,
        merged=fates.merged,
        stages=fates.stages,
    )


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn what the models refuse into an error of the command line."""
    from lmms_eval_stability.model_wrappers.errors import WrapperError

    try:
        yield
    except WrapperError as error:
        raise OptionError(str(error)) from error


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Show how many answers are there, in a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("loading the model", total=total)
        yield lambda name: progress.update(bar, advance=1, description=f"answered: {name}")
