"""What else differs between two runs: everything but the acceleration that can change an answer.

A confounder does not stop the comparison. It is printed, because a batch size or a kernel can by itself change more
answers than a mild quantisation does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import Run

#: Model arguments that set how a model runs rather than which model runs; all others belong to the run's label.
SETTINGS = (
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "device",
    "device_map",
    "batch_size",
    "max_batch_size",
    "reuse",
    "reuse_memory",
    "deterministic",
    "workers",
    "use_cache",
    "max_new_tokens",
    "min_pixels",
    "max_pixels",
    "conv_template",
    "system_prompt",
    "revision",
)
#: Entries of the `config` section of the results JSON that can change answers.
_CONFIG = (
    "batch_size",
    "device",
    "limit",
    "offset",
    "gen_kwargs",
    "random_seed",
    "numpy_seed",
    "torch_seed",
    "num_fewshot",
)
#: Facts of a run that say what was compared, or what was measured, not under which circumstances.
_SUBJECT = (
    "method",
    "method_args",
    "method_arguments",
    "arguments",
    "args",
    "model",
    "pretrained",
    "baseline",
    "label",
    "geometry",
    "throughput",
)
_OWN = "lmms_eval_stability"


@dataclass(frozen=True)
class Confounder:
    """One setting with its value in both runs, as text; "not stated" where a run says nothing."""

    name: str
    baseline: str
    run: str

    def __str__(self) -> str:
        return f"{self.name} {self.baseline} against {self.run}"


def confounders(
    baseline: Run,
    run: Run,
    facts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    tasks: tuple[str, ...] = (),
) -> tuple[Confounder, ...]:
    """All settings in which the runs differ.

    Args:
        baseline, run: the two runs.
        facts: what the sample logs of both say about their run, for what their results JSONs do not say.
        tasks: tasks whose generation and prompt arguments are compared.
    """
    before, after = _settings(baseline, facts[0], tasks), _settings(run, facts[1], tasks)
    # a fact that only our own models log says nothing about a run of another model
    one_sided = {name for name in before.keys() ^ after.keys() if name.startswith("run.") or name == "git revision"}
    if baseline.results_file is None or run.results_file is None:
        # what was asked for is known of one run at most
        one_sided |= {name for name in before.keys() | after.keys() if not name.startswith("run.")}
    # what the run really did is a better witness than what was asked for
    asked = {name for name in {**before, **after} if f"run.{name}" in before.keys() & after.keys()}
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    names = [name for name in names if name not in one_sided | asked]
    return tuple(
        Confounder(name.removeprefix("run."), before.get(name, "not stated"), after.get(name, "not stated"))
        for name in names
    )


def _settings(run: Run, facts: Mapping[str, Any], tasks: tuple[str, ...]) -> dict[str, str]:
    own = {name: value for name, value in (run.facts or facts).items() if name not in _SUBJECT}
    settings = {f"run.{name}": value for name, value in _leaves(own).items()}
    if run.results_file is None:
        return settings
    settings |= {name: str(run.config.get(name)) for name in _CONFIG if name in run.config}
    settings |= {name: value for name, value in run.model_args.items() if name in SETTINGS}
    if "@" not in run.lmms_eval_version:
        settings["versions.lmms-eval"] = run.lmms_eval_version or "not stated"
    elif "run.versions.lmms-eval" not in settings:
        # lmms-eval states the branch and commit of the working directory, which is its own only in its own checkout
        settings["git revision"] = run.lmms_eval_version
    settings["backend"] = _backend(str(run.config.get("model_backend") or "not stated"))
    for task in tasks:
        settings |= _leaves(dict(run.task(task).settings), f"{task} ")
    return settings


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested dict as one level: {"versions": {"torch": "2.6"}} -> {"versions.torch": "2.6"}."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _leaves(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _backend(backend: str) -> str:
    """The code path of a model. All models of this package share one and differ from a baseline only in method."""
    kind = backend.rpartition(" ")[2] if backend.endswith(")") else ""
    return f"{_OWN} {kind}".strip() if backend.startswith(f"{_OWN}.") else backend


def labels(runs: list[Run]) -> list[str]:
    """A name for each run: the model with the arguments not shared by all runs, and more where that is not unique.

    Arguments are those of the method, defaults included where the model logs them, and those given to the model.

    Circumstances such as the batch size are confounders, not names. Equal labels get the folder's name, then the
    run's timestamp.
    """
    arguments = [_arguments(run) for run in runs]
    common = set.intersection(*(set(args.items()) for args in arguments))
    found = []
    for run, args in zip(runs, arguments, strict=True):
        own = [f"{name}={value}" for name, value in args.items() if (name, value) not in common]
        found.append((run.model or run.folder.name) + (f" ({', '.join(own)})" if own else ""))
    for more in (_folder, lambda run: run.run_id, lambda run: run.name):
        found = [
            f"{label} [{more(run)}]" if found.count(label) > 1 else label
            for label, run in zip(found, runs, strict=True)
        ]
    return found


def _arguments(run: Run) -> dict[str, str]:
    """Arguments that say which model was run: method arguments first, then the others, without mere settings."""
    method = run.facts.get("method_args")
    effective = {name: str(value) for name, value in method.items()} if isinstance(method, Mapping) else {}
    return effective | {k: v for k, v in run.model_args.items() if k not in SETTINGS and k not in effective}


def other_subject(baseline: Run, rerun: Run) -> str:
    """In what a run is not the baseline's model run again, in words: another model, or other arguments of it.

    Settings may differ (they are confounders). What one of the runs does not state cannot differ.
    """
    pairs: list[tuple[str, Any, Any]] = [("model", baseline.model, rerun.model)]
    if baseline.results_file and rerun.results_file:
        names = [name for name in {**baseline.model_args, **rerun.model_args} if name not in SETTINGS]
        pairs += [(name, baseline.model_args.get(name, "-"), rerun.model_args.get(name, "-")) for name in names]
    methods = [run.facts.get("method_args") for run in (baseline, rerun)]
    if all(isinstance(method, Mapping) for method in methods):
        pairs.append(("method arguments", methods[0], methods[1]))
    return "; ".join(
        f"{name} {before} against {after}" for name, before, after in pairs if before and after and before != after
    )


def _folder(run: Run) -> str:
    """The last folder of the path as the user wrote it, which is what tells runs of one model apart."""
    path = Path(run.name)
    return (path.parent if path.suffix == ".json" else path).name.partition("@")[0] or str(path)
