"""`show-tokens` end to end on the embedded model, its drawing, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageFile

from lmms_eval_stability.cli import main
from lmms_eval_stability.commands.show_tokens import MethodSpec, parse_methods
from lmms_eval_stability.errors import OptionError
from lmms_eval_stability.model_wrappers.registry import METHODS
from lmms_eval_stability.report.token_picture import Panel, draw_tokens, save_tokens, shade
from tests.tiny_models import build_tiny, picture

pytestmark = pytest.mark.any_transformers

DOCS = Path(__file__).parents[3] / "docs"
SCENE = DOCS / "images" / "scene.png"
QUESTION = "How many objects are there?"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["show-tokens", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def test_every_method_on_the_embedded_model(tmp_path: Path):
    output = tmp_path / "out.png"
    methods = "baseline,fastv:k=3:r=0.75,pyramiddrop,sparsevlm,visionzip,hired,lofi,random:seed=1"
    result = call("--image", SCENE, "--question", QUESTION, "--method", methods, "-o", output)
    assert result.exit_code == 0, result.output
    with Image.open(output) as file:
        assert file.format == "PNG"
        assert file.mode == "RGB"
        size, text = file.size, file.text
    assert size[0] == 4 * 384 + 3 * 28 + 2 * 24  # four panels in a row
    assert size[1] > 2 * 384
    assert text["Title"] == f"demo: {QUESTION}"
    assert titles(output) == [
        "baseline  144",
        "fastv:k=3:r=0.75  144 -> 36",
        "pyramiddrop  144 -> 72 -> 36 -> 18",
        "sparsevlm  144 -> 78 -> 51 -> 28",
        "visionzip  144 -> 48",
        "hired  144 -> 28",
        "lofi  144 -> 48",
        "random:seed=1  144 -> 48",
    ]
    lines = result.stdout.splitlines()
    baseline = next(line for line in lines if "baseline  144" in line)
    assert baseline.split()[-1] == "4"  # the scene has four objects, and the model counts them
    for line in lines:
        if "144 ->" in line:
            assert line.startswith("≠") == (line.split()[-1] != "4")
    assert str(output) in lines[-1]


def test_the_answers_are_those_of_the_task_prompt(tmp_path: Path):
    """The demo model is asked as in its task, once, whether or not the line that ends the prompt is given."""
    outputs = []
    for question in (QUESTION, f"{QUESTION}\nAnswer the question using a single word or phrase."):
        result = call("--image", SCENE, "--question", question, "--method", "hired", "-o", tmp_path / "out.png")
        assert result.exit_code == 0, result.output
        outputs.append([line for line in result.stdout.splitlines() if "144" in line])
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 2


def test_other_architectures(tmp_path: Path, tiny_folder: Any):
    for kind, methods in {
        "llava_next": "visionzip,fastv",
        "qwen2_5_vl": "downsample,sparsevlm:layers=2:tokens=99",
    }.items():
        output = tmp_path / f"{kind}.png"
        result = call("--model", tiny_folder(kind), "--image", SCENE, "--question", "What is it?", "--method", methods,
                      "--max-new-tokens", "2", "-o", output)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert len(Image.open(output).text["Description"].splitlines()) >= 3


def test_methods_are_read_with_their_parameters():
    text = "fastv:k=3:r=0.75, visionzip ,baseline,random:literal=True:seed=-1,sparsevlm:tokens=9-8-7"
    assert parse_methods(text) == [
        MethodSpec("fastv:k=3:r=0.75", "fastv", {"k": 3, "r": 0.75}),
        MethodSpec("visionzip", "visionzip", {}),
        MethodSpec("random:literal=True:seed=-1", "random", {"literal": True, "seed": -1}),
        MethodSpec("sparsevlm:tokens=9-8-7", "sparsevlm", {"tokens": "9-8-7"}),
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("fastvv", "no token-reduction method 'fastvv'; there are fastv, "),
        ("", "no token-reduction method ''"),
        ("int8", "no token-reduction method 'int8'"),
        ("fastv,,hired", "no token-reduction method ''"),
        ("fastv:q=3", "fastv does not take q; it takes k, r"),
        ("fastv:r", "write NAME:PARAMETER=VALUE, not 'r'"),
        ("fastv:r=", "write NAME:PARAMETER=VALUE, not 'r='"),
        ("baseline:k=2", "no token-reduction method 'baseline'"),
    ],
)
def test_methods_that_there_are_not(text: str, match: str):
    with pytest.raises(OptionError, match=match):
        parse_methods(text)


def test_what_is_refused_says_why_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # lmms-eval's tasks have Pillow accept cut files in the whole process; the command's own never imports them
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    output = tmp_path / "out.png"
    good = ("--image", SCENE, "--question", QUESTION, "-o", output)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(SCENE.read_bytes()[:3000])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    messages = {
        "no token-reduction method 'dropout'": (*good, "--method", "dropout"),
        "Downsample": (*good, "--method", "fastv,downsample"),
        "fewer visual tokens": (*good, "--method", "downsample"),
        "r must be a number": (*good, "--method", "fastv:r=1.5"),
        "cannot drop tokens before layer 9": (*good, "--method", "fastv:k=9"),
        "text.png cannot be read": (*good[2:], "--image", tmp_path / "text.png"),
        "cut.png cannot be read": (*good[2:], "--image", tmp_path / "cut.png"),
        "does not exist": (*good[2:], "--image", tmp_path / "none.png"),
        "no checkpoint could be loaded": (*good, "--model", tmp_path / "nowhere"),
        "'bert' are not served": (*good, "--model", tmp_path),
        "there is no folder": (*good[:4], "-o", tmp_path / "no" / "out.png"),
        "must not contain '<image>'": ("--image", SCENE, "--question", "what <image>?", "-o", output),
        "Missing option '--question'": ("--image", SCENE),
    }
    for message, arguments in messages.items():
        assert message in " ".join(refused(*arguments).split()), message
        assert not output.exists()


def test_a_file_that_cannot_be_written(tmp_path: Path):
    if not Path("/dev/full").exists():
        target, message = tmp_path / ("x" * 300), "cannot write"
    else:
        target, message = Path("/dev/full"), "cannot write /dev/full"
    assert message in refused("--image", SCENE, "--question", QUESTION, "--method", "hired", "-o", target)


def test_neither_help_nor_a_wrong_option_loads_torch():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom lmms_eval_stability.cli import main\n"
        "a = CliRunner().invoke(main, ['show-tokens', '--help'])\n"
        "b = CliRunner().invoke(main, ['show-tokens', '--image', sys.argv[1], '--question', 'q', '--method', 'x'])\n"
        "import json; print(json.dumps([a.exit_code, b.exit_code, 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SCENE], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert json.loads(done.stdout) == [0, 2, False]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.kind == "token reduction"])
def test_every_method_has_a_picture_and_the_command_that_made_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    file = DOCS / "images" / f"tokens_{name}.png"
    assert f"](../images/{file.name})" in page
    assert file.stat().st_size < 100_000
    (command,) = re.findall(r"^    (lmms-eval-stability show-tokens .*\\\n.*)$", page, flags=re.MULTILINE)
    arguments = shlex.split(command.replace("\\\n", " "))[2:]
    assert arguments[-2:] == ["-o", f"docs/images/{file.name}"]
    assert name in arguments[arguments.index("--method") + 1]
    if "--model" in arguments:  # made by the line before the command, in the folder where both are called
        monkeypatch.chdir(tmp_path)
        build_tiny("qwen2_5_vl", "tiny-qwen")
        picture(5, 96, 96).save("blocks.png")
    known = {"docs/images/scene.png": str(SCENE)}
    result = call(*(known.get(word, word) for word in arguments[:-1]), tmp_path / "again.png")
    assert result.exit_code == 0, result.output
    assert titles(tmp_path / "again.png") == titles(file)


def titles(file: Path) -> list[str]:
    with Image.open(file) as image:
        return [line.rpartition(": ")[0] for line in image.text["Description"].splitlines()]


def panel(**changes: Any) -> Panel:
    """Return a panel of 2 x 2 patches of 8 white pixels: kept, dropped first, dropped last, merged."""
    cells = [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]]
    values: dict[str, Any] = {
        "title": "method  4 -> 2",
        "note": "note",
        "answer": "yes",
        "differs": False,
        "picture": np.full((16, 16, 3), 240, dtype=np.uint8),
        "boxes": np.array(cells),
        "dropped_at": np.array([0, 1, 2, 0]),
        "merged": np.array([False, False, False, True]),
        "stages": 2,
    }
    return Panel(**{**values, **changes})


def test_patches_are_shaded_by_their_fate():
    pixels = np.asarray(shade(panel()))
    assert pixels.shape == (384, 384, 3)
    kept, first, last, merged = (
        pixels[y : y + 192, x : x + 192].reshape(-1, 3) for y, x in ((0, 0), (0, 192), (192, 0), (192, 192))
    )
    assert (kept == 240).all()
    assert len(np.unique(first, axis=0)) == len(np.unique(last, axis=0)) == 1
    assert first[0].max() < last[0].max() < 0.6 * 240
    assert len(np.unique(merged, axis=0)) == 2  # tint and hatching
    assert (merged[:, 2].astype(int) > merged[:, 0].astype(int) + 30).all()  # blue


def test_a_large_picture_is_made_smaller_and_its_boxes_with_it():
    picture = np.zeros((500, 2000, 3), dtype=np.uint8)
    picture[:, 1000:] = 200
    boxes = np.array([[0, 0, 1000, 500], [1000, 0, 2000, 500]])
    pixels = np.asarray(
        shade(panel(picture=picture, boxes=boxes, dropped_at=np.array([0, 1]), merged=np.zeros(2, bool), stages=1))
    )
    assert pixels.shape == (160, 640, 3)
    assert pixels[:, :315].max() == 0
    assert 0 < pixels[:, 325:].max() < 100


def test_odd_answers_are_drawn(tmp_path: Path):
    odd = ["", "\x00\x1b\ud800 \t\n", "$x^2$ <b>", "w" * 300, "word " * 300, "漢字 עברית ة", "€" * 3]
    sheet = draw_tokens([panel(answer=answer, title="t " * 200, differs=True) for answer in odd], "q " * 3000)
    assert sheet.width < 2000
    save_tokens([panel(answer=answer) for answer in odd], "\ud800 question", tmp_path / "odd.png")
    text = Image.open(tmp_path / "odd.png").text
    assert "漢字 עברית ة" in text["Description"]
    assert text["Title"] == "? question"
