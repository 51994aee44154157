"""`lmms-eval-stability gate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import OutputError


@click.command(
    epilog="\b\n"
    "Exit codes: 0 PASS, 1 FAIL, 3 INCONCLUSIVE; 2 when the policy, the report or an option is wrong.\n\n\b\n"
    "Examples:\n"
    "  lmms-eval-stability gate policy.yaml report\n"
    "  lmms-eval-stability gate policy.yaml report --junit gate.xml --markdown gate.md\n"
    '  lmms-eval-stability gate policy.yaml report --format markdown >> "$GITHUB_STEP_SUMMARY"\n',
)
@click.argument("policy", metavar="POLICY.yaml")
@click.argument("results", metavar="RESULTS")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the verdicts as JUnit XML, too.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the Markdown summary, too.")
@click.pass_context
def gate(ctx: click.Context, policy: str, results: str, layout: str, junit: Path | None, markdown: Path | None) -> None:
    """Hold a comparison against limits on NDR, DR and excess DR.

    POLICY.yaml has limits, in percent points, on tasks, on every task or on the average. RESULTS is the folder that
    compare -o wrote, or the summary.json in it.

    A limit FAILs when the whole interval is beyond it (or the estimate, with judge: point), PASSes when the whole
    interval is within it, and is INCONCLUSIVE otherwise. What is missing is never a PASS.
    """
    from ..gate import judge
    from ..gate_policy import check_names, read_policy
    from ..gate_report import read_report
    from ..report.gate import print_gate, to_json, to_markdown
    from ..report.junit import to_junit

    limits, report = read_policy(policy), read_report(results)
    check_names(limits, report)
    result = judge(limits, report)
    for option, path, writer in (("--junit", junit, to_junit), ("--markdown", markdown, to_markdown)):
        if path is not None:
            _write(option, path, writer(result))
    if layout == "table":
        print_gate(result, sys.stdout)
    else:
        click.echo({"json": to_json, "markdown": to_markdown}[layout](result), nl=False)
    ctx.exit(result.verdict.value)


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"{option} {path}: cannot write: {error.strerror}") from error
