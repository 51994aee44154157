from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.stand_ins import write_hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for HF_HOME with the stand-ins of all data sets."""
    return write_hub(tmp_path_factory.mktemp("hub"))
