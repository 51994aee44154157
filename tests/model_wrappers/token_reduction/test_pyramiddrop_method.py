"""PyramidDrop's parameters, and the vectors made by the official code, run through transformers' own attention."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from lmms_eval_stability.model_wrappers.token_reduction import PyramidDrop
from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, take

GOLDEN = Path(os.environ.get("LMMS_EVAL_STABILITY_GOLDEN", Path(__file__).parents[2] / "golden"))
VECTORS = sorted((GOLDEN / "token_reduction").glob("pyramiddrop_*.npz"))


def test_there_are_official_vectors():
    assert len(VECTORS) >= 3


def attention_rows(case: Any, stage: int, hidden: Tensor, kernel: str) -> Tensor:
    """Return the last row of attention (B, H, 1, L) under the stage's projections, at positions 0, 1, 2, ..."""
    config = LlamaConfig(
        hidden_size=hidden.shape[-1],
        num_attention_heads=int(case["num_heads"]),
        head_dim=int(case["head_dim"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(case["rope_theta"])},
        attn_implementation=kernel,
    )
    attention, batch, length = LlamaAttention(config, 0), hidden.shape[0], hidden.shape[1]
    with torch.no_grad():
        attention.q_proj.weight.copy_(torch.from_numpy(case[f"q_proj_{stage}"]))
        attention.k_proj.weight.copy_(torch.from_numpy(case[f"k_proj_{stage}"]))
    rotary = LlamaRotaryEmbedding(config)(hidden, torch.arange(length)[None])
    rows, seen = torch.full((batch, 1), length - 1), torch.ones(batch, 1, length, dtype=torch.bool)
    with ExitStack() as stack, torch.no_grad():
        return AttentionTap(attention, stack).measure(hidden, rotary, rows, seen)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_official_vectors(path: Path, kernel: str):
    case = np.load(path)
    hidden = torch.from_numpy(case["hidden_in_stage0"])
    start, entered = int(case["sys_len"]), int(case["image_tokens"])
    method, now = PyramidDrop(case["layer_list"].tolist(), case["ratio_list"].tolist()), entered
    batch = len(hidden)
    for stage in range(len(case["layer_list"])):
        rows = attention_rows(case, stage, hidden, kernel)
        keep = method.keep_count(stage, entered, now)
        dropped = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        dropped[:, start : start + now] = True
        for row in range(batch):
            stays = method.reduce(stage, entered, rows[row, ..., start : start + now], hidden[row, start : start + now])
            dropped[row, start + stays.stays] = False
        everything = Kept.everything(batch, hidden.shape[1], None, hidden.device)
        kept, slots = everything.without(dropped)
        assert slots.tolist() == case[f"kept_rows_stage{stage}"].tolist()
        assert kept.renumbered(everything).tolist() == case[f"position_ids_out_stage{stage}"].tolist()
        hidden, now = take(hidden, slots), keep
        np.testing.assert_allclose(hidden.numpy(), case[f"hidden_out_stage{stage}"], atol=1e-5)
        hidden = torch.tanh(hidden) + 0.5 * hidden


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
