"""A comparison as a run of Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..comparison import Comparison
from ..divergence import AVERAGE
from ..errors import PushError
from ..report.values import printable

#: Columns of the table: keys of a record, see docs/summary.md.
COLUMNS = (
    "run", "task", "n", "metric", "score_unit", "score_baseline", "score_run", "drop", "dr", "dr_low", "dr_high",
    "ndr", "ndr_low", "ndr_high", "pdr", "pdr_low", "pdr_high", "rerun_dr", "excess_dr", "mcnemar_p",
)  # fmt: skip
#: What becomes a summary metric of every task and run.
METRICS = ("score_baseline", "score_run", "drop", "dr", "ndr", "pdr", "excess_dr")
_LONGEST_NAME = 128


def push_to_wandb(project: str, comparison: Comparison, files: Mapping[str, bytes]) -> str:
    """Write one run: its config, the table "divergence", summary metrics and the files as an artifact. Says where.

    `WANDB_MODE=offline` writes it to a folder for `wandb sync`, without any network.

    Raises PushError when the client cannot log in or reach its server.
    """
    import wandb

    entity, _, name = project.rpartition("/")
    settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, init_timeout=60)
    try:
        run = wandb.init(
            project=name,
            entity=entity or None,
            name=_name(comparison),
            job_type="compare",
            config=_config(comparison),
            settings=settings,
        )
        try:
            _write(run, comparison, files)
        except BaseException:
            with suppress(Exception):  # what went wrong first counts
                run.finish(exit_code=1)
            raise
        run.finish()
    except Exception as error:  # whatever the client raises: it documents no common base
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise PushError(f"--wandb {project}: {reason}; {_REMEDY}") from error
    if run.offline:
        return f"wandb: offline run in {_folder(run)}; `wandb sync {_folder(run)}` uploads it"
    return f"wandb: {run.url}"


_REMEDY = "log in with `wandb login` or WANDB_API_KEY, or set WANDB_MODE=offline and `wandb sync` later"


def _write(run: Any, comparison: Comparison, files: Mapping[str, bytes]) -> None:
    import wandb

    records = comparison.records()
    rows = [[_plain(record[column]) for column in COLUMNS] for record in records]
    run.log({"divergence": wandb.Table(columns=list(COLUMNS), data=rows)})
    for record in records:
        prefix = f"{_key(record['run'])}/{_key(record['task'])}"
        run.summary.update({f"{prefix}/{one}": record[one] for one in METRICS if record[one] is not None})
    if files:
        artifact = wandb.Artifact("comparison", type="report")
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.write_bytes(content)
                # copied to where the client keeps what is still to be uploaded: an offline run is synced days later
                artifact.add_file(str(path), name, policy="mutable")
        run.log_artifact(artifact)


def _config(comparison: Comparison) -> dict[str, Any]:
    from .. import __version__

    return {
        "lmms_eval_stability": __version__,
        "baseline": printable(comparison.label),
        "runs": [printable(run.label) for run in comparison.runs],
        "tasks": list(dict.fromkeys(row.task for run in comparison.runs for row in run.rows if row.task != AVERAGE)),
        "reruns": len(comparison.reruns),
        "correct_at": comparison.correct_at,
        "prediction": comparison.prediction,
        "model_args": {printable(run.label): dict(run.run.model_args) for run in comparison.runs},
        "confounders": {printable(run.label): [asdict(one) for one in run.confounders] for run in comparison.runs},
        "accepted": {printable(run.label): _accepted(run.rows[-1].record()) for run in comparison.runs},
        "warnings": {printable(run.label): len(run.warnings) for run in comparison.runs},
    }


def _accepted(record: Mapping[str, Any]) -> dict[str, int]:
    return dict(record["accepted"])


def _name(comparison: Comparison) -> str:
    name = f"{', '.join(run.label for run in comparison.runs)} against {comparison.label}"
    return printable(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def _key(text: str) -> str:
    """A part of a metric's name: "/" parts them."""
    return printable(text).replace("/", "_")


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _folder(run: Any) -> str:
    """The folder of an offline run, which `run.dir` is a folder of."""
    return str(run.dir).removesuffix("/files")
