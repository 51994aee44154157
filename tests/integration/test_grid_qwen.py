"""Qwen2-VL and Qwen2.5-VL x every method x every task, clean and perturbed: real lmms-eval runs on the stand-ins."""

from __future__ import annotations

import pytest

from tests.integration.grid import Grid, GridTests, grids_fixture
from tests.integration.running import TIMEOUT

pytestmark = pytest.mark.timeout(TIMEOUT)
KINDS = ("qwen2_vl", "qwen2_5_vl")
grids = grids_fixture(*KINDS)


@pytest.fixture(params=KINDS)
def grid(request: pytest.FixtureRequest, grids: dict[str, Grid]) -> Grid:
    return grids[request.param]


class TestGrid(GridTests):
    pass
