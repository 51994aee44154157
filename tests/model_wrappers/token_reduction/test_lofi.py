"""Leverage-score pruning: the linear algebra, what is ranked, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.lofi import LoFi, inverse_participation_ratio, leverage
from lmms_eval_stability.model_wrappers.token_reduction.vision import encode_images
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.real_geometry import build_real_geometry


def random_features(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_leverage_is_that_of_the_singular_value_decomposition(rows: int, columns: int, rank: int):
    features = random_features(rows, columns)
    vectors = torch.linalg.svd(features, full_matrices=False).U[:, :rank]
    scores = leverage(features, rank)
    torch.testing.assert_close(scores, vectors.square().sum(dim=1))
    torch.testing.assert_close(scores.sum(), torch.tensor(float(rank), dtype=torch.float64))
    assert (scores >= 0).all()
    assert (scores <= 1 + 1e-12).all()


def test_leverage_ignores_rotation_and_scale_and_follows_permutation():
    features = random_features(30, 10)
    scores = leverage(features, 4)
    rotation = torch.linalg.qr(random_features(10, 10)).Q
    torch.testing.assert_close(leverage(features @ rotation, 4), scores)
    torch.testing.assert_close(leverage(7.5 * features, 4), scores)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(leverage(features[order], 4), scores[order])


def test_leverage_of_few_or_dependent_rows():
    assert not torch.allclose(leverage(random_features(6, 20), 64), torch.ones(6, dtype=torch.float64))
    dependent = random_features(30, 2) @ random_features(2, 10)
    torch.testing.assert_close(leverage(dependent, 8).sum(), torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(leverage(random_features(1, 5), 3), torch.ones(1, dtype=torch.float64))


def test_inverse_participation_ratio():
    assert inverse_participation_ratio(torch.ones(9, 4)) == pytest.approx(1)
    assert inverse_participation_ratio(torch.eye(8)) == pytest.approx(1 / 8)
    features = random_features(30, 10)
    values = torch.linalg.svdvals(features) ** 2
    assert inverse_participation_ratio(features) == pytest.approx(float((values / values.sum()).square().sum()))


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("feature", ["projected", "vision"])
def test_patches_are_ranked_by_their_own_features(load: Any, kind: str, feature: str):
    tiny: Tiny = load(kind)
    inputs = tiny.inputs((QUESTION, [(84, 140)]))
    layouts = tiny.family.image_layouts(tiny.model, inputs)
    method = LoFi(rank=3, feature=feature)
    wanted = method.wanted(tiny.model, tiny.family)
    _, (view,) = encode_images(tiny.model, tiny.family, inputs, layouts, wanted)
    made = method.compress(view)
    assert made is not None
    pixels = view.pixels.view(-1, 3, 56, 56)
    with torch.no_grad():
        features = tiny.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        if feature == "projected":
            features = tiny.model.model.multi_modal_projector(features)
    scores: list[tuple[float, int]] = []
    for partition in range(view.layout.partitions):
        own = [
            (place, position - 16 * partition)
            for place, position in enumerate(view.layout.source.tolist())
            if position >= 0 and position // 16 == partition
        ]
        values = leverage(features[partition, [patch for _, patch in own]], 3).tolist()
        scores += [(-value, place) for value, (place, _) in zip(values, own, strict=True)]
    n = round(len(scores) / 3)
    assert made.kept.tolist() == sorted(place for _, place in sorted(scores)[:n])
    assert torch.equal(made.features, view.tokens[made.kept])


@pytest.mark.parametrize("feature", ["projected", "vision"])
def test_counts_of_llava_1_5(tmp_path: Path, feature: str):
    tiny = build_real_geometry("llava", tmp_path)
    with LoFi(feature=feature).attach(tiny.model, tiny.family) as session:
        tiny.generate(tiny.one(640, 480), new=1)
    assert session.rows[0].visual_tokens == (576, 192)
    match = "rank must be less than the 576 tokens"
    with pytest.raises(InvalidParameterError, match=match), LoFi(rank=576).attach(tiny.model, tiny.family):
        pass


@pytest.mark.parametrize(("height", "width", "before", "after"), [(672, 672, 2928, 960), (333, 500, 1464, 480)])
def test_counts_of_llava_next(tmp_path: Path, height: int, width: int, before: int, after: int):
    tiny = build_real_geometry("llava_next", tmp_path)
    with LoFi().attach(tiny.model, tiny.family) as session:
        tiny.logits(tiny.one(width, height), logits_to_keep=1)
    assert session.rows[0].visual_tokens == (before, after)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_features_of_the_tower_are_refused_where_tokens_are_merged(load: Any, kind: str):
    tiny: Tiny = load(kind)
    match = "use feature=projected"
    with pytest.raises(UnsupportedModelError, match=match), LoFi(feature="vision").attach(tiny.model, tiny.family):
        pass


def test_a_budget_that_no_image_has_is_refused(llava: Tiny):
    with (
        pytest.raises(InvalidParameterError, match="17 tokens is more than the 16"),
        LoFi(tokens=17, rank=4, literal=True).attach(llava.model, llava.family),
    ):
        pass


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"tokens": 0}, "tokens must be"),
        ({"tokens": 577}, "more than the 576"),
        ({"rank": 0}, "rank must be"),
        ({"rank": 2.0}, "rank must be"),
        ({"feature": "keys"}, "feature must be"),
        ({"literal": None}, "literal must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        LoFi(**parameters)


def test_equal_scores_keep_the_first():
    assert LoFi().select(torch.ones(600), 300).tolist() == list(range(300))


def test_defaults():
    assert LoFi() == LoFi(tokens=192, rank=64, feature="projected", literal=False)
