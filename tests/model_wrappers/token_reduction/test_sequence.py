"""Bookkeeping of kept tokens on hand-made tensors."""

from __future__ import annotations

import pytest
import torch

from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, causal_mask, take

CPU = torch.device("cpu")


def test_rectangular_drop_needs_no_padding():
    kept, slots = Kept.everything(2, 5, None, CPU).without(torch.tensor([[0, 1, 0, 1, 0], [1, 1, 0, 0, 0]]).bool())
    assert kept.columns.tolist() == slots.tolist() == [[0, 2, 4], [2, 3, 4]]
    assert kept.valid is None


def test_ragged_drop_is_padded_on_the_left():
    kept, _ = Kept.everything(2, 4, None, CPU).without(torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool())
    assert kept.valid is not None
    assert kept.valid.tolist() == [[False, False, True, True], [True] * 4]
    assert kept.columns[0, 2:].tolist() == [0, 3]
    assert kept.columns[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_the_prompt_is_given_up(side: str):
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    if side == "right":
        real = real.flip(1)
    dropped = torch.zeros(2, 4, dtype=torch.bool)
    dropped[1, 1] = True
    kept, _ = Kept.everything(2, 4, real, CPU).without(dropped)
    assert kept.valid is None
    assert kept.columns.tolist() == [[1, 2, 3] if side == "left" else [0, 1, 2], [0, 2, 3]]


def test_two_drops_name_original_columns_and_previous_slots():
    first, _ = Kept.everything(1, 5, None, CPU).without(torch.tensor([[0, 1, 0, 0, 0]]).bool())
    second, slots = first.without(torch.tensor([[0, 1, 0, 0]]).bool())
    assert second.columns.tolist() == [[0, 3, 4]]
    assert slots.tolist() == [[0, 2, 3]]
    assert second.slot_of(torch.tensor([3])).tolist() == [1]


def test_restore_length_puts_zeros_where_tokens_are_gone():
    kept, slots = Kept.everything(2, 4, None, CPU).without(torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool())
    hidden = torch.arange(1.0, 9.0).view(2, 4, 1)
    full = kept.restore_length(take(hidden, slots))
    assert full[..., 0].tolist() == [[1, 0, 0, 4], [5, 6, 7, 8]]


def test_slots_of_several_columns():
    kept = Kept(torch.tensor([[2, 0, 1], [0, 1, 3]]), torch.tensor([[False, True, True], [True] * 3]), 4)
    assert kept.slot_of(torch.tensor([[1, 0], [3, 3]])).tolist() == [[2, 1], [2, 2]]


def test_tokens_can_be_moved_behind_others():
    everything = Kept.everything(2, 6, None, CPU)
    order = everything.slot_order()
    order[0, [3, 1]] = order[0, 4] + 1 + torch.arange(2)  # 3 and 1, in this order, between 4 and 5
    kept, slots = everything.without(torch.tensor([[0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]).bool(), order)
    assert kept.valid is not None
    assert kept.columns[0].tolist() == slots[0].tolist() == [0, 4, 3, 1, 5]
    assert kept.columns[1, kept.valid[1]].tolist() == [3, 4, 5]
    assert kept.lengths().tolist() == [5, 3]


@pytest.mark.parametrize(
    ("real", "columns"),
    [
        (None, [[0, 1, 2, 3], [0, 0, 1, 2]]),
        ([[1] * 5, [0, 1, 1, 1, 1]], [[0, 1, 2, 3], [1, 1, 2, 3]]),
        ([[1] * 5, [1, 1, 1, 1, 0]], [[0, 1, 2, 3], [0, 0, 1, 2]]),
    ],
)
def test_renumbering_begins_where_the_row_began(real: list[list[int]] | None, columns: list[list[int]]):
    start = Kept.everything(2, 5, None if real is None else torch.tensor(real).bool(), CPU)
    kept, _ = start.without(torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 1 if real is None else 0, 0]]).bool())
    assert kept.renumbered(start).tolist() == columns


def test_slot_of_skips_padding_slots_that_name_the_same_column():
    kept = Kept(torch.tensor([[2, 0, 2]]), torch.tensor([[False, True, True]]), 3)
    assert kept.slot_of(torch.tensor([2])).tolist() == [2]


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 5, 3), (3, 2, 5, 3), (3, 1, 5, 3)])
def test_take_gathers_along_the_sequence(shape: tuple[int, ...]):
    values = torch.randn(shape)
    index = torch.tensor([[0, 4], [1, 2]])
    taken = take(values, index)
    for row in range(2):
        source = values[..., row if shape[-3] == 2 else 0, :, :]
        assert torch.equal(taken[..., row, :, :], source[..., index[row], :])


def test_masks():
    valid, like = torch.tensor([[False, True, True]]), torch.zeros(1, 3, 2, dtype=torch.float16)
    assert causal_mask(None, 3, "sdpa", like) is None
    assert causal_mask(None, 3, "flash_attention_2", like) is None
    assert causal_mask(None, 1, "eager", like) is None
    assert causal_mask(valid, 3, "flash_attention_2", like) is valid
    seen = causal_mask(valid, 3, "sdpa", like)
    assert seen is not None
    # The padding query sees itself and nothing else; nobody else sees it.
    assert seen[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    additive = causal_mask(valid, 3, "eager", like)
    assert additive is not None
    assert additive.dtype == torch.float16
    assert torch.equal(additive == 0, seen)
    plain = causal_mask(None, 3, "eager", like)
    assert plain is not None
    assert torch.equal(plain[0, 0] == 0, torch.ones(3, 3).tril().bool())


def test_mask_of_later_tokens_is_causal_among_them():
    valid = torch.tensor([[False, True, True, True]])
    seen = causal_mask(valid, 2, "sdpa", torch.zeros(1, 2, 2))
    assert seen is not None
    assert seen[0, 0].tolist() == [[False, True, True, False], [False, True, True, True]]
