"""Tiny models of every kind, built once per test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import build_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from the kind of a tiny model to its folder."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> str:
        if kind not in built:
            built[kind] = build_tiny(kind, tmp_path_factory.mktemp("tiny") / kind)
        return str(built[kind])

    return folder
