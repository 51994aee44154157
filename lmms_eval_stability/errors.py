"""The errors a user can meet. Every one says what is wrong, where, and what to do about it.

The command line prints any `StabilityError` as `error: ...` and ends with exit code 2; in Python they are ordinary
exceptions, so `except StabilityError` catches all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .problems import Problem


class StabilityError(Exception):
    """Base of every error that comes from the user's input, options or files."""


class OptionError(StabilityError):
    """An option names something that does not exist or contradicts another one."""


class RunNotFoundError(StabilityError):
    """A path does not lead to exactly one lmms-eval run with logged samples."""


class RunFormatError(StabilityError):
    """A file of a run cannot be understood as what lmms-eval writes."""


class OutputError(StabilityError):
    """A result cannot be written."""


class PushError(StabilityError):
    """A comparison cannot be sent elsewhere: no client, no login, no network. The comparison itself is complete."""


class PairingError(StabilityError):
    """The runs do not describe the same samples. Holds every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        from .problems import describe

        self.problems = tuple(problems)
        super().__init__(describe(problems))
