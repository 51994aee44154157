"""What can be wrong with two runs, by name: the vocabulary of `--accept`.

A problem that is not accepted stops the comparison. An accepted one is counted, and its count stands in every output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import OptionError

#: How many examples of one problem are kept and shown.
EXAMPLES = 3


@dataclass(frozen=True)
class Kind:
    """One kind of problem: what it is (after a count), and what happens to such rows when it is accepted."""

    what: str
    accepted: str


KINDS: dict[str, Kind] = {
    "unpaired": Kind("documents that only one of the two runs holds", "they are left out"),
    "duplicate": Kind("lines that repeat a document", "the first line of each document counts"),
    "empty": Kind("empty answers", "they are compared as the answer ''"),
    "failed": Kind("rows in which the model failed", "they are left out"),
    "unparsable": Kind("lines that are not complete sample records", "they are left out"),
    "unscored": Kind("rows without a finite score", "they are left out"),
    "input": Kind("documents whose prompts differ between the runs", "they are compared all the same"),
    "target": Kind("documents whose targets differ between the runs", "they are compared all the same"),
    "fingerprint": Kind("documents whose real inputs (prompt and pixels) differ", "they are compared all the same"),
    "task": Kind("task that only one of the two runs holds", "it is left out"),
    "version": Kind("task whose version differs between the runs", "it is compared all the same"),
    "results": Kind("results JSON that does not describe the run", "settings and native scores stay unchecked"),
}
#: What no option accepts: what it is (after a count), and what to do.
HOPELESS: dict[str, tuple[str, str]] = {
    "no samples": ("usable sample records", "run the task again with --log_samples"),
    "no pairs": ("pairs left to compare", "name other tasks with --task, or run the task again"),
}


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one task of one run, or of one pair of runs.

    Attributes:
        kind: a key of `KINDS`, or of `HOPELESS`, which no option accepts.
        task: lmms-eval task name; empty when the problem is the whole run's.
        where: the file or files, as the user knows them.
        count: how many rows, lines or tasks.
        examples: the first few, in words.
        details: lines to show below, as the differences of the first texts that differ.
    """

    kind: str
    task: str
    where: str
    count: int
    examples: tuple[str, ...] = ()
    details: tuple[str, ...] = ()

    def line(self) -> str:
        """The problem in one line: task, place, count, examples."""
        what = KINDS[self.kind].what if self.kind in KINDS else HOPELESS[self.kind][0]
        more = ", ..." if self.count > len(self.examples) else ""
        examples = f": {'; '.join(self.examples)}{more}" if self.examples else ""
        task = f"task {self.task}, " if self.task else ""
        return f"{task}{self.where}: {self.count} {what}{examples}"


def parse_accept(values: Iterable[str]) -> frozenset[str]:
    """Names given to `--accept`, repeated or comma separated; unknown ones are refused."""
    names = {name.strip() for value in values for name in value.split(",") if name.strip()}
    unknown = sorted(names - KINDS.keys())
    if unknown:
        raise OptionError(f"--accept does not know {', '.join(unknown)}; known are {', '.join(KINDS)}")
    return frozenset(names)


def describe(problems: Sequence[Problem]) -> str:
    """All problems, each with the option that accepts it, as the text of one error."""
    lines = ["the runs cannot be compared as they are"]
    for problem in problems:
        lines.append(f"  {problem.line()}")
        lines += [f"      {detail}" for detail in problem.details]
        if problem.kind in KINDS:
            lines.append(f"      --accept {problem.kind}: {KINDS[problem.kind].accepted}")
        else:
            lines.append(f"      no option accepts this: {HOPELESS[problem.kind][1]}")
    kinds = [kind for kind in KINDS if any(problem.kind == kind for problem in problems)]
    if len(kinds) > 1:
        lines.append(f"  accept all of these with --accept {','.join(kinds)}")
    return "\n".join(lines)


def show(text: str, limit: int = 60) -> str:
    """Untrusted text for one line of a message: quoted, control characters escaped, cut at `limit` characters."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
