"""lmms-eval's own results JSON of a run with its divergence from the baseline in it, as more metrics of each task.

Whatever reads a results JSON (lmms-eval's table printer, a leaderboard) then shows DR, NDR and PDR beside the score.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from math import isnan, sqrt
from pathlib import Path
from typing import Any

from .comparison import Comparison
from .divergence import AVERAGE, Divergence
from .errors import RunFormatError
from .log_lines import python_json

#: The metrics that are added to each task, and whether more of them is better.
ADDED = {"dr": False, "ndr": False, "pdr": True}
#: lmms-eval writes metrics as "NAME,FILTER"; these are over answers as they were compared, after any filter.
_FILTER = "none"
#: Bytes of a file name that most file systems allow, less the rest of the name and the suffix of a temporary file.
_LONGEST = 120


def with_divergence(results: Mapping[str, Any], rows: Iterable[Divergence]) -> dict[str, Any]:
    """A copy of a results JSON in which every compared task has `dr,none`, `ndr,none`, `pdr,none` and their stderr.

    Values are fractions of the pairs, as lmms-eval's own accuracies are. The stderr is that of lmms-eval for a mean of
    0 and 1, sqrt(p (1 - p) / (n - 1)), and "N/A" as there for a single sample; it takes samples as independent, and is
    0 where nothing or everything diverges: the intervals of the report say more. Averages and rows without a value are
    left out; everything else in the file stays as it is.

    Args:
        results: as lmms-eval wrote it.
        rows: of one run.
    """
    document = copy.deepcopy(dict(results))
    tasks = _section(document, "results")
    better = _section(document, "higher_is_better")
    for row in rows:
        if row.task == AVERAGE or isnan(row.dr.value):
            continue
        entry = _section(tasks, row.task, {"alias": row.task})
        for name in ADDED:
            value = getattr(row, name).value
            entry[f"{name},{_FILTER}"] = value
            entry[f"{name}_stderr,{_FILTER}"] = sqrt(value * (1 - value) / (row.n - 1)) if row.n > 1 else "N/A"
        _section(better, row.task).update(ADDED)
    return document


def leaderboards(comparison: Comparison) -> dict[str, str]:
    """The file `leaderboard_<run>.json` of each compared run, as text by name.

    `lmms_eval_stability` in it says what the rates are against: the baseline, the threshold, the policy, and the pairs
    of each task. A run whose results JSON is missing or broken (`--accept results`) has no such file.
    """
    files: dict[str, str] = {}
    for run in comparison.runs:
        if run.run.results_file is None:
            continue
        document = with_divergence(_read(run.run.results_file), run.rows)
        document["lmms_eval_stability"] = {
            "baseline": comparison.label,
            "run": run.label,
            "correct_at": comparison.correct_at,
            "prediction": comparison.prediction,
            "n": {row.task: row.n for row in run.rows if row.task != AVERAGE},
        }
        files[_file_name(run.label, files)] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return files


def _read(path: Path) -> dict[str, Any]:
    """The results JSON, NaN included: what lmms-eval wrote stays."""
    try:
        results = python_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise RunFormatError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFormatError(f"{path}: not a results JSON ({error}); was it changed meanwhile?") from error
    if not isinstance(results, dict):
        raise RunFormatError(f"{path}: not a results JSON (no object at its top)")
    return results


def _section(mapping: dict[str, Any], key: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A sub-dict, made anew when it is missing or something else."""
    if not isinstance(mapping.get(key), dict):
        mapping[key] = dict(default or {})
    section: dict[str, Any] = mapping[key]
    return section


def _file_name(label: str, taken: Iterable[str]) -> str:
    """A label as a file name on any system: letters, digits, ".", "=", "_" and "-", and no two alike."""
    slug = re.sub(r"[^A-Za-z0-9.=_-]+", "_", label).strip("._")[:_LONGEST] or "run"
    used = {name.lower() for name in taken}
    names = (f"leaderboard_{slug}{f'_{i}' if i > 1 else ''}.json" for i in range(1, len(used) + 2))
    return next(name for name in names if name.lower() not in used)
