"""Nothing is undocumented: every command, option, method, model argument and task has its place in docs/."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest

from lmms_eval_stability.cli import COMMANDS, main
from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS
from lmms_eval_stability.model_wrappers.wrapper import AcceleratedVLM
from lmms_eval_stability.plugin import registered_tasks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_an_example_and_a_page_with_all_its_options(name: str) -> None:
    found = command(name)
    assert found.help
    assert found.epilog
    assert f"lmms-eval-stability {name}" in found.epilog
    page = read(DOCS / "commands" / f"{name}.md")
    check_options(found, page, f"docs/commands/{name}.md")
    for sub in found.commands.values() if isinstance(found, click.Group) else ():
        assert sub.help
        assert sub.epilog
        assert f"`{name} {sub.name}`" in page
        check_options(sub, page, f"docs/commands/{name}.md")


def check_options(found: click.Command, page: str, where: str) -> None:
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            long = next(option for option in parameter.opts if option.startswith("--"))
            assert long in page, f"{where} does not mention {long}"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.path])
def test_every_method_has_a_page_with_all_its_parameters(name: str) -> None:
    page = read(DOCS / "methods" / f"{name}.md")
    for parameter, default in METHODS[name].parameters.items():
        assert f"| `{parameter}` | {default} |" in page
    assert f"`_{name}`" in read(DOCS / "commands" / "models.md")


def test_every_prefix_and_every_model_argument_is_on_the_models_page() -> None:
    page = read(DOCS / "commands" / "models.md")
    for family in FAMILIES:
        assert f"`{family}_`" in page
    for name, parameter in inspect.signature(AcceleratedVLM.__init__).parameters.items():
        if name not in ("self", "max_batch_size") and parameter.kind is not parameter.VAR_KEYWORD:
            assert f"`{name}`" in page, name


def test_every_task_is_on_the_tasks_page() -> None:
    page = read(DOCS / "commands" / "tasks.md")
    for task in registered_tasks():
        assert f"`{task.name}`" in page


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "AGENTS.md", *DOCS.rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", read(page)):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readme_begins_with_the_two_commands() -> None:
    commands = re.findall(r"^(?:\$ )?(make \w+)", read(ROOT / "README.md"), flags=re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]


def test_agents_map_is_a_map() -> None:
    assert len(read(ROOT / "AGENTS.md").splitlines()) < 100
