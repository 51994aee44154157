"""`lmms-eval-stability perturb`: see what the perturbations do, and prepare them for a benchmark."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEED = click.option("--seed", default=0, show_default=True, help="Seed of the random numbers.")
_QUIRKS = click.option(
    "--official-quirks", is_flag=True, help="Reproduce what the published code does where it departs from its paper."
)
_TASK = click.option(
    "--task", "name", required=True, metavar="NAME", help="A perturbed task, e.g. gqa_image_perturbed."
)
_INCLUDE = click.option("--include-path", metavar="DIR", help="Folder with the YAML of a task of your own.")
_LIMIT = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N samples only.")


@click.group(
    epilog="\b\nExamples:\n"
    "  lmms-eval-stability perturb preview photo.jpg -o grid.png\n"
    '  lmms-eval-stability perturb text "How many dogs are there?"\n'
    "  lmms-eval-stability perturb manifest --task gqa_image_perturbed -o manifest.jsonl\n"
)
def perturb() -> None:
    """Show what the image and text perturbations do, and list or store them for a whole task."""


@perturb.command(epilog="\b\nExample:\n  lmms-eval-stability perturb preview photo.jpg -o grid.png\n")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="PNG", help="File to write.")
@click.option("--methods", metavar="NAMES", help="Only these, separated by commas; by default all 20.")
@click.option(
    "--cell", type=click.IntRange(32, 1024), default=160, show_default=True, help="Width of a cell in pixels."
)
@_SEED
@_QUIRKS
def preview(image: Path, output: Path, methods: str | None, cell: int, seed: int, official_quirks: bool) -> None:
    """Draw IMAGE at every severity of the image perturbations, labelled, as one PNG."""
    from PIL import Image

    from lmms_eval_stability.tasks.perturbations.image import METHODS
    from lmms_eval_stability.tasks.perturbations.preview import preview_grid
    from lmms_eval_stability.tasks.perturbations.sets import find_level

    names = list(METHODS) if methods is None else [name.strip() for name in methods.split(",")]
    with _user_errors():
        for name in names:
            find_level("image", name, 1)
        try:
            picture = Image.open(image).convert("RGB")
        except OSError as error:
            raise OptionError(f"{image} is not an image that can be read: {error}") from error
        grid = preview_grid(picture, names, seed=seed, official_quirks=official_quirks, cell=cell)
    try:
        grid.save(output, "PNG")
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error}") from error
    click.echo(f"{output}: {len(names)} perturbations, {grid.width}x{grid.height} pixels")


@perturb.command(epilog='\b\nExample:\n  lmms-eval-stability perturb text "How many dogs are there?" --severity 5\n')
@click.argument("question")
@click.option("--severity", type=click.IntRange(1, 5), help="One severity; by default the highest of each method.")
@click.option(
    "--format", "layout", type=click.Choice(["table", "json"]), default="table", help="table (default) or json."
)
@_SEED
@_QUIRKS
def text(question: str, severity: int | None, layout: str, seed: int, official_quirks: bool) -> None:
    """Print QUESTION after every text perturbation; levels whose model or data is not there say what they need."""
    from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
    from lmms_eval_stability.tasks.perturbations.text import METHODS, perturb_text

    rows = []
    with _user_errors():
        for name, entry in METHODS.items():
            level = min(severity or entry.severities, entry.severities)
            row: dict[str, Any] = {"method": name, "severity": level, "output": None, "changed": None, "missing": None}
            try:
                row["output"] = perturb_text(question, name, level, seed=seed, official_quirks=official_quirks)
                row["changed"] = row["output"] != question
            except MissingResourceError as error:
                row["missing"] = str(error)
            rows.append(row)
    if layout == "json":
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from .registered import print_table

    shown = []
    for row in rows:
        state = "missing" if row["missing"] else "" if row["changed"] else "unchanged"
        shown.append((row["method"], row["severity"], row["output"] or "", state))
    print_table(("perturbation", "severity", "question", ""), shown)
    if any(row["missing"] for row in rows):
        click.echo("What the missing ones need is said by `lmms-eval-stability perturb resources`.")


@perturb.command(epilog="\b\nExample:\n  lmms-eval-stability perturb manifest --task gqa_image_perturbed -o m.jsonl\n")
@_TASK
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="JSONL", help="File to write.")
@click.option("--plan-only", is_flag=True, help="Say what each sample draws, without perturbing it (fast).")
@_LIMIT
@_INCLUDE
def manifest(name: str, output: Path, plan_only: bool, limit: int | None, include_path: str | None) -> None:
    """Write one line per sample of a task: its id, level and seed, whether the output differs, and its digest.

    A file that is there already is continued after its last complete line.
    """
    done = _complete_lines(output, name, plan_only=plan_only)
    samples = _samples(name, include_path, start=done, limit=limit, apply=not plan_only)
    with _writing(output), output.open("a", encoding="utf-8") as file:
        changed = 0
        for sample in samples:
            file.write(json.dumps({"task": name, **sample.to_dict()}) + "\n")
            changed += bool(sample.record.changed)
            done += 1
    click.echo(f"{output}: {done} samples" + ("" if plan_only else f", {changed} changed in this run"))


@perturb.command(epilog="\b\nExample:\n  lmms-eval-stability perturb materialise --task gqa_image_perturbed -o cache\n")
@_TASK
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR", help="The folder."
)
@_LIMIT
@_INCLUDE
def materialise(name: str, output: Path, limit: int | None, include_path: str | None) -> None:
    """Store the perturbed images of a task, without loss, so that runs read instead of computing them.

    Runs use the folder when the environment variable LMMS_EVAL_STABILITY_PERTURBATION_CACHE names it. What is in it
    already is not computed again, so an interrupted call is repeated.
    """
    import os

    from lmms_eval_stability.tasks.perturbations.cache import FOLDER_VARIABLE

    os.environ[FOLDER_VARIABLE] = str(output)
    with _writing(output):
        output.mkdir(parents=True, exist_ok=True)
        count = sum(1 for _ in _samples(name, include_path, start=0, limit=limit, apply=True, images_only=True))
    click.echo(f"{output}: the images of {count} samples; use them with {FOLDER_VARIABLE}={output}")


@perturb.command(
    epilog="\b\nExample:\n  lmms-eval-stability perturb precompute --task gqa_text_perturbed_87 -o table.jsonl\n"
)
@_TASK
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="JSONL", help="File to write.")
@_LIMIT
@_INCLUDE
def precompute(name: str, output: Path, limit: int | None, include_path: str | None) -> None:
    """Write the outputs of the neural text methods for the samples of a task that draw them.

    Runs read the table when LMMS_EVAL_STABILITY_TEXT_PRECOMPUTED names it, so that they need no model and all machines
    show the same questions. An interrupted call is repeated; what the file has is not computed again.
    """
    from lmms_eval_stability.tasks.perturbations.text import precompute as write_table
    from lmms_eval_stability.tasks.perturbations.walk import load_perturbed_task, neural_inputs

    with _user_errors(), _writing(output):
        task = load_perturbed_task(name, include_path)
        written = 0
        for method, texts in neural_inputs(task, limit=limit).items():
            quirks = task.plan.official_quirks
            written += write_table(texts, output, methods=[method], official_quirks=quirks)
    click.echo(f"{output}: {written} rows added; use it with LMMS_EVAL_STABILITY_TEXT_PRECOMPUTED={output}")


@perturb.command(epilog="\b\nExample:\n  lmms-eval-stability perturb resources\n")
def resources() -> None:
    """Say which text levels can be made here, and what the others need."""
    from lmms_eval_stability.tasks.perturbations.text import METHODS, missing_resources

    from .registered import print_table

    with _user_errors():
        missing = missing_resources()
    rows = []
    for name, entry in METHODS.items():
        reason = missing.get(name) or ", ".join(entry.needs) or "nothing"
        rows.append((name, entry.severities, "missing" if name in missing else "there", reason))
    print_table(("perturbation", "levels", "", "needs"), rows)
    total = sum(entry.severities for entry in METHODS.values())
    here = total - sum(METHODS[name].severities for name in missing)
    click.echo(f"{here} of {total} levels can be made here")


def _samples(
    name: str, include_path: str | None, *, start: int, limit: int | None, apply: bool, images_only: bool = False
) -> Iterator[Any]:
    """Yield a task's samples with a bar of progress."""
    from rich.console import Console
    from rich.progress import track

    from lmms_eval_stability.tasks.perturbations.walk import load_perturbed_task, walk

    with _user_errors():
        task = load_perturbed_task(name, include_path)
        if images_only and task.plan.modality != "image":
            raise OptionError(f"{name} perturbs questions; only images are stored")
        total = len(task.eval_docs_no_media)
        total = max(0, (total if limit is None else min(total, limit)) - start)
        left = None if limit is None else max(0, limit - start)
        samples = walk(task, start=start, limit=left, apply=apply)
        yield from track(samples, description=name, total=total, console=Console(stderr=True))


def _complete_lines(file: Path, task: str, *, plan_only: bool) -> int:
    """Return how many samples a manifest has already; a line that an interruption cut off is taken away."""
    if not file.exists():
        return 0
    content = file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    lines = complete.decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        if not isinstance(entry, dict) or entry.get("task") != task or entry.get("doc_id") != number:
            raise OptionError(f"{file}, line {number + 1}, is not of a manifest of {task}; name another file")
        if (entry.get("changed") is None) != plan_only:
            raise OptionError(f"{file} was written {'without' if plan_only else 'with'} --plan-only; name another file")
    if len(complete) < len(content):
        file.write_bytes(complete)
    return len(lines)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn what can go wrong with a perturbation into an error of the command line."""
    from lmms_eval_stability.tasks.perturbations.entries import PerturbationError

    try:
        yield
    except PerturbationError as error:
        raise OptionError(str(error)) from error


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}") from error
