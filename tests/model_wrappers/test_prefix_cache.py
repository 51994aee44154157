"""Caches that begin with prefixes: what successive batches find in one piece of memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import torch

from lmms_eval_stability.model_wrappers.prefix_cache import Prefix, PrefixMemory, RoomyLayer

LAYERS, HEADS, SIZE = 2, 3, 4


def prefix(seed: int, length: int) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        (torch.randn(HEADS, length, SIZE, generator=generator), torch.randn(HEADS, length, SIZE, generator=generator))
        for _ in range(LAYERS)
    ]
    return Prefix(torch.arange(length), layers, length)


def padded(prefixes: Sequence[Prefix], layer: int, part: int) -> torch.Tensor:
    longest = max(len(one.ids) for one in prefixes)
    rows = [one.layers[layer][part] for one in prefixes]
    return torch.stack([torch.nn.functional.pad(row, (0, 0, longest - row.shape[1], 0)) for row in rows])


def test_every_batch_begins_with_its_own_prefixes_whatever_was_there_before() -> None:
    """Rows that stay, change, are fewer, more, longer, shorter; and questions that were written behind them."""
    known, memory = [prefix(seed, 3 + seed % 4) for seed in range(8)], PrefixMemory()
    orders = ([0, 0, 1], [0, 0, 1], [0, 2], [0, 2, 1], [4], [3, 3, 3, 7], [5, 6, 3, 7], [7, 7, 7, 7], [0, 4, 0, 4])
    for room, order in enumerate(orders, start=2):
        chosen = [known[number] for number in order]
        cache = memory.begin_with(chosen, room)
        for number, layer in enumerate(cache.layers):
            assert torch.equal(layer.keys, padded(chosen, number, 0))
            assert torch.equal(layer.values, padded(chosen, number, 1))
        question = torch.full((len(chosen), HEADS, room, SIZE), float("nan"))
        for number, layer in enumerate(cache.layers):
            keys, _ = layer.update(question, question)
            start = padded(chosen, number, 0)
            assert torch.equal(keys[:, :, :-room], start)
            assert keys.shape[2] == start.shape[2] + room


def test_memory_is_reserved_once_and_a_row_that_stays_is_not_copied() -> None:
    one, two, memory = prefix(1, 6), prefix(2, 5), PrefixMemory()
    first: RoomyLayer = memory.begin_with([one, two], 4).layers[0]
    address = first.all_keys.data_ptr()
    first.all_keys[0, 0, 0, 0] = 7.0  # would be overwritten by a copy
    second: RoomyLayer = memory.begin_with([one, one], 4).layers[0]
    assert second.all_keys.data_ptr() == address
    assert second.all_keys[0, 0, 0, 0] == 7.0
    assert torch.equal(second.keys[1], one.layers[0][0])
    fewer: RoomyLayer = memory.begin_with([two], 3).layers[0]
    assert fewer.all_keys.data_ptr() == address
    assert torch.equal(fewer.keys[0], two.layers[0][0])
    wider: RoomyLayer = memory.begin_with([one, two], 5).layers[0]
    assert wider.all_keys.shape[2] == 11


def test_more_tokens_than_were_announced_are_kept_too() -> None:
    one, memory = prefix(1, 6), PrefixMemory()
    layer = memory.begin_with([one], 1).layers[0]
    more = torch.ones(1, HEADS, 2, SIZE)
    for _ in range(2):
        keys, _ = layer.update(more, more)
    assert torch.equal(keys, torch.cat([one.layers[0][0][None], more, more], dim=2))
    again = memory.begin_with([one], 1).layers[0]
    assert torch.equal(again.keys[0], one.layers[0][0])


def test_prefixes_are_not_kept_alive() -> None:
    one, memory = prefix(1, 6), PrefixMemory()
    memory.begin_with([one], 4)
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
    other = prefix(3, 6)
    assert torch.equal(memory.begin_with([other], 4).layers[0].keys[0], other.layers[0][0])
