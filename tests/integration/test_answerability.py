"""`vizwiz_vqa_val_answerability` in lmms-eval, on the stand-in of its data: one question of six is unanswerable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.running import TIMEOUT, compared, run_lmms_eval

pytestmark = pytest.mark.timeout(TIMEOUT)
TASK, OWN = "vizwiz_vqa_val_answerability", "vizwiz_vqa_val"


def test_it_is_lmms_evals_task_with_a_log_that_names_the_parts(hub: Path, tmp_path: Path) -> None:
    commands = {
        f"seed_{seed}": ["--model", "scripted", "--model_args", f"seed={seed}", "--tasks", f"{TASK},{OWN}"]
        for seed in (0, 1)
    }
    outputs = run_lmms_eval(commands, hub, tmp_path)
    ours, theirs = (outputs["seed_0"].lines(task) for task in (TASK, OWN))
    assert [ours[i]["input"] for i in range(6)] == [theirs[i]["input"] for i in range(6)]
    # what lmms-eval's own log says of the answers: nothing
    assert {line["target"] for line in theirs.values()} == {"answer"}
    assert ours[5]["target"] == "unanswerable"
    found = compared(tmp_path / "report", outputs["seed_0"].folder, outputs["seed_1"].folder)
    assert found.categories(0, TASK, "answerability") == {"answerable": 5, "unanswerable": 1}
    assert found.categories(0, OWN, "answerability") == {}
    row = found.records(0)[TASK]
    assert (row["adapter"], row["metric"]) == ("soft VQA score", "exact_match")
    assert row["score_baseline"] == pytest.approx(outputs["seed_0"].native(TASK))
