"""The control inside the language model: what it keeps, on what that depends, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction.base import Session
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import spread_noise
from lmms_eval_stability.model_wrappers.token_reduction.pyramiddrop import PyramidDrop
from lmms_eval_stability.model_wrappers.token_reduction.random import Random
from lmms_eval_stability.model_wrappers.token_reduction.random_inside import RandomInside
from tests.model_wrappers.token_reduction.conftest import QUESTION, Spec, Tiny
from tests.model_wrappers.token_reduction.test_inside_llm import extended

PIXELS = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
TWO: Spec = (QUESTION, [(84, 56), (56, 140)])


def left(method: RandomInside, n: int, entered: int, pixels: tuple[torch.Tensor, ...] = (PIXELS,)) -> list[int]:
    return method.select(method.first_scores(entered, pixels), n).tolist()


def kept(session: Session) -> list[list[tuple[int, ...]]]:
    """Return, of every row, the visual tokens that are left at each of its layers."""
    return [[stage.kept for stage in row] for row in session.traces]


def traced(tiny: Tiny, method: RandomInside, inputs: dict[str, Any]) -> list[list[tuple[int, ...]]]:
    with method.attach(tiny.model, tiny.family) as session:
        session.tracing = True
        tiny.logits(inputs)
    return kept(session)


def test_of_one_image_it_keeps_what_random_keeps():
    for seed, n in ((0, 192), (3, 57), (-1, 14)):
        assert left(RandomInside(seed=seed), n, 576) == Random(seed=seed).select(576, n, PIXELS).tolist()


def test_the_draw_depends_on_all_pixels_and_the_seed_only():
    state = torch.random.get_rng_state()
    first = left(RandomInside(), 50, 144, (PIXELS, PIXELS + 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert left(RandomInside(layers="2-3", keep="0.5-0.1"), 50, 144, (PIXELS.clone(), PIXELS + 1)) == first
    assert left(RandomInside(seed=1), 50, 144, (PIXELS, PIXELS + 1)) != first
    assert left(RandomInside(), 50, 144, (PIXELS, PIXELS + 2)) != first
    assert left(RandomInside(), 50, 144) != first


def test_every_token_is_kept_equally_often():
    hits = torch.zeros(30)
    for seed in range(600):
        hits[left(RandomInside(seed=seed), 10, 30)] += 1
    assert abs(hits - 200).max() < 5 * (600 * 1 / 3 * 2 / 3) ** 0.5


def test_spread_tokens_are_those_of_equal_logits_and_another_seed_shifts_them():
    """Of 144 tokens in rows of 12 every quarter of the image keeps its share, within one token of 9."""
    method = RandomInside(spread=True)
    assert torch.equal(method.first_scores(144, ()), spread_noise(144, 12))
    quarters = torch.zeros(2, 2)
    for token in left(method, 36, 144):
        quarters[token // 12 // 6, token % 12 // 6] += 1
    assert abs(quarters - 9).max() <= 1
    assert left(RandomInside(spread=True, seed=1), 36, 144) != left(method, 36, 144)


def test_stages_keep_their_share_of_the_prompt_each_within_the_one_before(tiny: Tiny):
    inputs = tiny.inputs(TWO, ("Yes?", []))
    total = int(tiny.visual(inputs)[0].sum())
    (whole, *stages), text = traced(tiny, RandomInside(layers="2-3-5", keep="0.6-0.6-0.1"), inputs)
    assert whole == tuple(range(total))
    assert [len(stage) for stage in stages] == [round(0.6 * total), round(0.6 * total), round(0.1 * total)]
    assert stages[0] == stages[1]
    assert set(stages[2]) < set(stages[1])
    assert text == [()] * 4


def test_neither_question_nor_batch_nor_order_matters(tiny: Tiny):
    """The picture is the same in every row, whatever is asked about it and whatever stands beside it."""
    inputs = tiny.inputs(("Yes?", [(84, 56)]))
    alone = traced(tiny, RandomInside(), inputs)[0]
    assert traced(tiny, RandomInside(), extended(inputs, torch.tensor([[40, 41, 42]])))[0] == alone
    specs = [(QUESTION, [(56, 140), (112, 112)]), ("Yes?", [(84, 56)]), ("no", [(168, 56)])]
    together = traced(tiny, RandomInside(), tiny.inputs(*specs))
    assert together[1] == alone
    assert traced(tiny, RandomInside(), tiny.inputs(*specs[::-1])) == together[::-1]


def test_generating_keeps_what_a_forward_pass_keeps(tiny: Tiny):
    """There the images are encoded before the first pass, which is given no pixels."""
    inputs, method = tiny.inputs(TWO, ("Yes?", []), ("no", [(84, 84)])), RandomInside()
    expected = traced(tiny, method, inputs)
    for options in ({}, {"use_cache": False}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}):
        with method.attach(tiny.model, tiny.family) as session:
            session.tracing = True
            tiny.generate(inputs, new=3, **options)
        assert kept(session) == expected


def test_encoded_images_are_refused(llava: Tiny):
    inputs = llava.one()
    with torch.no_grad():
        features = llava.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with RandomInside().attach(llava.model, llava.family):
        with pytest.raises(UnsupportedCallError, match="give pixel_values"):
            llava.logits(inputs, mm_encoder_outputs={"image": features})
        llava.logits(llava.inputs(("Yes?", [])))  # text alone needs none


@pytest.mark.parametrize("depth", [28, 32, 40])
def test_by_default_it_is_the_control_of_pyramiddrop(depth: int):
    layers = [[stage.layer for stage in method.stages(depth)] for method in (RandomInside(), PyramidDrop())]
    assert layers[0] == layers[1]
    counts = [[method.keep_count(i, 576, 576) for i in range(3)] for method in (RandomInside(), PyramidDrop())]
    assert counts[0] == counts[1] == [288, 144, 72]


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"keep": 0}, "keep must be above 0"),
        ({"layers": "2-3", "keep": "0.2-0.5"}, "not increase"),
        ({"keep": "0.5-1.5-0.1"}, "from 0 to 1"),
        ({"keep": "0.5-0.1"}, "one share per layer or one for all, not 0.5-0.1 for layers 8-16-24"),
        ({"layers": 2.5}, "layers must be whole numbers"),
        ({"seed": "a"}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"spread": 1}, "spread must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, object], match: str):
    with pytest.raises(InvalidParameterError, match=f"random_inside.*{match}"):
        RandomInside(**parameters)  # type: ignore[arg-type]


def test_one_spelling_whatever_was_given():
    assert RandomInside(layers=[2, 3], keep=[0.50, 0.1]) == RandomInside(layers="2-3", keep="0.5-0.1")
    assert RandomInside(layers=3, keep=0.5) == RandomInside(layers="3", keep="0.5")
