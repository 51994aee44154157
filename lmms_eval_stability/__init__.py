"""Which answers change when a vision-language model is accelerated: paired study of lmms-eval runs.

    from lmms_eval_stability import compare, load_run

    found = compare("runs/base", ["runs/fastv"])
    found.table                                     # a pandas data frame, one row per run and task
    found.pairs                                     # one row per sample: both answers, verdicts, flips
    load_run("runs/fastv").samples("gqa").frame     # the log of one task

Importing the package is cheap: what is named here is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Comparison, compare_runs
    from .errors import PairingError, StabilityError
    from .frames import Frames, compare
    from .runs import Run, load_run

try:
    __version__ = version("lmms-eval-stability")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

_EXPORTS = {
    "Comparison": "comparison",
    "Frames": "frames",
    "PairingError": "errors",
    "Run": "runs",
    "StabilityError": "errors",
    "compare": "frames",
    "compare_runs": "comparison",
    "load_run": "runs",
}

__all__ = [
    "Comparison",
    "Frames",
    "PairingError",
    "Run",
    "StabilityError",
    "__version__",
    "compare",
    "compare_runs",
    "load_run",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
