"""PyramidDrop's own functions and parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction import PyramidDrop
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError


@pytest.mark.parametrize(
    ("n", "kept"), [(576, [288, 144, 72]), (2928, [1464, 732, 366]), (23, [11, 5, 2]), (1, [0] * 3)]
)
def test_how_many_are_kept(n: int, kept: list[int]):
    assert [PyramidDrop().keep_count(stage, n, n) for stage in range(3)] == kept


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, (8, 16, 24)), (40, (10, 20, 30)), (28, (7, 14, 21)), (8, (2, 4, 6)), (4, (1, 2, 3))]
)
def test_the_papers_layers_scale_to_the_depth(depth: int, layers: tuple[int, ...]):
    assert tuple(stage.layer for stage in PyramidDrop().stages(depth)) == layers
    assert [stage.layer for stage in PyramidDrop(layers="8-16-24").stages(depth)] == [8, 16, 24]


def test_a_model_too_shallow_for_the_default_is_refused():
    with pytest.raises(InvalidParameterError, match="must ascend, which 1-1-2 do not; in a language model of 2 layers"):
        PyramidDrop().stages(2)


def test_one_spelling_whatever_was_given():
    method = PyramidDrop(layers=[4, 8], ratios=(0.5, 1e-5))
    assert (method.layers, method.ratios) == ("4-8", "0.5-0.00001")
    assert PyramidDrop(layers=method.layers, ratios=method.ratios) == method
    assert PyramidDrop(layers=3, ratios=1.0).ratios == "1"
    assert PyramidDrop(ratios="0.5-0.25-0.125") == PyramidDrop()


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"layers": "8,16,24"}, "layers must be whole numbers joined by hyphens"),
        ({"layers": "-1-2-3"}, "layers must be"),
        ({"layers": 2.5}, "layers must be"),
        ({"layers": True}, "layers must be"),
        ({"layers": "8-16"}, "equally many, not 8-16 and 0.5-0.25-0.125"),
        ({"ratios": "0.5-0.25"}, "equally many"),
        ({"ratios": "0.25-0.5-0.1"}, "must not increase"),
        ({"ratios": "1.5-1-1"}, "ratios must be numbers from 0 to 1"),
        ({"ratios": (0.5, -0.25, 0.1)}, "ratios must be"),
        ({"ratios": "0.5-nan-0.1"}, "ratios must be"),
        ({"ratios": None}, "ratios must be"),
        ({"ratios": True}, "ratios must be"),
        ({"renumber": 1}, "renumber must be True or False"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        PyramidDrop(**parameters)


def test_layers_out_of_order_are_refused():
    with pytest.raises(InvalidParameterError, match="must ascend, which 6-4-2 do not"):
        PyramidDrop(layers="6-4-2").stages(8)


def test_equal_scores_keep_the_first():
    assert PyramidDrop().select(torch.ones(600), 300).tolist() == list(range(300))
