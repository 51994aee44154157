"""Logs that lm-evaluation-harness 0.4.13 really wrote (tests/golden/lm_eval_harness), and older and broken ones."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lmms_eval_stability import compare, load_run
from lmms_eval_stability.log_lines import rows_of

LOGS = Path(__file__).parents[1] / "golden" / "lm_eval_harness"
GEN, CHOICE = "tiny_gen", "tiny_choice"
STRICT, FLEXIBLE = f"{GEN},strict-match", f"{GEN},flexible-extract"


def logged(model: str, task: str) -> list[dict[str, Any]]:
    (path,) = (LOGS / model).glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LOGS, tmp_path / "logs"))


def samples_file(folder: Path, task: str) -> Path:
    (path,) = folder.glob(f"samples_{task}_*.jsonl")
    return path


def test_a_run_of_the_harness() -> None:
    run = load_run(LOGS / "m0")
    assert set(run.sample_files) == {CHOICE, STRICT, FLEXIBLE}
    assert (run.model, run.model_args["pretrained"], run.run_id) == ("hf", "m0", "2026-11-20T20-17-56.478007")
    assert run.task(STRICT).metrics == ("exact_match",)
    assert run.task(STRICT).filters == ("strict-match",)
    assert run.task(CHOICE).native == {"acc": pytest.approx(1 / 3), "acc_norm": pytest.approx(1 / 3)}
    assert run.facts["versions"]["lm-eval"] == "0.4.13"
    assert load_run(f"{LOGS / 'm0'}@2026-11-20").run_id == run.run_id
    assert load_run(run.results_file or "").run_id == run.run_id


@pytest.mark.parametrize("task", [STRICT, FLEXIBLE])
def test_a_task_for_each_filter_of_a_file(task: str) -> None:
    wanted = [row for row in logged("m0", GEN) if row["filter"] == task.partition(",")[2]]
    frame = load_run(LOGS / "m0").samples(task).frame
    assert frame["doc_id"].tolist() == [row["doc_id"] for row in wanted] == list(range(6))
    assert frame["response"].tolist() == [row["filtered_resps"][0] for row in wanted]
    assert frame["score"].tolist() == [row["exact_match"] for row in wanted]
    assert frame["input"][0] == "Question: What colour is the sky ? Answer:"
    assert frame["target"].tolist() == ["blue", "green", "red", "red", "blue", "green"]


def test_the_likeliest_choice_is_the_prediction() -> None:
    """lmms-eval's models log losses, the harness log-likelihoods."""
    found = compare(LOGS / "m0", LOGS / "m1", tasks=[CHOICE])
    for side, model in (("baseline", "m0"), ("run", "m1")):
        rows = logged(model, CHOICE)
        numbers = [[float(number) for number, _ in row["filtered_resps"]] for row in rows]
        best = [one.index(max(one)) for one in numbers]
        assert found.pairs[f"prediction_{side}"].tolist() == [f"choice {place + 1}" for place in best]
        # which is what the harness takes for its accuracy
        right = [float(place == int(row["target"])) for place, row in zip(best, rows, strict=True)]
        assert found.pairs[f"score_{side}"].tolist() == [row["acc"] for row in rows] == right


def test_compare_on_the_command_line(run_compare: Callable[..., Result], tmp_path: Path) -> None:
    result = run_compare(LOGS / "m0", LOGS / "m1", "--format", "json", "-o", tmp_path / "report", "--html")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    rows = {row["task"]: row for row in summary["comparisons"]}
    before, after = ([row for row in logged(m, GEN) if row["filter"] == "strict-match"] for m in ("m0", "m1"))
    differ = sum(a["filtered_resps"] != b["filtered_resps"] for a, b in zip(before, after, strict=True))
    worse = sum(a["exact_match"] > b["exact_match"] for a, b in zip(before, after, strict=True))
    assert 0 < differ < 6
    assert rows[STRICT]["dr"] == differ / 6
    assert rows[STRICT]["ndr"] == worse / 6 > 0
    assert rows[STRICT]["score_source"] == "results"
    assert summary["runs"][0]["warnings"] == []
    assert summary["runs"][0]["confounders"] == []
    board = json.loads((tmp_path / "report" / "leaderboard_hf_pretrained=m1.json").read_text())
    assert board["results"][STRICT]["dr,none"] == differ / 6
    assert '"[invalid]"' in (tmp_path / "report" / "report.html").read_text()


def test_one_filter_alone(run_compare: Callable[..., Result]) -> None:
    result = run_compare(LOGS / "m0", LOGS / "m1", "--task", STRICT, "--format", "json")
    assert [row["task"] for row in json.loads(result.stdout)["comparisons"]] == [STRICT]
    refused = run_compare(LOGS / "m0", LOGS / "m1", "--task", GEN)
    assert refused.exit_code == 2
    assert STRICT in refused.stderr
    assert FLEXIBLE in refused.stderr


def test_raw_answers_are_those_before_the_filter() -> None:
    found = compare(LOGS / "m0", LOGS / "m1", tasks=[STRICT], prediction="raw")
    rows = [row for row in logged("m0", GEN) if row["filter"] == "strict-match"]
    assert found.pairs["prediction_baseline"].tolist() == [row["resps"][0][0] for row in rows]


def test_other_prompts_and_other_versions_are_seen(copies: Path, run_compare: Callable[..., Result]) -> None:
    path = samples_file(copies / "m1", CHOICE)
    path.write_text(path.read_text().replace('" blue"', '" navy"'))
    (results,) = (copies / "m1").glob("results_*.json")
    results.write_text(results.read_text().replace('"lm_eval_version": "0.4.13"', '"lm_eval_version": "0.4.9"'))
    refused = run_compare(copies / "m0", copies / "m1")
    assert refused.exit_code == 2
    assert "prompts differ" in refused.stderr
    accepted = run_compare(copies / "m0", copies / "m1", "--accept", "input")
    assert "versions.lm-eval 0.4.13 against 0.4.9" in " ".join(accepted.stdout.split())


def test_bad_lines_count_for_every_filter(copies: Path, run_compare: Callable[..., Result]) -> None:
    path = samples_file(copies / "m1", GEN)
    path.write_text(path.read_text()[:-20])
    refused = run_compare(copies / "m0", copies / "m1")
    assert refused.exit_code == 2
    assert "line 12: cut off" in refused.stderr
    assert refused.stderr.count("line 12") == 2


def test_lines_without_a_filter_and_requests_as_lists(copies: Path) -> None:
    """As older versions wrote them."""
    for model in ("m0", "m1"):
        path = samples_file(copies / model, GEN)
        rows = [row for row in logged(model, GEN) if row.pop("filter") == "strict-match"]
        for row in rows:
            row["arguments"] = [list(one.values()) for one in row["arguments"].values()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(copies / "m0", copies / "m1", tasks=[GEN])
    assert len(found.pairs) == 6
    assert "What colour" in load_run(copies / "m0").samples(GEN).frame["input"][0]


def test_without_a_results_json(copies: Path) -> None:
    for path in copies.glob("*/results_*.json"):
        path.unlink()
    found = compare(copies / "m0", copies / "m1", accept=["results"], tasks=[STRICT])
    assert found.table["n"].tolist() == [6]


def test_a_log_travels_to_another_process_with_its_filter() -> None:
    path = load_run(LOGS / "m0").sample_files[FLEXIBLE]
    assert list(rows_of(pickle.loads(pickle.dumps(path)))) == list(rows_of(path))


@pytest.mark.parametrize("arguments", [None, 3, [], {}, [None], {"gen_args_0": {}}, {"gen_args_0": {"arg_0": 1}}])
def test_requests_of_an_unknown_kind_are_compared_as_json(copies: Path, arguments: Any) -> None:
    rows = [{**row, "arguments": arguments} for row in logged("m0", GEN)]
    samples_file(copies / "m0", GEN).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_run(copies / "m0").samples(STRICT).frame) == 6
