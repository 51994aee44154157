"""Tiny models, a calibration file and the command, each built once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lmms_eval_stability.cli import main
from tests.tiny_models import build_tiny, picture

#: Divides every layer of the tiny models (64 and 128 columns wide).
GROUP = 16
Quantize = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the kind of a tiny model to its folder."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = build_tiny(kind, tmp_path_factory.mktemp("tiny") / kind)
        return built[kind]

    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a calibration file with six lines."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number in range(6):
        picture(number).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": f"What color is the {number}th object?"}))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def quantize(questions: Path) -> Quantize:
    """Return a function that runs the command on the calibration file."""

    def run(model: object, output: Path, method: str = "gptq", *more: str) -> Result:
        arguments = ["--model", str(model), "--method", method, "--group-size", str(GROUP), "--samples", "4"]
        arguments += ["--calibration", str(questions), "--output", str(output)]
        return CliRunner().invoke(main, ["quantize", *arguments, *more])

    return run
