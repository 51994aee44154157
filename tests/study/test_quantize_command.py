"""`quantize` without llm-compressor: everything that is refused before a model is loaded, and what is recorded."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from lmms_eval_stability.cli import main
from lmms_eval_stability.commands import quantize as command
from lmms_eval_stability.model_wrappers.quantization.make import output
from lmms_eval_stability.model_wrappers.quantization.make.calibration import Choice, read_file
from lmms_eval_stability.model_wrappers.quantization.make.errors import CalibrationError, GroupSizeError


@pytest.fixture(autouse=True)
def _without_llm_compressor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)


def write_questions(folder: Path, *lines: object) -> Path:
    """Write a calibration file, and the picture `a.png` that its lines may name."""
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    path = folder / "questions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


GOOD = {"image": "a.png", "question": "What color is it?"}


def run(folder: Path, calibration: object, *more: str) -> Result:
    arguments = ["--model", "demo", "--method", "gptq", "--calibration", str(calibration), "-o", str(folder / "out")]
    return CliRunner().invoke(main, ["quantize", *arguments, *more])


def test_without_llm_compressor_the_error_says_what_to_install(tmp_path: Path) -> None:
    result = run(tmp_path, write_questions(tmp_path, GOOD))
    assert result.exit_code == 2
    assert "pip install 'lmms-eval-stability[quantize]'" in result.output
    assert ("Python 3.11" in result.output) == (sys.version_info < (3, 11))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object"),
        ({"image": "a.png"}, "'question' must be a text"),
        ({"image": "a.png", "question": "  "}, "'question' must be a text"),
        ({"image": 3, "question": "What?"}, "'image' must be a text"),
        ({"image": "b.png", "question": "What?"}, "there is no image"),
        ({"image": "questions.jsonl", "question": "What?"}, "cannot be read"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: object, problem: str) -> None:
    path = write_questions(tmp_path, GOOD, "", line)
    result = run(tmp_path, path)
    assert result.exit_code == 2
    assert f"{path}, line 3" in result.output
    assert problem in result.output


def test_files_that_are_no_calibration_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, problem in (
        (tmp_path / "missing.jsonl", "cannot be read"),
        (binary, "is not UTF-8"),
        (write_questions(tmp_path, ""), "holds no lines"),
    ):
        result = run(tmp_path, path)
        assert result.exit_code == 2
        assert str(path) in result.output
        assert problem in result.output


def test_skip_is_for_tasks(tmp_path: Path) -> None:
    result = run(tmp_path, write_questions(tmp_path, GOOD), "--skip", "1")
    assert result.exit_code == 2
    assert "--skip is for tasks" in result.output


@pytest.mark.parametrize(
    "arguments", [["--method", "rtn"], ["--bits", "2"], ["--group-size", "4"], ["--samples", "0"], ["--dtype", "int8"]]
)
def test_values_that_do_not_exist_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    result = run(tmp_path, write_questions(tmp_path, GOOD), *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output


@pytest.mark.parametrize("held", ["notes.txt", output.RECIPE])
def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, held: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / held).write_text("{}")
    result = run(tmp_path, write_questions(tmp_path, GOOD))
    assert result.exit_code == 2
    assert ("--overwrite" in result.output) == (held == output.RECIPE)
    again = run(tmp_path, write_questions(tmp_path, GOOD), "--overwrite")
    assert ("not written by this command" in again.output) == (held == "notes.txt")
    assert (tmp_path / "out" / held).read_text() == "{}"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = run(tmp_path, write_questions(tmp_path, GOOD))
    assert result.exit_code == 2
    assert "is a file" in result.output
    assert (tmp_path / "out").read_text() == "mine"


def _interrupted(target: Path) -> None:
    with output.new_folder(target, overwrite=False) as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt


def _raced(target: Path) -> None:
    with output.new_folder(target, overwrite=False):
        target.mkdir()
        (target / "mine").write_text("mine")


def test_a_new_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt):
        _interrupted(target)
    assert list(target.parent.iterdir()) == []
    with output.new_folder(target, overwrite=False) as folder:
        (folder / output.RECIPE).write_text("1")
        assert not target.exists()
    with output.new_folder(target, overwrite=True) as folder:
        (folder / output.RECIPE).write_text("2")
        assert (target / output.RECIPE).read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert (target / output.RECIPE).read_text() == "2"


def test_a_folder_that_was_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(output.OutputFolderError, match="not written by this command"):
        _raced(target)
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_which_lines_are_chosen_depends_on_seed_and_text_alone(tmp_path: Path) -> None:
    lines = [{"image": "a.png", "question": f"Question {i}?"} for i in range(40)]

    def chosen(questions: list[dict[str, str]], samples: int, seed: int = 0) -> set[str]:
        path = write_questions(tmp_path, *questions)
        found = read_file(path, Choice(samples, seed))
        assert found.available == len(questions)
        assert [path.read_text().splitlines()[number - 1] for number in found.ids] == [
            json.dumps({"image": question.name, "question": question.question}) for _, question in found.documents
        ]
        return {question.question for _, question in found.documents}

    ten = chosen(lines, 10)
    assert len(ten) == 10
    assert ten == chosen(lines[::-1], 10)
    assert ten < chosen(lines, 20)
    assert ten != chosen(lines, 10, seed=1)
    assert len(chosen(lines, 128)) == 40


def test_a_choice_of_documents_is_pinned() -> None:
    assert Choice(5).of("shapes_vqa\x1ftest", [str(i) for i in range(100)]) == [17, 20, 30, 42, 46]


def test_an_unreadable_picture_is_named_also_when_it_is_only_chosen(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    path = write_questions(tmp_path, GOOD, {"image": "b.png", "question": "What?"})
    with pytest.raises(CalibrationError, match=r"line 2: .*b\.png cannot be read"):
        read_file(path, Choice())


def test_the_recorded_command_gives_the_same_options_again(tmp_path: Path) -> None:
    arguments = ["--model", "a b", "--method", "awq", "--group-size", "32", "--calibration", "gqa", "--samples", "7"]
    arguments += ["--skip", "3", "--seed", "5", "--dtype", "bfloat16", "--store-dtype", "float16"]
    arguments += ["--revision", "v1", "--output", "o p", "--overwrite"]
    first = command.quantize.make_context("quantize", arguments).params
    program, name, *words = shlex.split(command._command(first))
    assert (program, name) == ("lmms-eval-stability", "quantize")
    again = command.quantize.make_context("quantize", words).params
    assert again == {**first, "overwrite": False}


def test_bad_input_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    path = write_questions(tmp_path, "{")
    code = (
        "import sys; from click.testing import CliRunner; from lmms_eval_stability.cli import main;"
        "r = CliRunner().invoke(main, ['quantize', '--model', 'demo', '--method', 'gptq', '--calibration',"
        f" {str(path)!r}, '-o', {str(tmp_path / 'out')!r}]); assert 'line 1' in r.output, r.output;"
        "print([m for m in ('torch', 'transformers', 'lmms_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_group_size_that_does_not_fit_is_refused_with_those_that_do() -> None:
    from torch import nn

    from lmms_eval_stability.model_wrappers.quantization.make.recipe import Recipe
    from lmms_eval_stability.model_wrappers.quantization.module_names import ModuleNames

    model = nn.ModuleDict({"lm": nn.ModuleDict({"a": nn.Linear(96, 1), "b": nn.Linear(64, 1)}), "eye": nn.Linear(5, 1)})
    names = ModuleNames(("lm.a", "lm.b", "eye"), "lm", ("eye",), "eye")
    Recipe("gptq", group_size=32).check(model, names)
    with pytest.raises(GroupSizeError, match=r"1 of 2 layers \(lm\.a: 96\); use --group-size 32 or 16 or 8"):
        Recipe("gptq", group_size=64).check(model, names)
