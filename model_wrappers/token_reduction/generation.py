"""``generate`` under a token-reduction method: the end of the prompt is pinned, some modes are refused."""

from __future__ import annotations

import functools
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.base import Session
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.first_scores import FirstScores

#: Options of ``generate`` under which a cache with layers of different lengths, or a prefill in pieces, would go wrong.
_REFUSED = {
    "assistant_model": "assisted decoding",
    "prompt_lookup_num_tokens": "assisted decoding by prompt lookup",
    "assistant_early_exit": "assisted decoding by early exit",
    "use_mtp": "assisted decoding by multi-token prediction",
    "prefill_chunk_size": "chunked prefill",
    "custom_generate": "custom generation loops",
}
_CACHES = (None, "dynamic", "dynamic_full")


def patch_generate(model: Any, session: Session, scores: FirstScores, stack: ExitStack) -> None:
    """Wrap ``model.generate`` until ``stack`` closes.

    Without a KV cache every step of ``generate`` is a full forward pass over prompt and answer so far. Pinning the
    query to the prompt makes such a run select the same tokens as one with a cache, whatever was generated.
    """
    original = model.generate
    own = "generate" in vars(model)

    @functools.wraps(original)
    def generate(inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        _refuse_options(kwargs, generation_config, model.generation_config)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        if input_ids is None:
            raise UnsupportedCallError("token reduction needs input_ids to find the visual tokens, not inputs_embeds")
        if kwargs.get("pixel_values_videos") is not None:  # encoded before the first pass, which then does not see it
            raise UnsupportedCallError("token reduction does not support video: only tokens of images are dropped")
        pin = session.pin_query(_last_columns(input_ids, kwargs.get("attention_mask")))
        with nullcontext() if session.pinned else pin, scores.held({**kwargs, "input_ids": input_ids}):
            return original(inputs, generation_config, *args, **kwargs)

    def restore() -> None:
        if own:
            model.generate = original
        else:
            del model.generate

    model.generate = generate
    stack.callback(restore)


def _refuse_options(kwargs: dict[str, Any], *configs: Any) -> None:
    """Refuse by the value that ``generate`` will use: an argument, else the given config's, else the model's."""

    def value(option: str) -> Any:
        values = (kwargs.get(option), *(getattr(config, option, None) for config in configs))
        return next((value for value in values if value is not None), None)

    for option, words in _REFUSED.items():
        if value(option) not in (None, False):
            raise UnsupportedCallError(f"token reduction does not support {words} ({option})")
    cache = value("cache_implementation")
    if cache not in _CACHES:
        raise UnsupportedCallError(f"token reduction supports the dynamic KV cache only, not {cache!r}")


def _last_columns(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the column of each prompt's last token, which is the last one: (B, L) -> (B,)."""
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise UnsupportedCallError("token reduction needs prompts padded on the left to generate")
    return torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)
