"""The command line: a table of commands, each imported only when it is called, so that the program starts at once."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from . import __version__
from .errors import StabilityError


@dataclass(frozen=True)
class Command:
    """Where a command lives ("module:function") and its line in the list of commands."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "check-table": Command(
        "lmms_eval_stability.commands.check_table:check_table", "Find impossible numbers in a table of results."
    ),
    "compare": Command("lmms_eval_stability.commands.compare:compare", "Compare runs with a baseline by sample."),
    "demo": Command("lmms_eval_stability.commands.demo:demo", "Run the demo study on the model that is shipped."),
    "gate": Command("lmms_eval_stability.commands.gate:gate", "Hold a comparison against limits: PASS or FAIL."),
    "models": Command("lmms_eval_stability.commands.registered:models", "List the models added to lmms-eval."),
    "paper": Command("lmms_eval_stability.commands.paper:paper", "Published tables, and runs beside them."),
    "perturb": Command("lmms_eval_stability.commands.perturb:perturb", "Show, list or store perturbed inputs."),
    "show-tokens": Command(
        "lmms_eval_stability.commands.show_tokens:show_tokens", "Draw which visual tokens each method keeps."
    ),
    "quantize": Command("lmms_eval_stability.commands.quantize:quantize", "Make a GPTQ or AWQ checkpoint."),
    "spectrum": Command("lmms_eval_stability.commands.spectrum:spectrum", "Spectra before and after quantisation."),
    "study": Command("lmms_eval_stability.commands.study:study", "Run the grid of a YAML, resumed and compared."),
    "tasks": Command("lmms_eval_stability.commands.registered:tasks", "List the tasks added to lmms-eval."),
    "train-pruner": Command(
        "lmms_eval_stability.commands.train_pruner:train_pruner", "Train LVPruning's modules for a model."
    ),
}


class LazyGroup(click.Group):
    """A group that lists its commands without importing them, and prints user errors as `error: ...`, exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        command = COMMANDS.get(cmd_name)
        if command is None:
            return None
        module, _, function = command.target.partition(":")
        found = getattr(import_module(module), function)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click would import every command to suggest a near miss
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # an ASCII terminal gets "?" for "·", and file names that are no text print at all
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StabilityError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="lmms-eval-stability")
def main() -> None:
    """Which answers change when a vision-language model is accelerated: paired study of lmms-eval runs."""


if __name__ == "__main__":
    main()
