"""The tap's memory at LLaVA-NeXT's length: attention rows, never the L x L matrix."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap

VISUAL, TEXT, HEADS, SIZE = 2880, 60, 8, 16
LENGTH = VISUAL + TEXT


class Allocations(TorchDispatchMode):
    """Counts the elements of all tensors that operations make, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0
        self._seen: dict[int, Any] = {}  # kept alive, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_flatten((args, kwargs or {}))[0]:
            if isinstance(tensor, torch.Tensor):
                self._seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._seen:
                self._seen[tensor.untyped_storage().data_ptr()] = tensor
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.total += elements
                self.largest = max(self.largest, elements)
        return output


def allocated(kv_heads: int, rows: int, kernel: str) -> Allocations:
    """Run one decoder layer's attention over a whole prompt, with ``rows`` rows tapped."""
    config = LlamaConfig(
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        num_hidden_layers=1,
        attn_implementation=kernel,
        max_position_embeddings=4096,
    )
    attention = LlamaAttention(config, 0).eval()
    hidden = torch.randn(1, LENGTH, HEADS * SIZE)
    rotary = LlamaRotaryEmbedding(config)(hidden, torch.arange(LENGTH)[None])
    with torch.no_grad(), ExitStack() as stack:
        tap = AttentionTap(attention, stack)
        if rows:
            wanted = torch.arange(LENGTH - rows, LENGTH)[None]
            tap.want(wanted, torch.arange(LENGTH) <= wanted[..., None])
        with Allocations() as count:
            attention(hidden, position_embeddings=rotary, attention_mask=None)
        if rows:
            assert tap.take().shape == (1, HEADS, rows, LENGTH)
    return count


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("rows", [1, 40])
def test_memory_is_that_of_the_rows(kv_heads: int, rows: int) -> None:
    plain, tapped = (allocated(kv_heads, n, "sdpa") for n in (0, rows))
    own = HEADS * rows * LENGTH
    # logits, scaled, masked, their softmax, and the mask; keys in fp32 would be one more copy of the keys
    assert tapped.total - plain.total <= 6 * own + 2 * kv_heads * LENGTH * SIZE
    assert tapped.largest < LENGTH * LENGTH
    if rows > 1:
        assert tapped.total > plain.total + own  # what is measured is really counted


def test_the_whole_matrix_would_be_seen() -> None:
    assert allocated(HEADS, 0, "eager").largest >= HEADS * LENGTH * LENGTH
