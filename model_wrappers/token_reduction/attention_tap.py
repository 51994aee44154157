"""Attention of a few query rows of one layer, under any kernel, without the L x L matrix.

sdpa and flash kernels return no attention weights, and asking transformers for them means switching every layer to
eager. The tap instead looks over the shoulder of one attention module: transformers finds a module's kernel by the name
in ``module.config`` in a public registry, so for one forward pass the module gets a copy of its config with the name of
a wrapper. The wrapper sees query and key after rotary embedding and cache update, computes the wanted rows, puts the
config back and calls the real kernel, whose result is untouched. Layers that are not tapped, and the tapped one when no
rows are wanted (decoding, text-only prompts), run exactly as without the tap.

The eager kernel is no entry of the registry, and needs none: it returns its weights, from which the rows are read.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError

_PREFIX = "token_tap_"  # put before the kernel's name: "flash" must stay in it, transformers looks for that


def attention_rows(query: Tensor, key: Tensor, rows: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Softmaxed attention of some query rows, in fp32.

    Args:
        query: (B, H, L, d) after rotary embedding.
        key: (B, H_kv, K, d) after rotary embedding; each key head serves H / H_kv neighbouring query heads.
        rows: (B, R) query rows.
        seen: (B, R, K) bool, the keys that each row may attend to.
        scaling: Factor of the logits, usually d ** -0.5.

    Returns:
        (B, H, R, K) float32; the last dimension sums to one.
    """
    batch, heads, _, size = query.shape
    wanted = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, size)).float()
    groups = wanted.reshape(batch, key.shape[1], -1, size)  # all rows of the heads that share a key: no key is repeated
    logits = groups @ key.float().transpose(-1, -2) * scaling
    logits = logits.reshape(batch, heads, rows.shape[1], -1)
    return logits.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)


class AttentionTap:
    """Reads attention rows of one attention module, one forward pass at a time.

    ``want`` before the pass, ``take`` after it; or ``measure``, without a pass of the model.
    """

    def __init__(self, attention: nn.Module, stack: ExitStack) -> None:
        """Hook ``attention`` (a decoder layer's ``self_attn``) until ``stack`` closes."""
        self._attention: Any = attention
        self._request: tuple[Tensor, Tensor] | None = None
        self._config: Any = None  # the module's own config while it carries the copy
        self._result: Tensor | None = None
        self.alone = False  # no attention output is wanted, only the rows
        stack.callback(self.reset)
        stack.callback(attention.register_forward_pre_hook(self._before).remove)
        stack.callback(attention.register_forward_hook(self._after).remove)

    def want(self, rows: Tensor, seen: Tensor) -> None:
        """Ask for rows (B, R) of the next forward pass, each attending to ``seen`` (B, R, K)."""
        self.reset()
        self._request = (rows, seen)

    def take(self) -> Tensor:
        """Return the rows (B, H, R, K) in float32 and forget them."""
        result, self._result = self._result, None
        if result is None:
            raise UnsupportedModelError(
                f"no attention rows came out of {type(self._attention).__name__}"
                f" with attention implementation {self._attention.config._attn_implementation!r}"
            )
        return result

    def measure(self, hidden: Tensor, rotary: Any, rows: Tensor, seen: Tensor) -> Tensor:
        """Compute rows of attention from the module's input, without running its kernel or touching the KV cache.

        Args:
            hidden: (B, L, d) after the layer's norm.
            rotary: (cos, sin) of the L tokens, as the module takes them.
            rows: (B, R) query rows.
            seen: (B, R, L) bool, the keys that each row may attend to.

        Returns:
            (B, H, R, L) float32, under every attention implementation.
        """
        self.want(rows, seen)
        self.alone = True
        try:
            self._point_to_wrapper()
            # Not the module's __call__: whoever records attention weights by hooks has not asked for this one.
            self._attention.forward(hidden, position_embeddings=rotary, attention_mask=None)
        finally:
            self.alone = False
            self._give_config_back()
        return self.take()

    def reset(self) -> None:
        """Forget requests and results, and give the module its config back (after an exception inside the layer)."""
        self._request = self._result = None
        self._give_config_back()

    def _give_config_back(self) -> None:
        if self._config is not None:
            self._attention.config = self._config
            self._config = None
            del self._attention._token_tap

    def _before(self, module: Any, _args: Any) -> None:
        """Point the module to the wrapper, for this one call."""
        self._give_config_back()  # still away if the last call failed and is being repeated
        if self._request is None or module.config._attn_implementation == "eager":
            return
        self._point_to_wrapper()

    def _point_to_wrapper(self) -> None:
        module = self._attention
        name = _PREFIX + module.config._attn_implementation
        if name not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(name, _tapped_attention)
        self._config = module.config
        module.config = copy.copy(module.config)
        module.config._attn_implementation = name
        module._token_tap = self

    def _after(self, module: Any, _args: Any, output: Any) -> None:
        """Read the rows from the weights that the eager kernel returned."""
        if self._request is None or module.config._attn_implementation != "eager":
            return
        (rows, _), self._request = self._request, None
        weights = output[1]
        if weights is not None:  # (B, H, L, K)
            index = rows[:, None, :, None].to(weights.device)
            index = index.expand(-1, weights.shape[1], -1, weights.shape[3])
            self._result = weights.gather(2, index).float()

    def intercept(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Compute the wanted rows; called by the wrapper before the real kernel."""
        self._give_config_back()
        if self._request is None:
            return
        (rows, seen), self._request = self._request, None
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        with torch.no_grad():
            self._result = attention_rows(query, key, rows.to(query.device), seen.to(query.device), scale)


def _tapped_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stand in for the kernel of a tapped module; has the signature of an entry of transformers' attention registry."""
    tap = module._token_tap
    tap.intercept(query, key, kwargs.get("scaling"))
    if tap.alone:
        return torch.zeros_like(query.transpose(1, 2)), None
    kernel = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    return kernel(module, query, key, value, *args, **kwargs)
