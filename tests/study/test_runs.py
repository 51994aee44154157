from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmms_eval_stability.confounders import confounders, labels
from lmms_eval_stability.errors import RunFormatError, RunNotFoundError
from lmms_eval_stability.runs import load_run, parse_model_args

from .conftest import BASE, STAMP, WriteRun, samples_file


def test_a_run_says_what_was_run(base: Path) -> None:
    run = load_run(base)
    assert run.model == "llava_baseline"
    assert run.model_args == {"pretrained": "demo"}
    assert run.run_id == STAMP
    assert run.lmms_eval_version == "0.7.3"
    assert list(run.sample_files) == ["gqa"]
    info = run.task("gqa")
    assert info.version == "0.0"
    assert info.metrics == ("exact_match",)
    assert info.native == {"exact_match": 0.6}
    assert info.filters == ("none",)


def test_the_same_run_by_its_folder_its_parent_and_its_results_file(base: Path) -> None:
    home = base / "demo"
    found = [load_run(path) for path in (base, home, home / f"{STAMP}_results.json", f"{base}@{STAMP}", f"{base}@2025")]
    assert {(run.folder, run.run_id) for run in found} == {(home, STAMP)}


def test_the_newest_run_counts_and_the_others_are_known(write_run: WriteRun) -> None:
    old, new = "20251119_090000", "20251120_090000"
    folder = write_run("runs", {"gqa": BASE}, stamp=new, model="new")
    write_run("runs", {"gqa": BASE}, stamp=old, model="old")
    run = load_run(folder)
    assert (run.run_id, run.model, run.other_run_ids) == (new, "new", (old,))
    assert load_run(f"{folder}@20251119").model == "old"


def test_a_timestamp_that_fits_none_or_several_is_refused(write_run: WriteRun) -> None:
    folder = write_run("runs", {"gqa": BASE}, stamp="20251119_090000")
    write_run("runs", {"gqa": BASE}, stamp="20251119_100000")
    with pytest.raises(RunNotFoundError, match="fits several runs: 20251119_090000, 20251119_100000"):
        load_run(f"{folder}@20251119")
    with pytest.raises(RunNotFoundError, match="no run 2024 here; there are 20251119_090000"):
        load_run(f"{folder}@2024")


def test_an_at_sign_in_a_folder_name_is_no_timestamp(write_run: WriteRun) -> None:
    assert load_run(write_run("llava@fp16", {"gqa": BASE})).run_id == STAMP


def test_what_a_task_writes_for_a_benchmarks_server_is_no_run(base: Path) -> None:
    submissions = base / "submissions"
    submissions.mkdir()
    (submissions / "mmbench_en_dev_results.json").write_text('{"overall_acc": 0.5}')
    (submissions / "mmbench_en_dev_results.xlsx").touch()
    assert load_run(base).folder == base / "demo"
    with pytest.raises(RunNotFoundError, match="no lmms-eval output here"):
        load_run(submissions)


def test_folder_of_two_models_names_both(write_run: WriteRun) -> None:
    folder = write_run("runs", {"gqa": BASE}, home="llava")
    write_run("runs", {"gqa": BASE}, home="qwen")
    with pytest.raises(RunNotFoundError, match=r"2 folders; name one of: .*llava, .*qwen"):
        load_run(folder)
    assert load_run(folder / "qwen").folder.name == "qwen"


def test_a_run_without_samples_names_the_option(base: Path) -> None:
    samples_file(base).unlink()
    with pytest.raises(RunNotFoundError, match="has no samples: run lmms-eval with --log_samples"):
        load_run(base)


def test_the_newest_run_is_never_replaced_by_an_older_one_with_samples(write_run: WriteRun) -> None:
    folder = write_run("runs", {"gqa": BASE}, stamp="20251119_090000")
    write_run("runs", {}, stamp="20251120_090000")
    with pytest.raises(RunNotFoundError, match=r"run 20251120_090000 has no samples.*@20251119_090000 has samples"):
        load_run(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("", "was the run interrupted"), ("[1]", "no object"), ('{"a": 1', "not a results JSON")]
)
def test_a_broken_results_file_is_named(base: Path, text: str, message: str) -> None:
    (base / "demo" / f"{STAMP}_results.json").write_text(text)
    with pytest.raises(RunFormatError, match=f"{STAMP}_results.json: .*{message}"):
        load_run(base)


def test_a_broken_results_file_can_be_left_out(base: Path) -> None:
    (base / "demo" / f"{STAMP}_results.json").write_text("")
    run = load_run(base, broken_results=True)
    assert (run.results_file, run.model) == (None, "")
    assert "was the run interrupted" in run.results_error


def test_folders_behind_links_are_found_once(write_run: WriteRun, tmp_path: Path) -> None:
    home = write_run("elsewhere", {"gqa": BASE}) / "demo"
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(home)
    (run / "model" / "loop").symlink_to(run)
    assert load_run(run).folder == run / "model"


def test_nan_in_the_results_file_is_read(base: Path) -> None:
    path = base / "demo" / f"{STAMP}_results.json"
    path.write_text(json.dumps({"results": {"gqa": {"exact_match,none": float("nan"), "exact_match_stderr,none": 1}}}))
    assert list(load_run(base).task("gqa").native) == ["exact_match"]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("pretrained=a/b,k=3,r=0.5", {"pretrained": "a/b", "k": "3", "r": "0.5"}),
        ("layers=8,16,24,name=x", {"layers": "8,16,24", "name": "x"}),
        ({"k": 3}, {"k": "3"}),
        (None, {}),
        ("", {}),
        ("url=http://h/?a=b", {"url": "http://h/?a=b"}),
    ],
)
def test_model_args(text: object, parsed: dict[str, str]) -> None:
    assert parse_model_args(text) == parsed


def test_labels_name_what_differs(write_run: WriteRun) -> None:
    paths = [
        write_run("base", {"gqa": BASE}, args="pretrained=demo,dtype=float32"),
        write_run("f3", {"gqa": BASE}, model="llava_fastv", args="pretrained=demo,k=3,dtype=float32"),
        write_run("f9", {"gqa": BASE}, model="llava_fastv", args="pretrained=demo,k=9,dtype=float16"),
    ]
    assert labels([load_run(p) for p in paths]) == ["llava_baseline", "llava_fastv (k=3)", "llava_fastv (k=9)"]


def test_labels_show_default_arguments_of_a_method_that_logs_them(write_run: WriteRun) -> None:
    facts = {"method": "fastv", "method_args": {"k": 3, "r": 0.5}}
    rows = [{**BASE[0], "token_counts": [{"run": facts}]}, *BASE[1:]]
    base = load_run(write_run("base", {"gqa": BASE}))
    fastv = load_run(write_run("fastv", {"gqa": rows}, model="llava_fastv", args="pretrained=demo,r=0.5"))
    assert fastv.facts == facts
    assert labels([base, fastv]) == ["llava_baseline", "llava_fastv (k=3, r=0.5)"]


def test_what_a_run_wrote_about_itself_is_found_in_any_line(write_run: WriteRun) -> None:
    """Batches and processes write their answers in any order; an answer that talks of a "run" is no fact."""
    facts = {"method_args": {"k": 3}}
    late = {**BASE[3], "token_counts": [{"output_tokens": 1, "run": facts}]}
    rows = [{**BASE[0], "filtered_resps": "run"}, {**BASE[1], "run": {"k": 9}}, BASE[2], late]
    assert load_run(write_run("late", {"aaa": BASE, "gqa": rows})).facts == facts


def test_equal_labels_get_the_folder_then_the_timestamp(write_run: WriteRun) -> None:
    a, b = write_run("one", {"gqa": BASE}), write_run("two", {"gqa": BASE})
    assert labels([load_run(a), load_run(b)]) == ["llava_baseline [one]", "llava_baseline [two]"]
    write_run("one", {"gqa": BASE}, stamp="20251121_000000")
    both = [load_run(f"{a}@{STAMP}"), load_run(f"{a}@20251121")]
    assert len(set(labels(both))) == 2


def test_confounders_are_all_settings_that_differ(write_run: WriteRun) -> None:
    config = {"model": "m", "model_args": "dtype=float16", "batch_size": "8", "limit": 50, "gen_kwargs": ""}
    a = load_run(write_run("a", {"gqa": BASE}, args="dtype=float32"))
    b = load_run(write_run("b", {"gqa": BASE}, config=config, lmms_eval_version="0.7.4"))
    facts = ({"versions": {"torch": "2.6"}, "kernel": "sdpa"}, {"versions": {"torch": "2.7"}, "method": {"k": 3}})
    found = {c.name: (c.baseline, c.run) for c in confounders(a, b, facts, ("gqa",))}
    assert found == {
        "versions.torch": ("2.6", "2.7"),
        "batch_size": ("1", "8"),
        "limit": ("None", "50"),
        "dtype": ("float32", "float16"),
        "versions.lmms-eval": ("0.7.3", "0.7.4"),
    }


def test_what_a_run_did_counts_before_what_was_asked_for(write_run: WriteRun) -> None:
    a = load_run(write_run("a", {"gqa": BASE}, args="dtype=auto"))
    b = load_run(write_run("b", {"gqa": BASE}, args="dtype=float16"))
    assert [c.name for c in confounders(a, b)] == ["dtype"]
    assert confounders(a, b, ({"dtype": "float16"}, {"dtype": "float16"})) == ()
    assert [c.name for c in confounders(a, b, ({"dtype": "float16"}, {}))] == ["dtype"]


def test_the_commit_of_the_working_directory_is_no_version_of_lmms_eval(write_run: WriteRun) -> None:
    """lmms-eval 0.7.3 writes `branch@commit` of wherever it was started; our models log the installed version."""
    a, b = (load_run(write_run(name, {"gqa": BASE}, lmms_eval_version=f"main@{name}")) for name in ("a1", "b2"))
    assert [str(c) for c in confounders(a, b)] == ["git revision main@a1 against main@b2"]
    assert "git revision" not in [c.name for c in confounders(a, b, ({"versions": {"lmms-eval": "0.7.3"}}, {}))]
    facts = {"versions": {"lmms-eval": "0.7.3"}}
    assert confounders(a, b, (facts, facts)) == ()


def test_backend_is_the_code_path_and_ours_is_one(write_run: WriteRun) -> None:
    def run(name: str, backend: str) -> object:
        return load_run(write_run(name, {"gqa": BASE}, config={"model_backend": backend}))

    ours = run("a", "lmms_eval_stability.model_wrappers.llava.Baseline (chat)")
    fastv = run("b", "lmms_eval_stability.model_wrappers.llava.FastV (chat)")
    theirs = run("c", "lmms_eval.models.chat.llava_hf.LlavaHf (chat)")
    simple = run("d", "lmms_eval.models.simple.llava_hf.LlavaHf (simple)")
    assert confounders(ours, fastv) == ()
    assert [c.name for c in confounders(ours, theirs)] == ["backend"]
    assert [c.name for c in confounders(theirs, simple)] == ["backend"]
