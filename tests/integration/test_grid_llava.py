"""LLaVA and LLaVA-NeXT x every method x every task, clean and perturbed: real lmms-eval runs on the stand-ins."""

from __future__ import annotations

import pytest

from lmms_eval_stability.model_wrappers.registry import METHODS as REGISTERED
from tests.integration.grid import METHODS, NEED_A_CHECKPOINT, Grid, GridTests, grids_fixture
from tests.integration.running import TIMEOUT

pytestmark = pytest.mark.timeout(TIMEOUT)
KINDS = ("llava", "llava_next")
grids = grids_fixture(*KINDS)


@pytest.fixture(params=KINDS)
def grid(request: pytest.FixtureRequest, grids: dict[str, Grid]) -> Grid:
    return grids[request.param]


class TestGrid(GridTests):
    pass


def test_no_method_is_missing() -> None:
    assert {method.name for method in METHODS.values()} | NEED_A_CHECKPOINT | {"baseline"} == set(REGISTERED)
