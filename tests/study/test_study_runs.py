"""Studies from a YAML: what is refused before anything runs, and what counts as a finished run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.study import legacy as study_module
from lmms_eval_stability.plugin import registered_models, registered_tasks
from lmms_eval_stability.study.legacy import (
    RERUN,
    Study,
    StudyConfigError,
    StudyRun,
    StudyRunError,
    demo_config,
    load_study,
    open_folder,
    run_study,
)

VALID = """
tasks: [shapes_vqa]
limit: 3
baseline: {model: llava_baseline, model_args: {pretrained: demo}}
rerun: true
runs:
  pruned: {model: llava_fastv, model_args: {pretrained: demo, r: 0.5}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_is_read_as_written(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, VALID))
    assert study == Study(
        tasks=("shapes_vqa",),
        baseline=StudyRun("baseline", "llava_baseline", {"pretrained": "demo"}),
        runs=(StudyRun("pruned", "llava_fastv", {"pretrained": "demo", "r": 0.5}),),
        rerun=True,
        limit=3,
    )
    assert [run.name for run in study.all_runs] == ["baseline", RERUN, "pruned"]


def test_the_demo_study_names_models_tasks_and_arguments_that_exist() -> None:
    study = load_study(demo_config())
    models = {model.name: model for model in registered_models()}
    assert set(study.tasks) <= {task.name for task in registered_tasks()}
    for run in study.all_runs:
        assert set(run.model_args) <= {"pretrained", *models[run.model].parameters}
    assert (study.limit, study.rerun, study.offline) == (500, True, True)
    assert sorted(run.model_args["r"] for run in study.runs if run.model == "llava_fastv") == [0.5, 0.75]
    # Every method that LLaVA can run is in the demo; downsampling needs a processor that keeps the image's size.
    assert {run.model for run in study.all_runs} == {name for name in models if name.startswith("llava_")} - {
        "llava_downsample"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tasks:", "taks:"), r"does not know taks; its keys are .*tasks"),
        (("baseline:", "base:"), "does not know base"),
        (("pruned: {model: llava_fastv,", "pruned: {modle: llava_fastv,"), "run 'pruned' does not know modle"),
        (("pruned:", "report:"), "cannot be called report"),
        (("pruned:", "../../elsewhere:"), "cannot name a run"),
        (("tasks: [shapes_vqa]", "tasks: shapes_vqa"), "'tasks' must be a list"),
        (("limit: 3", "limit: many"), "'limit' must be a whole number"),
        (("rerun: true", "rerun: perhaps"), "'rerun' must be true or false"),
        (("model_args: {pretrained: demo}}", "model_args: 5}"), "'model_args' a mapping"),
        ((VALID, "runs: ["), "cannot be read as YAML"),
        ((VALID, "- a list"), "must be a mapping"),
        ((VALID[VALID.index("runs") :], "runs: {}"), "'runs' must map"),
        (("rerun: true\n", ""), None),
    ],
)
def test_mistakes_are_refused_by_name(change: tuple[str, str], message: str | None, tmp_path: Path) -> None:
    path = write(tmp_path, VALID.replace(*change))
    if message is None:
        assert not load_study(path).rerun
        return
    with pytest.raises(StudyConfigError, match=message) as caught:
        load_study(path)
    assert str(path) in str(caught.value)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "thesis.tex").write_text("years of work")
    with pytest.raises(StudyConfigError, match="holds no study"):
        open_folder(tmp_path)
    assert (tmp_path / "baseline" / "thesis.tex").exists()
    with pytest.raises(StudyConfigError, match="is a file"):
        open_folder(tmp_path / "baseline" / "thesis.tex")
    open_folder(tmp_path / "new" / "one")


class FakeLmmsEval:
    """Stands in for the process: writes the logs that it is told to, and exits 0 as lmms-eval does."""

    def __init__(self, **files: str) -> None:
        self.files = files
        self.commands: list[list[str]] = []

    def command(self, study: Study, run: StudyRun, folder: Path) -> list[str]:
        self.commands.append(REAL_COMMAND(study, run, folder))
        names = {"results": "20260101_000000_results.json", "samples": "20260101_000000_samples_shapes_vqa.jsonl"}
        files = {names[kind]: text for kind, text in self.files.items()}
        code = (
            "import json, pathlib, sys; print('Traceback: something broke');"
            f"folder = pathlib.Path({str(folder)!r}) / 'demo'; folder.mkdir();"
            f"[(folder / n).write_text(t) for n, t in json.loads({json.dumps(files)!r}).items()]"
        )
        return [sys.executable, "-c", code]


REAL_COMMAND = study_module._command
COUNTS = json.dumps({"n-samples": {"shapes_vqa": {"original": 2000, "effective": 2}}})


def study_of_one(tmp_path: Path) -> Study:
    return load_study(write(tmp_path, VALID.replace("rerun: true\n", "")))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "wrote no results"),
        ({"results": COUNTS}, "no logged samples"),
        ({"results": COUNTS, "samples": "{}\n"}, "1 logged samples of 2"),
        ({"results": COUNTS, "samples": "{}\n{"}, "1 logged samples of 2"),
    ],
)
def test_a_run_without_complete_logs_is_an_error_although_lmms_eval_exits_0(
    files: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "_command", FakeLmmsEval(**files).command)
    with pytest.raises(StudyRunError, match=f"run 'baseline' .*{message}") as caught:
        run_study(study_of_one(tmp_path), tmp_path / "out")
    assert "Traceback: something broke" in str(caught.value)


def test_complete_runs_pass_and_a_second_time_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeLmmsEval(results=COUNTS, samples="{}\n{}\n")
    monkeypatch.setattr(study_module, "_command", fake.command)
    study, out, started = study_of_one(tmp_path), tmp_path / "out", list[Any]()
    for _ in range(2):
        run_study(study, out, started.append)
    assert [run.name for run in started] == ["baseline", "pruned"] * 2
    assert len(list((out / "pruned" / "demo").iterdir())) == 2
    command = " ".join(fake.commands[1])
    assert (
        "--model llava_fastv --model_args pretrained=demo,r=0.5 --tasks shapes_vqa --batch_size 1 --limit 3" in command
    )
    assert command.endswith(f"--log_samples --output_path {out / 'pruned'}")


def test_a_process_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die = [sys.executable, "-c", "import sys; sys.exit(9)"]
    monkeypatch.setattr(study_module, "_command", lambda *_: die)
    with pytest.raises(StudyRunError, match="exit code 9"):
        run_study(study_of_one(tmp_path), tmp_path / "out")
