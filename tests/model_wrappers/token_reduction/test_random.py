"""The random control: what it keeps, on what that depends, and that the model sees exactly those tokens."""

from __future__ import annotations

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.random import Random
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.test_inside_llm import CLOSE

PIXELS = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_choice_depends_on_pixels_and_seed_only():
    state = torch.random.get_rng_state()
    kept = Random().select(576, 192, PIXELS)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(Random().select(576, 192, PIXELS.clone()), kept)
    assert torch.equal(kept, kept.unique())
    assert len(kept) == 192
    assert int(kept.max()) < 576
    assert not torch.equal(Random(seed=1).select(576, 192, PIXELS), kept)
    assert not torch.equal(Random().select(576, 192, PIXELS + 0.1), kept)


def test_every_token_is_kept_equally_often():
    hits = torch.zeros(30)
    for seed in range(600):
        hits[Random(seed=seed).select(30, 10, PIXELS)] += 1
    assert abs(hits - 200).max() < 5 * (600 * 1 / 3 * 2 / 3) ** 0.5


def test_the_model_sees_exactly_the_chosen_tokens(tiny: Tiny):
    """Against the base model's own embeddings and positions, with the other tokens taken out by hand."""
    inputs = tiny.inputs((QUESTION, [(84, 56), (140, 84)]))
    model, backbone = tiny.model, tiny.family.backbone(tiny.model)
    method = Random(tokens=300, seed=3)
    layouts = tiny.family.image_layouts(model, inputs)
    stays = ~tiny.visual(inputs)[0]
    columns = (~stays).nonzero().squeeze(1).split([layout.tokens for layout in layouts])
    for image, pixels in zip(columns, tiny.family.image_pixels(inputs, layouts), strict=True):
        stays[image[method.select(len(image), round(len(image) * 300 / 576), pixels)]] = True

    seen = {}
    hook = tiny.family.decoder(model).register_forward_pre_hook(lambda _m, _a, kw: seen.update(kw), with_kwargs=True)
    plain = tiny.logits(inputs)
    hook.remove()
    positions = seen["position_ids"]
    with torch.no_grad():
        oracle = model.lm_head(
            tiny.family.decoder(model)(
                inputs_embeds=seen["inputs_embeds"][:, stays],
                position_ids=None if positions is None else positions[..., stays],
            ).last_hidden_state
        )
    with method.attach(model, tiny.family) as session:
        logits = tiny.logits(inputs)
    assert session.rows[0].visual_tokens == (sum(map(len, columns)), int(stays[torch.cat(columns)].sum()))
    torch.testing.assert_close(logits[:, stays], oracle, **CLOSE)
    assert not torch.allclose(logits[:, -1], plain[:, -1], atol=1e-3)
    assert not vars(backbone).keys() & {"get_image_features", "get_rope_index"}


def test_order_and_company_in_a_batch_do_not_matter(tiny: Tiny):
    specs = [(QUESTION, [(84, 56)]), ("Yes?", [(56, 140), (112, 112)]), ("no", [(168, 56)])]
    with Random().attach(tiny.model, tiny.family) as session:
        one = tiny.generate_raw(tiny.inputs(*specs), new=1).logits[0]
        rows = session.rows
        other = tiny.generate_raw(tiny.inputs(*specs[::-1]), new=1).logits[0]
    assert session.rows == rows[::-1]
    torch.testing.assert_close(one, other.flip(0), **CLOSE)


def test_a_literal_budget_is_taken_as_it_is(tiny: Tiny):
    inputs = tiny.inputs((QUESTION, [(84, 56)]), ("Yes?", [(224, 224)]))
    before = tiny.visual(inputs).sum(dim=1).tolist()
    with Random(tokens=10, literal=True).attach(tiny.model, tiny.family) as session:
        tiny.generate(inputs, new=1)
    assert [row.visual_tokens for row in session.rows] == [(n, 10) for n in before]
    if tiny.kind != "llava":  # where images differ, small ones stay as they are
        with Random(tokens=30, literal=True).attach(tiny.model, tiny.family) as session:
            tiny.generate(inputs, new=1)
        assert [row.visual_tokens for row in session.rows] == [(n, min(n, 30)) for n in before]


def test_a_budget_that_no_image_has_is_refused(llava: Tiny):
    with (
        pytest.raises(InvalidParameterError, match="17 tokens is more than the 16"),
        Random(tokens=17, literal=True).attach(llava.model, llava.family),
    ):
        pass


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"tokens": 0}, "tokens must be"),
        ({"tokens": 577}, "more than the 576"),
        ({"tokens": 0.5}, "tokens must be"),
        ({"tokens": True}, "tokens must be"),
        ({"literal": 1}, "literal must be"),
        ({"seed": "a"}, "seed must be"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, object], match: str):
    with pytest.raises(InvalidParameterError, match=match):
        Random(**parameters)  # type: ignore[arg-type]


def test_defaults():
    assert Random() == Random(tokens=192, literal=False, seed=0)
