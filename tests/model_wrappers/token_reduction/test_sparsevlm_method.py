"""SparseVLM's own functions and parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.sparsevlm import (
    SparseVLM,
    merge,
)


def test_counts_of_the_paper():
    method, now, counts = SparseVLM(), 576, []
    for number in range(3):
        attention = torch.rand(2, 3, now, generator=torch.Generator().manual_seed(number))
        left = method.reduce(number, 576, attention, torch.randn(now, 8))
        assert left.merged is not None
        now = len(left.stays) + len(left.merged)
        counts.append(now)
    assert counts == [309, 204, 113]


@pytest.mark.parametrize(
    ("method", "entered", "now", "kept"),
    [
        (SparseVLM(), 576, 576, 300),
        (SparseVLM(), 2880, 2880, 1500),
        (SparseVLM(), 2928, 2928, 1525),
        (SparseVLM(), 16, 16, 8),
        (SparseVLM(), 1, 1, 0),
        (SparseVLM(), 576, 200, 199),
        (SparseVLM(literal=True), 2880, 2880, 300),
        (SparseVLM(literal=True), 144, 144, 143),
    ],
)
def test_how_many_are_kept(method: SparseVLM, entered: int, now: int, kept: int):
    assert method.keep_count(0, entered, now) == kept


def test_where_it_acts():
    assert [SparseVLM().acts(0, 9, now) for now in (0, 1, 9)] == [False, True, True]
    assert [SparseVLM(tokens="576-200-110").acts(stage, 9, 9) for stage in range(3)] == [False, True, True]
    assert SparseVLM(tokens="576-576-576", literal=True).acts(0, 9, 9)
    assert SparseVLM(rank_rule=True).acts(3, 9, 9)
    assert not SparseVLM(tokens="576-576-576").drops_tokens


@pytest.mark.parametrize(
    ("method", "depth", "layers"),
    [
        (SparseVLM(), 32, (2, 6, 15)),
        (SparseVLM(), 40, (3, 8, 19)),
        (SparseVLM(), 28, (2, 5, 13)),
        (SparseVLM(), 8, (1, 2, 4)),
        (SparseVLM(), 4, (0, 1, 2)),
        (SparseVLM(rank_rule=True), 32, (2, 6, 15, 19)),
        (SparseVLM(layers="2-6-15"), 40, (2, 6, 15)),
    ],
)
def test_layers(method: SparseVLM, depth: int, layers: tuple[int, ...]):
    stages = method.stages(depth)
    assert tuple(stage.attention_layer for stage in stages) == layers
    assert tuple(stage.layer for stage in stages) == tuple(layer + 1 for layer in layers)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(
        InvalidParameterError, match="must ascend, which 0-1-2-2 do not; in a language model of 4 layers"
    ):
        SparseVLM(rank_rule=True).stages(4)


def test_one_spelling_whatever_was_given():
    method = SparseVLM(layers=[1, 3], tokens=(200, 100))
    assert (method.layers, method.tokens) == ("1-3", "200-100")
    assert SparseVLM(layers="1-3", tokens="200-100") == method
    assert SparseVLM(layers=3, tokens=100) == SparseVLM(layers="3", tokens="100")


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"layers": "2,6,15"}, "layers must be whole numbers joined by hyphens"),
        ({"layers": "2-6"}, "equally many, not 2-6 and 300-200-110"),
        ({"tokens": "300-200"}, "equally many"),
        ({"tokens": "0.5-0.2-0.1"}, "tokens must be whole numbers"),
        ({"tokens": "600-200-110"}, "so 600 are too many"),
        ({"literal": 1}, "literal must be True or False"),
        ({"rank_rule": "yes"}, "rank_rule must be True or False"),
        ({"rank_rule": True, "tokens": "200-100-50"}, "tokens and literal have no use"),
        ({"rank_rule": True, "literal": True}, "tokens and literal have no use"),
        ({"scale": 10}, "scale belongs to rank_rule"),
        ({"rank_rule": True, "scale": 0}, "scale must be a number above 0"),
        ({"rank_rule": True, "scale": float("inf")}, "scale must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        SparseVLM(**parameters)


def test_a_single_text_token_rates():
    visual = torch.randn(5, 4)
    assert SparseVLM().raters(visual, torch.randn(1, 4)).tolist() == [0]
    assert SparseVLM().raters(visual, torch.ones(4, 4)).tolist() == [3]


def test_equal_scores_keep_and_recycle_the_first():
    method = SparseVLM()
    stays = method.select(torch.ones(40), 20)
    assert stays.tolist() == list(range(20))
    assert method.recycle(torch.ones(40), stays).tolist() == list(range(20, 27))


def test_merging_equal_tokens():
    tokens = torch.ones(12, 3)
    merged, centres = merge(tokens, 3)
    torch.testing.assert_close(merged, tokens[:3])
    assert len(set(centres.tolist())) == 3


def test_merging_finds_the_clusters():
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    tokens = places.repeat(6, 1) + 0.1 * torch.randn(18, 2, generator=generator)
    merged, _ = merge(tokens, 3)
    torch.testing.assert_close(merged[merged.sum(dim=1).argsort()][0], tokens[::3].mean(dim=0), atol=1e-4, rtol=0)
    assert sorted(int((place - places).norm(dim=1).argmin()) for place in merged) == [0, 1, 2]


def test_merging_keeps_the_dtype_and_the_scale_of_scores_does_not_matter():
    tokens = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert merge(tokens.bfloat16(), 4)[0].dtype == torch.bfloat16
    attention = torch.rand(2, 3, 30, generator=torch.Generator().manual_seed(1))
    one, other = (SparseVLM().reduce(0, 30, attention * factor, tokens) for factor in (1.0, 7.5))
    assert torch.equal(one.stays, other.stays)
    assert one.merged is not None
    assert other.merged is not None
    assert torch.equal(one.merged, other.merged)
