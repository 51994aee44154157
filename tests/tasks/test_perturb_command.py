"""`lmms-eval-stability perturb`, called as a user would."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lmms_eval import tasks as lmms_eval_tasks
from PIL import Image

from lmms_eval_stability import plugin
from lmms_eval_stability.cli import main
from lmms_eval_stability.tasks.perturbations.cache import FOLDER_VARIABLE
from lmms_eval_stability.tasks.perturbations.image import METHODS as IMAGE_METHODS
from lmms_eval_stability.tasks.perturbations.image import perturb_image
from lmms_eval_stability.tasks.perturbations.text import METHODS as TEXT_METHODS
from lmms_eval_stability.tasks.perturbations.text import perturb_text
from tests.model_wrappers.documents import draw

plugin.wrap_task_manager(lmms_eval_tasks)
TASK = "shapes_vqa_image_perturbed"


def perturb(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["perturb", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")


def test_preview_shows_every_severity(tmp_path: Path) -> None:
    draw(1, (60, 40)).save(tmp_path / "in.png")
    done = perturb(
        "preview", tmp_path / "in.png", "-o", tmp_path / "grid.png", "--cell", 60, "--methods", "fog,contrast"
    )
    assert done.exit_code == 0, done.output
    grid = Image.open(tmp_path / "grid.png").convert("RGB")
    left, top, gap = 150, 26, 6
    for row, method in enumerate(("fog", "contrast")):
        for severity in range(6):
            x, y = left + severity * (60 + gap), top + row * (40 + gap)
            shown = grid.crop((x, y, x + 60, y + 40))
            source = draw(1, (60, 40))
            expected = source if severity == 0 else perturb_image(source, method, severity, seed=0)
            assert shown.tobytes() == expected.tobytes(), (method, severity)


def test_preview_of_all_methods(tmp_path: Path) -> None:
    draw(1, (40, 60)).convert("L").save(tmp_path / "in.png")
    done = perturb("preview", tmp_path / "in.png", "-o", tmp_path / "grid.png", "--cell", 32)
    assert done.exit_code == 0, done.output
    assert Image.open(tmp_path / "grid.png").height == 26 + 20 * (48 + 6)


def test_text_says_what_each_method_makes_of_a_question() -> None:
    question = "How many dogs are left of the red car?"
    done = perturb("text", question, "--severity", 2, "--format", "json", "--seed", 3)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert [row["method"] for row in rows] == list(TEXT_METHODS)
    for row in rows:
        if row["missing"] is None:
            severity = min(2, TEXT_METHODS[row["method"]].severities)
            assert row["severity"] == severity
            assert row["output"] == perturb_text(question, row["method"], severity, seed=3)
            assert row["changed"] == (row["output"] != question)
        else:
            assert "LMMS_EVAL_STABILITY_TEXT_" in row["missing"]
    assert sum(row["missing"] is None for row in rows) >= 28
    assert "shuffle_order" in perturb("text", question).output


def test_resources_counts_what_is_there() -> None:
    done = perturb("resources")
    assert done.exit_code == 0
    assert "of 87 levels can be made here" in done.output


def test_a_plan_takes_no_images(tmp_path: Path) -> None:
    file = tmp_path / "plan.jsonl"
    assert perturb("manifest", "--task", TASK, "-o", file, "--plan-only").exit_code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2000
    assert {line["method"] for line in lines} == set(IMAGE_METHODS)
    assert {line["changed"] for line in lines} == {None}
    done = perturb("manifest", "--task", TASK, "-o", file)
    assert (done.exit_code, "written with --plan-only" in done.output) == (2, True)


def test_a_manifest_is_not_written_into_another_file(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes\n")
    done = perturb("manifest", "--task", TASK, "-o", file, "--limit", 2)
    assert done.exit_code == 2
    assert "line 1, is not of a manifest" in done.output
    assert file.read_text() == "my notes\n"


def test_materialised_images_are_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for _ in range(2):  # the second time they are there
        done = perturb("materialise", "--task", TASK, "-o", folder, "--limit", 6)
        assert done.exit_code == 0, done.output
        assert "images of 6 samples" in done.output
        files = sorted(folder.rglob("*.png"))
        assert len(files) == 6
    done = perturb("materialise", "--task", "shapes_vqa_text_perturbed", "-o", folder)
    assert (done.exit_code, "only images are stored" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("preview", "IMAGE", "-o", "x.png", "--methods", "mist"), "no image perturbation 'mist'"),
        (("preview", "TEXT", "-o", "x.png"), "not an image"),
        (("preview", "IMAGE", "-o", "no/such/folder/x.png", "--methods", "fog"), "cannot write"),
        (("manifest", "--task", "nothing", "-o", "m.jsonl"), "no task 'nothing'"),
        (("manifest", "--task", "shapes_vqa", "-o", "m.jsonl"), "is not one perturbed task"),
        (("manifest", "--task", TASK, "-o", "no/such/folder/m.jsonl"), "cannot write"),
        (("precompute", "--task", TASK, "-o", "t.jsonl"), "a table is for questions"),
    ],
)
def test_errors_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(1).save("image.png")
    Path("text.png").write_text("no image")
    named = {"IMAGE": "image.png", "TEXT": "text.png"}
    done = perturb(*[named.get(argument, argument) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ")
    assert reason in done.output


def test_the_command_imports_nothing_heavy_for_its_help() -> None:
    import subprocess

    code = (
        "import sys; from click.testing import CliRunner; from lmms_eval_stability.cli import main;"
        "assert CliRunner().invoke(main, ['perturb', 'manifest', '--help']).exit_code == 0;"
        "print([m for m in ('torch', 'lmms_eval', 'cv2', 'spacy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
