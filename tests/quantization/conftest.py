"""Tiny models and their hand-made quantised checkpoints, each built once per test session; what was logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loguru import logger

from tests.quantization.checkpoints import Recipe, build, half_precision
from tests.tiny_models import build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the kind of a tiny model to its folder (float32)."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = build_tiny(kind, tmp_path_factory.mktemp("tiny") / kind)
        return built[kind]

    return folder


@pytest.fixture(scope="session")
def half(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the kind of a tiny model to its folder (float16)."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = half_precision(tiny(kind), tmp_path_factory.mktemp("half") / kind)
        return built[kind]

    return folder


@pytest.fixture(scope="session")
def quantized(
    tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, Path]]:
    """Return a function (layout, kind) -> (folder of a correct quantised checkpoint, folder of its dense twin)."""
    built: dict[tuple[str, str], tuple[Path, Path]] = {}

    def folders(layout: str, kind: str) -> tuple[Path, Path]:
        if (layout, kind) not in built:
            built[layout, kind] = build(Recipe(layout), kind, tiny(kind), tmp_path_factory.mktemp(f"{layout}_{kind}"))
        return built[layout, kind]

    return folders


@pytest.fixture
def make_checkpoint(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[Recipe, str], tuple[Path, Path]]:
    """Return a function (recipe, kind) -> (quantised folder, twin's folder) of this test alone."""
    return lambda recipe, kind: build(recipe, kind, tiny(kind), tmp_path)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The lines that the package logged during a test."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)
