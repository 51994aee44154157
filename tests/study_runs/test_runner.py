"""A study run with stand-ins for lmms-eval: retried, resumed, merged into runs, compared, and never run twice."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmms_eval_stability import compare_runs
from lmms_eval_stability.cli import main
from lmms_eval_stability.commands import demo as demo_command
from lmms_eval_stability.runs import load_run
from lmms_eval_stability.study import StudyConfigError
from lmms_eval_stability.study.engines import local
from lmms_eval_stability.study.finish import missing_lines, run_folder, write_runs
from lmms_eval_stability.study.folder import only_one, open_folder
from lmms_eval_stability.study.runner import StudyResult
from lmms_eval_stability.study.schema import EngineSpec
from lmms_eval_stability.study.store import Span, Store
from lmms_eval_stability.study.worker import Job, JobTask, run_job

from .conftest import SMALL, Bench, gone

WHOLE = SMALL.replace("engine: {shard: 8}", "")


def lines(folder: Path, task: str = "gqa") -> list[dict[str, Any]]:
    path = load_run(folder).sample_files[task]
    return [json.loads(line) for line in path.read_text().splitlines()]


def merged(bench: Bench, result: StudyResult, text: str = SMALL, name: str = "merged") -> Path:
    folder = bench.folder / name
    write_runs(bench.plan(text), result, bench.store, folder)
    return folder


def test_every_shard_is_one_call_and_a_second_time_nothing_is_called(bench: Bench) -> None:
    plan = bench.plan()
    result = bench.run(plan)
    assert result.complete
    asked = [(call["model"], call.get("offset", "0"), call["limit"]) for call in bench.calls]
    parts = [("0", "8"), ("8", "8"), ("16", "4")]
    assert sorted(asked) == sorted(
        (model, *part) for model in ("llava_baseline", "llava_baseline", "llava_fastv") for part in parts
    )
    assert bench.run(plan).complete
    assert bench.said == ["all 3 cells are finished"]
    assert len(bench.calls) == 9
    # one more method: only its shards are run, and a renamed one is the same work
    grown = bench.plan(SMALL.replace("  fastv:", "  half: {method: fastv, model_args: {r: 0.25}}\n  renamed:"))
    assert bench.run(grown).complete
    assert [call["model_args"] for call in bench.calls[9:]] == ["pretrained=demo,r=0.25"] * 3


def test_shards_make_the_run_that_one_process_makes(bench: Bench) -> None:
    whole = merged(bench, bench.run(bench.plan(WHOLE)), WHOLE, "whole")
    assert len(bench.calls) == 3
    # keys are equal: the shards are made in another folder
    other = Bench(bench.folder / "other")
    other.folder.mkdir()
    shards = merged(other, other.run(other.plan()))
    for run in ("baseline", "baseline_again_1", "fastv"):
        one, two = (run_folder(folder, "demo", run) for folder in (whole, shards))
        assert lines(one) == lines(two)
        assert [line["doc_id"] for line in lines(two)] == list(range(20))
        before, after = load_run(one), load_run(two)
        assert after.task("gqa").n_samples == before.task("gqa").n_samples == 20
        assert after.task("gqa").native["exact_match"] == pytest.approx(before.task("gqa").native["exact_match"])
        assert (after.config["limit"], after.config["offset"]) == (None, 0)
        # neither the F1 of the parts nor their standard errors tell those of the whole
        assert set(before.task("gqa").native) == {"exact_match", "f1"}
        assert set(after.task("gqa").native) == {"exact_match"}
        assert after.results_file is not None
        notes = json.loads(after.results_file.read_text())["merged_from_shards"]["gqa"]
        assert notes == {
            "shards": [[0, 8], [8, 16], [16, 20]],
            "scores_left_out": ["exact_match_stderr,none", "f1,none"],
        }
    rows = [
        compare_runs(run_folder(f, "demo", "baseline"), [run_folder(f, "demo", "fastv")]).table for f in (whole, shards)
    ]
    assert rows[0].drop(columns=["label"], errors="ignore").equals(rows[1].drop(columns=["label"], errors="ignore"))
    assert rows[0]["ndr"][0] == 0.25


def test_tasks_that_share_a_process_are_stored_one_by_one(bench: Bench) -> None:
    text = WHOLE.replace("[{task: gqa, samples: 20}]", "[gqa, {task: ai2d, samples: 20}]")
    result = bench.run(bench.plan(text))
    assert [call["tasks"] for call in bench.calls] == ["gqa,ai2d"] * 3
    folder = run_folder(merged(bench, result, text), "demo", "fastv")
    assert sorted(load_run(folder).sample_files) == ["ai2d", "gqa"]
    assert [line["input"] for line in lines(folder, "ai2d")] == [f"ai2d {i}?" for i in range(20)]
    alone = bench.plan(text.replace("gqa, {task: ai2d, samples: 20}", "ai2d"))
    assert bench.run(alone).complete
    assert len(bench.calls) == 3


def test_a_task_that_fails_does_not_take_along_those_that_shared_its_process(bench: Bench) -> None:
    text = WHOLE.replace("[{task: gqa, samples: 20}]", "[ai2d, gqa]").replace("reruns: 1", "")
    bench.behave(faults={"llava_fastv:0": ["ai2d ends it"] * 9, "llava_baseline:0": ["no ai2d"]})
    result = bench.run(bench.plan(text), workers=1)
    assert {state.cell.name: state.complete for state in result.states} == {
        "demo/baseline ai2d": True,
        "demo/baseline gqa": True,
        "demo/fastv ai2d": False,
        "demo/fastv gqa": True,
    }
    asked = [(call["model"], call["tasks"]) for call in bench.calls]
    assert asked == [
        ("llava_baseline", "ai2d,gqa"),
        ("llava_fastv", "ai2d,gqa"),
        ("llava_baseline", "ai2d"),  # the log of gqa was complete
        ("llava_fastv", "ai2d"),
        ("llava_fastv", "gqa"),
    ]
    assert [failure.job.title for failure in result.failures] == ["demo/fastv ai2d"]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("kill", "killed by SIGKILL; lmms-eval wrote no results"),
        ("exit 9", "exit code 9; lmms-eval wrote no results"),
        ("no results", "lmms-eval wrote no results"),
        ("no samples", "task gqa has no logged samples"),
        ("truncate", "line 8 of the samples is no record (cut off: the line has no end)"),
        ("no newline", "the last line of the samples is cut off"),
        ("missing", "1 of 8 documents not logged: 15"),
        ("garbage", "line 9 of the samples is no record"),
        ("twice", "1 of 8 documents logged more often than others: 8"),
    ],
)
def test_a_process_without_complete_logs_is_run_again(fault: str, problem: str, bench: Bench) -> None:
    bench.behave(faults={"llava_fastv:8": [fault]})
    result = bench.run(bench.plan())
    assert result.complete
    assert not result.failures
    assert len(bench.calls) == 10
    failed = [line for line in bench.said if line.startswith("FAILED")]
    assert len(failed) == 1
    assert problem in failed[0]
    assert any(line.startswith("attempt 2: 2 of 3 cells are finished; 1 processes to run") for line in bench.said)
    folder = merged(bench, result)
    assert [line["doc_id"] for line in lines(run_folder(folder, "demo", "fastv"))] == list(range(20))


def test_what_fails_again_is_reported_and_the_others_go_on(bench: Bench) -> None:
    bench.behave(faults={"llava_fastv:8": ["truncate", "kill"], "llava_fastv:0": ["exit 9"]})
    result = bench.run(bench.plan())
    assert [state.complete for state in result.states] == [True, True, False]
    said = missing_lines(result)
    assert said[0] == "demo/fastv gqa: 12 of 20 samples are there"
    assert said[1].startswith("demo/fastv gqa [8-16]: killed by SIGKILL; lmms-eval wrote no results; its log: ")
    assert said[2] == "    this is the stand-in, kill"
    assert Path(said[1].rpartition("its log: ")[2]).read_text() == "this is the stand-in, kill\n"
    # the same plan goes on with the one shard that is missing
    bench.behave()
    assert bench.run(bench.plan()).complete
    assert [call["where"] for call in bench.calls[11:]] == ["llava_fastv:8"]


def test_a_task_that_ends_before_its_limit_is_complete_without_what_is_behind_its_end(bench: Bench) -> None:
    bench.behave(total=10)
    text = SMALL.replace("{task: gqa, samples: 20}", "gqa").replace("reruns: 1", "limit: 20")
    result = bench.run(bench.plan(text))
    assert result.complete
    assert not result.failures
    assert [state.documents for state in result.states] == [10, 10]
    assert lines(run_folder(merged(bench, result, text), "demo", "fastv"))[-1]["doc_id"] == 9


def test_another_number_of_documents_than_the_study_says_is_an_error(bench: Bench) -> None:
    bench.behave(total=24)
    result = bench.run(bench.plan())
    assert not result.complete
    assert missing_lines(result)[0] == (
        "demo/baseline gqa: task gqa has 24 documents, but the study says samples: 20; correct the number in the "
        "study's YAML"
    )


def test_a_shard_whose_files_were_damaged_is_run_again(bench: Bench) -> None:
    plan = bench.plan()
    bench.run(plan)
    folder = bench.out / "shards" / plan.cells[0].key / "8-16"
    (folder / "samples.jsonl").write_text("{}\n")
    done = bench.out / "shards" / plan.cells[2].key / "0-8" / "done.json"
    done.write_text(done.read_text()[:20])
    assert not bench.run(plan).failures
    assert sorted(call["where"] for call in bench.calls[9:]) == ["llava_baseline:8", "llava_fastv:0"]


def test_a_study_may_lie_behind_a_url(bench: Bench) -> None:
    store = Store("memory://bucket/study")
    plan = bench.plan()
    assert bench.run(plan, store=store).complete
    assert not (bench.folder / "out").exists()
    assert bench.run(plan, store=store).complete
    assert len(bench.calls) == 9
    assert sum(len(shards) for shards in store.finished().values()) == 9


def test_a_process_that_hangs_has_failed(bench: Bench) -> None:
    bench.behave(faults={"llava_fastv:8": ["hang"]})
    text = SMALL.replace("{shard: 8}", "{shard: 8, retries: 0, timeout_minutes: 0.02}")
    result = bench.run(bench.plan(text))
    assert [one.problem for one in result.failures] == ["still running after 1 s (engine.timeout_minutes)"]
    hung = next(call for call in bench.calls if "child" in call)
    assert gone(hung["pid"])
    assert gone(hung["child"])


def job(bench: Bench, **more: Any) -> Job:
    call = bench.plan().cells[0].call
    fields: dict[str, Any] = {"store": str(bench.out), "scratch": str(bench.folder / "work"), **more}
    return Job("one", "one", call, Span(0, 8), (JobTask("gqa", "k" * 16, "demo/baseline gqa"),), 8, **fields)


def test_jobs_and_outcomes_are_small_and_travel(bench: Bench) -> None:
    sent = pickle.dumps(job(bench))
    outcome = run_job(pickle.loads(sent))
    assert outcome.ok
    assert outcome.documents == 8
    back = pickle.dumps(outcome)
    assert pickle.loads(back) == outcome
    assert len(sent) + len(back) < 5000
    assert not list((bench.folder / "work").iterdir())


def test_a_place_that_cannot_be_written_is_an_outcome(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    outcome = run_job(job(bench, scratch=str(bench.folder / "file")))
    assert outcome.problem.startswith("cannot write or read: ")
    outcome = run_job(job(bench, store=str(bench.folder / "file")))
    assert outcome.problem.startswith("the logs cannot be stored: ")


def test_a_job_that_is_stopped_is_neither_done_nor_failed(bench: Bench) -> None:
    bench.behave(faults={"llava_baseline:0": ["hang"]})
    outcome = run_job(job(bench), stop=lambda: bool(bench.calls))
    assert (outcome.cancelled, outcome.ok, outcome.problem) == (True, False, "")
    assert gone(bench.calls[0]["child"])


GPUS = "GPU 0: NVIDIA X (UUID: GPU-1)\nGPU 1: NVIDIA X (UUID: GPU-2)\nGPU 2: NVIDIA X (UUID: GPU-3)\n"


@pytest.mark.parametrize(
    ("visible", "engine", "slots"),
    [
        (None, {}, ["0", "1", "2"]),
        ("2,0", {}, ["2", "0"]),
        (None, {"workers": 2}, ["0", "1"]),
        (None, {"processes": 2}, ["0,1"]),
        ("0,1,5,7", {"resources": {"gpus": 2}}, ["0,1", "5,7"]),
        (None, {"workers": 2, "resources": {"gpus": 0}}, ["", ""]),
        ("", {"workers": 2}, [None, None]),
    ],
)
def test_each_worker_has_gpus_of_its_own(
    visible: str | None,
    engine: dict[str, Any],
    slots: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, visible)
    made = local.local_engine(EngineSpec.model_validate(engine))
    assert [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in made.slots] == slots
    assert made.workers == len(slots)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"processes": 4}, "a process needs 4 GPUs, but 3 are visible"),
        ({"workers": 4}, "engine.workers is 4, but the visible GPUs are enough for 3"),
        ({"resources": {"gpus": 0.5}}, "must be a whole number"),
    ],
)
def test_more_gpus_than_there_are_is_an_error(
    engine: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, None)
    with pytest.raises(StudyConfigError, match=message):
        local.local_engine(EngineSpec.model_validate(engine))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(StudyConfigError, match="no GPU is visible here"):
        local.local_engine(EngineSpec.model_validate({"resources": {"gpus": 1}}))


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{GPUS}END\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_the_processes_see_the_gpus_of_their_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    bench.behave(sleep=0.2)
    engine = local.local_engine(EngineSpec())
    jobs = [job(bench), job(bench)]
    assert all(getattr(event, "ok", True) for event in engine.run(jobs))
    assert sorted(call["gpus"] for call in bench.calls) == ["3", "5"]


def test_data_parallel_processes_are_started_by_a_launcher(bench: Bench) -> None:
    from lmms_eval_stability.study.worker import command

    for launcher, module in (("torchrun", "torch.distributed.run"), ("accelerate", "accelerate.commands.launch")):
        plan = bench.plan(SMALL.replace("{shard: 8}", f"{{processes: 2, launcher: {launcher}}}"))
        call = plan.cells[0].call
        words = command(Job("n", "t", call, Span(4, 9), (JobTask("gqa", "k", "c"),), 5, "out"), Path("/out"))
        assert words[1:3] == ["-m", module]
        assert "2" in words[3:7]
        rest = " ".join(words[words.index("lmms_eval") - 1 :])
        assert rest == (
            "-m lmms_eval --model llava_baseline --model_args pretrained=demo --tasks gqa --batch_size 1 --offset 4"
            " --limit 5 --log_samples --output_path /out"
        )


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "thesis.tex").write_text("years of work")
    with pytest.raises(StudyConfigError, match="holds no study"):
        open_folder(tmp_path, "small")
    assert (tmp_path / "runs" / "thesis.tex").exists()
    with pytest.raises(StudyConfigError, match="is a file"):
        open_folder(tmp_path / "runs" / "thesis.tex", "small")
    open_folder(tmp_path / "new" / "one", "small")
    open_folder(tmp_path / "new" / "one", "small")
    with pytest.raises(StudyConfigError, match="holds the study 'small', not 'large'"):
        open_folder(tmp_path / "new" / "one", "large")


def test_a_second_process_of_a_study_is_kept_out(tmp_path: Path) -> None:
    with only_one(tmp_path):
        second = pytest.raises(StudyConfigError, match="another process runs this study")
        with second, only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass


def test_the_command_runs_compares_and_says_what_is_missing(bench: Bench) -> None:
    bench.behave(faults={"llava_fastv:8": ["truncate"] * 4})  # two attempts of two methods
    path = bench.write(SMALL.replace("fastv:", "half: {method: fastv, model_args: {r: 0.25}}\n  fastv:"))
    arguments = ["study", str(path), "-o", str(bench.out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1, done.output
    assert "not complete; the same command runs what is missing:\n  demo/half gqa: 12 of 20 samples" in done.stderr
    assert "error: demo was not compared: no run has a complete task in common" in done.stderr
    bench.behave()
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert "llava_fastv (k=3, r=0.5) against llava_baseline" in again.stdout
    assert "re-run of the baseline: DR 0.0" in again.stdout
    assert (bench.out / "report" / "demo" / "summary.json").is_file()
    assert not (bench.out / "work").exists()
    plan = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert "4 finished, 0 to do in 0 processes" in plan.stdout
    # nothing is left to do: the comparison is made again, and no process
    calls = len(bench.calls)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert len(bench.calls) == calls


def test_the_command_compares_what_is_complete(bench: Bench) -> None:
    bench.behave(faults={"llava_fastv:0": ["kill"] * 9})
    text = SMALL.replace("  fastv:", "  random: {method: random}\n  fastv:")
    done = CliRunner().invoke(main, ["study", str(bench.write(text)), "-o", str(bench.out)])
    assert done.exit_code == 1
    assert "llava_random" in done.stdout
    assert "llava_fastv" not in done.stdout
    assert "demo/fastv gqa: 12 of 20 samples are there" in done.stderr
    assert "demo/fastv gqa [0-8]: killed by SIGKILL" in done.stderr


def test_without_a_baseline_nothing_is_compared_and_that_is_said(bench: Bench) -> None:
    bench.behave(faults={"llava_baseline:0": ["kill"] * 9})
    done = CliRunner().invoke(main, ["study", str(bench.write()), "-o", str(bench.out)])
    assert done.exit_code == 1
    assert "error: demo was not compared: no task of the baseline is complete" in done.stderr


def test_a_study_behind_a_url_has_its_runs_and_report_there(bench: Bench) -> None:
    url = f"file://{bench.folder}/remote"
    arguments = ["study", str(bench.write()), "-o", url, "--local", str(bench.folder / "near")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    far = bench.folder / "remote"
    assert load_run(far / "runs" / "demo" / "fastv").sample_files
    assert (far / "report" / "demo" / "summary.json").is_file()
    assert len(list(far.glob("shards/*/*/done.json"))) == 9
    assert not (bench.folder / "near" / "shards").exists()
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert len(bench.calls) == 9


def test_the_demo_runs_its_study_anew_every_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_command, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    bench.behave(total=2000)
    for times in (1, 2):
        done = CliRunner().invoke(main, ["demo", "-o", str(bench.out), "--limit", "4"])
        assert done.exit_code == 0, done.output
        assert "not run: int8, nf4; to run them: pip install 'lmms-eval-stability[int8]'" in done.stderr
        assert "k=3, r=0.75) against llava_baseline" in done.stdout
        assert len(bench.calls) == 14 * times  # all but int8 and nf4
        assert {(call["limit"], call["batch_size"]) for call in bench.calls} == {("4", "8")}
    assert (bench.out / "report" / "report.html").is_file()
    (bench.folder / "mine").mkdir()
    (bench.folder / "mine" / "thesis.tex").write_text("years of work")
    refused = CliRunner().invoke(main, ["demo", "-o", str(bench.folder / "mine")])
    assert refused.exit_code == 2
    assert "holds no study" in refused.stderr
    assert (bench.folder / "mine" / "thesis.tex").exists()
