"""The reports of a study, or of one `compare -o`, as numbers under the paper's names.

Of `summary.json` these keys are used: `schema_version`, `correct_at`, `prediction`; of `baseline` and `runs` `label`,
`path`, `model`, `model_args` and `confounders`; of `comparisons` and of `categories` the scores, `drop`, the rates with
their ends, `n`, `score_unit`, `soft_unit`, `soft_ndr` and `soft_pdr`; `benchmark_metrics`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import OptionError, StabilityError
from .names import BASE_MODELS, METHODS, base_model

#: The `schema_version` of summary.json that is understood (a test compares it with the writer's).
SCHEMA_VERSION = 1
SUMMARY = "summary.json"


class ReportsError(StabilityError):
    """A path holds no report that can be put beside a published table."""


@dataclass(frozen=True)
class RunReport:
    """One accelerated run.

    Attributes:
        method: as the paper calls it.
        records: of `comparisons`, by task. metrics: of `benchmark_metrics`, by (task, metric). parts: of `categories`,
            by (task, dimension, category).
    """

    method: str
    folder: str
    model: str
    model_args: Mapping[str, str]
    confounders: int
    records: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[tuple[str, str], Mapping[str, Any]]
    parts: Mapping[tuple[str, str, str], Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The model with its arguments, but for the checkpoint of the base model."""
        return _called(self.model, {name: value for name, value in self.model_args.items() if name != "dtype"})


@dataclass(frozen=True)
class BaseReport:
    """One base model with its runs, from one summary.json.

    Attributes:
        base_model: as the paper calls it.
        folder: the runs' folder of the baseline, as it was named to compare.
        other_runs: folders of runs that are no method of the paper.
    """

    file: Path
    base_model: str
    folder: str
    model: str
    model_args: Mapping[str, str]
    correct_at: float
    prediction: str
    runs: Mapping[str, RunReport]
    other_runs: tuple[str, ...]

    @property
    def name(self) -> str:
        return _called(self.model, self.model_args)


def read_reports(folders: Sequence[Path], named: Mapping[str, str]) -> list[BaseReport]:
    """All reports below the folders.

    Args:
        folders: of studies (`report/<base>/summary.json` below each), or of `compare -o`, or summary.json files.
        named: folder of a base model or run -> what the paper calls it, where the folder does not say so.

    Raises:
        ReportsError: there is no report, or one that cannot be read. OptionError: a name is unknown, or two reports or
            runs stand for the same model or method.
    """
    unknown = sorted(set(named.values()) - {*BASE_MODELS, *METHODS.values()})
    if unknown:
        known = ", ".join([*BASE_MODELS, *METHODS.values()])
        raise OptionError(f"--as: the paper has no {', '.join(unknown)}; it has {known}")
    files = [file for folder in folders for file in _summaries(folder)]
    return [_Reader(file, named).report() for file in dict.fromkeys(files)]


def stated_table(folders: Sequence[Path]) -> int:
    """The table that the studies say they are about.

    Raises OptionError where they say none, or several.
    """
    tables: set[int] = set()
    for folder in folders:
        with suppress(OSError, ValueError):
            plan = orjson.loads((folder / "study.json").read_bytes())
            table = next((found["table"] for found in _published(plan) if "table" in found), None)
            if table is not None and str(table).isdecimal():
                tables.add(int(table))
    if len(tables) != 1:
        said = f"they name tables {', '.join(map(str, sorted(tables)))}" if tables else "no study there names a table"
        raise OptionError(f"{', '.join(map(str, folders))}: {said}; say which one with --table N")
    return tables.pop()


def _published(plan: Any) -> list[dict[str, Any]]:
    """Every object under the key `published`, wherever the plan of a study has it."""
    if not isinstance(plan, dict):
        return []
    own = [plan["published"]] if isinstance(plan.get("published"), dict) else []
    return own + [found for key in ("study", "config") for found in _published(plan.get(key))]


def _summaries(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise ReportsError(f"{path}: no such folder; name the folder of a study, or of compare -o")
    # a study's report has a folder per base model; one of compare, and of the demo, has none
    found = sorted(path.glob(f"report/*/{SUMMARY}"))
    found += [file for file in (path / SUMMARY, path / "report" / SUMMARY) if file.is_file()]
    if not found:
        study = (path / "study.json").is_file()
        remedy = (
            "the study there has no report yet: finish it with lmms-eval-stability study"
            if study
            else "name the folder of a study (report/<base model>/summary.json), or of lmms-eval-stability compare -o"
        )
        raise ReportsError(f"{path}: no {SUMMARY} in it or in its report folder; {remedy}")
    return found


class _Reader:
    """Takes one summary.json apart; every complaint names the file."""

    def __init__(self, file: Path, named: Mapping[str, str]) -> None:
        self.file, self.named = file, named

    def fail(self, message: str) -> ReportsError:
        return ReportsError(f"{self.file}: {message}; write it anew with: lmms-eval-stability compare ... -o DIR")

    def report(self) -> BaseReport:
        summary = self._load()
        baseline, records = self._object(summary.get("baseline"), "baseline"), summary.get("comparisons")
        correct_at = summary.get("correct_at")
        if not isinstance(records, list) or isinstance(correct_at, bool) or not isinstance(correct_at, (int, float)):
            raise self.fail("'comparisons' must be a list and 'correct_at' a number")
        runs, others = self._runs(summary, [self._object(one, "comparisons") for one in records])
        folder, arguments = str(baseline.get("path") or ""), _texts(baseline.get("model_args"))
        home = self.file.parent.name
        spoken = base_model(home, arguments.get("pretrained", ""), Path(folder).parent.name)
        return BaseReport(
            file=self.file,
            base_model=self._named(home, BASE_MODELS) or spoken,
            folder=folder,
            model=str(baseline.get("model") or ""),
            model_args=arguments,
            correct_at=float(correct_at),
            prediction=str(summary.get("prediction") or ""),
            runs=runs,
            other_runs=tuple(others),
        )

    def _load(self) -> dict[str, Any]:
        try:
            summary = orjson.loads(self.file.read_bytes())
        except OSError as error:
            raise ReportsError(f"{self.file}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self.fail(f"not JSON: {error}") from error
        version = summary.get("schema_version") if isinstance(summary, dict) else None
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise self.fail(f"schema_version is {version!r}, and this version understands {SCHEMA_VERSION}")
        return self._object(summary, "the summary")

    def _runs(
        self, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, RunReport], list[str]]:
        described = summary.get("runs")
        if not isinstance(described, list):
            raise self.fail("'runs' must be a list")
        runs: dict[str, RunReport] = {}
        others: list[str] = []
        for entry in described:
            run = self._object(entry, "runs")
            folder = _folder(run)
            method = self._named(folder, METHODS.values()) or METHODS.get(folder.lower(), "")
            if not method:
                others.append(folder)
                continue
            if method in runs:
                raise OptionError(
                    f"{self.file}: {runs[method].folder} and {folder} both stand for {method}; compare them one by one"
                )
            runs[method] = self._run(run, method, folder, records)
        return runs, others

    def _run(self, run: Mapping[str, Any], method: str, folder: str, records: Sequence[Mapping[str, Any]]) -> RunReport:
        own = [record for record in records if record.get("run") == run.get("label")]
        confounders = run.get("confounders")
        return RunReport(
            method=method,
            folder=folder,
            model=str(run.get("model") or ""),
            model_args=_texts(run.get("model_args")),
            confounders=len(confounders) if isinstance(confounders, list) else 0,
            records={str(record.get("task")): record for record in own},
            metrics={
                (str(one.get("task")), str(one.get("metric"))): one for one in self._list(run, "benchmark_metrics")
            },
            parts={
                (str(one.get("task")), str(one.get("dimension")), str(one.get("category"))): one
                for one in self._list(run, "categories")
            },
        )

    def _named(self, folder: str, allowed: Collection[str]) -> str:
        name = self.named.get(folder, "")
        return name if name in allowed else ""

    def _list(self, run: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = run.get(key) or []
        if not isinstance(value, list):
            raise self.fail(f"'{key}' of a run must be a list")
        return [self._object(one, key) for one in value]

    def _object(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(f"{what} must be an object")
        return value


def _folder(run: Mapping[str, Any]) -> str:
    """The last folder of a run's path, without a timestamp, which in a study is the label of the method."""
    path = Path(str(run.get("path") or ""))
    return re.sub(r"@[0-9_]*$", "", path.name)


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(item) for name, item in value.items()} if isinstance(value, dict) else {}


def _called(model: str, arguments: Mapping[str, str]) -> str:
    shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f"{model} ({shown})" if shown else model
