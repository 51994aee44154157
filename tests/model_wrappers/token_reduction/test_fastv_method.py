"""FastV's own functions: parameters, rounding, ranking."""

from __future__ import annotations

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.fastv import FastV


@pytest.mark.parametrize(
    ("n", "r", "kept"),
    [(576, 0.5, 288), (2928, 0.5, 1464), (576, 0.75, 144), (37, 0.5, 18), (35, 0.5, 18), (1, 0.5, 0), (7, 0.0, 7)],
)
def test_how_many_are_kept(n: int, r: float, kept: int):
    assert FastV(r=r).keep_count(0, n, n) == kept


def test_defaults_are_the_papers():
    assert FastV() == FastV(k=3, r=0.5)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3"])
def test_bad_k_is_refused(k: object):
    with pytest.raises(InvalidParameterError, match="k must be"):
        FastV(k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("r", [-0.1, 1.0, 1.5, True, "0.5", float("nan")])
def test_bad_r_is_refused(r: object):
    with pytest.raises(InvalidParameterError, match="r must be"):
        FastV(r=r)  # type: ignore[arg-type]


def test_equal_scores_keep_the_first():
    scores = torch.tensor([0.1, 0.3, 0.2, 0.3, 0.2, 0.2])
    assert FastV().select(scores, 4).tolist() == [1, 2, 3, 4]
    assert FastV().select(torch.ones(600), 300).tolist() == list(range(300))


def test_ranking_ignores_scale_and_follows_permutation():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(4, 1, 50, generator=generator)
    order = torch.randperm(50, generator=generator)
    method = FastV()
    kept = method.select(method.score(attention), 20)
    assert torch.equal(kept, method.select(method.score(attention * 7.5), 20))
    permuted = method.select(method.score(attention[..., order]), 20)
    assert sorted(order[permuted].tolist()) == kept.tolist()


def test_score_is_the_mean_over_heads_of_the_one_row():
    attention = torch.tensor([[[0.1, 0.5]], [[0.3, 0.1]]])
    torch.testing.assert_close(FastV().score(attention), torch.tensor([0.2, 0.3]))
