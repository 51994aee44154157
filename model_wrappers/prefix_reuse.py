"""The keys and values of a prompt's beginning, image included, computed once for all questions about the image.

In these chat templates the image stands before the question, and causal attention lets no token see what follows it. So
the keys and values of everything up to the last visual token are the same for every question about an image: they are
computed in a pass of their own, alone in its batch, and every question goes on from a copy. Methods that act before
the language model have done all their work by then. Of those that act inside it only the layers before the first drop
are shared; see ``token_reduction.beginning``. In exact arithmetic nothing changes; in floating point the sums of
a pass over the whole prompt and of two passes differ in the last bits.

A batch is laid out as [padding, prefix, padding, question], so that the questions end together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lmms_eval_stability.model_wrappers.errors import UnsupportedInputError
from lmms_eval_stability.model_wrappers.families import Family
from lmms_eval_stability.model_wrappers.families.images import ImageInputs
from lmms_eval_stability.model_wrappers.lru import ByteLRU
from lmms_eval_stability.model_wrappers.prefix_cache import Prefix, PrefixMemory
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session
from lmms_eval_stability.model_wrappers.token_reduction.beginning import Beginning, Reached
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from lmms_eval_stability.model_wrappers.vision_reuse import VisionReuse, stand_in


@dataclass(frozen=True)
class Continuation:
    """What ``generate`` needs for a batch of questions whose prefixes are in a cache.

    Attributes:
        inputs: arguments of ``generate``: ids and mask of prefix and question, positions of the question, the cache.
        rows: visual tokens of each row, where a method acts before the language model.
        beginning: what the pass goes on from, where a method acts inside it.
    """

    inputs: dict[str, Any]
    rows: list[RowTokens | None]
    beginning: Beginning | None = None


class PrefixReuse:
    """The prefixes of the images seen last.

    Args:
        model: a transformers model.
        family: its architecture.
        vision: serves the images' features.
        limit: bytes of keys and values that are kept beyond the present batch.
    """

    def __init__(self, model: Any, family: Family, vision: VisionReuse, limit: int) -> None:
        self._model, self._vision = model, vision
        self._backbone = family.backbone(model)
        self._decoder: Any = family.decoder(model)
        self._grid_positions = hasattr(self._backbone, "get_rope_index")
        self._placeholders = torch.tensor(family.placeholder_ids(model.config))
        self._kept: ByteLRU[Prefix] = ByteLRU(limit)
        self._memory = PrefixMemory()

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._memory.clear()

    def batch(
        self, text: Mapping[str, Tensor], images: Sequence[Sequence[ImageInputs]], session: Session | None, more: int
    ) -> Continuation:
        """Return a batch of questions on their prefixes.

        Args:
            text: the processor's inputs of the whole prompts on the model's device, padded on the left.
            images: of each row, at least one.
            session: of the method that is attached to the model, if any.
            more: tokens that will be generated at most.
        """
        present: dict[Any, Prefix] = {}
        prefixes, questions = [], []
        for row, own in enumerate(images):
            real = text["attention_mask"][row].bool()
            ids = text["input_ids"][row][real]
            end = self._end_of_images(ids)
            typed = text["mm_token_type_ids"][row][real][:end] if "mm_token_type_ids" in text else None
            key = (tuple(image.key for image in own), tuple(ids[:end].tolist()))
            if key not in present:
                present[key] = self._kept.get(
                    key, lambda ids=ids[:end], typed=typed, own=own: self._compute(ids, typed, own, session)
                )
            prefixes.append(present[key])
            questions.append(ids[end:])
        inputs, beginning = self._inputs(prefixes, questions, more), None
        reached = [prefix.reached for prefix in prefixes if prefix.reached is not None]
        if reached:
            beginning = Beginning(len(prefixes[0].layers), inputs["input_ids"], reached)
        return Continuation(inputs, [prefix.row for prefix in prefixes], beginning)

    def _end_of_images(self, ids: Tensor) -> int:
        places = torch.isin(ids, self._placeholders.to(ids.device)).nonzero()
        end = int(places[-1]) + 1 if len(places) else 0
        if end == 0 or end == len(ids):
            raise UnsupportedInputError(
                f"reuse=prefix needs text behind the image, but the last visual token is number {end} of {len(ids)};"
                " use reuse=vision"
            )
        return end

    def _compute(
        self, ids: Tensor, typed: Tensor | None, images: Sequence[ImageInputs], session: Session | None
    ) -> Prefix:
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        if typed is not None:
            inputs["mm_token_type_ids"] = typed[None]
        inputs |= stand_in(images, ids.device, self._model.dtype)
        cache, reached, row = DynamicCache(), None, None
        with torch.inference_mode(), self._vision.serving(images):
            run = partial(self._model, **inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if session is not None and isinstance(session.method, InsideLLM):
                with session.suspension():
                    reached = _run_before(session.method.first_drop(len(self._decoder.layers)), self._decoder, run)
            else:
                run()
                row = session.rows[0] if session is not None else None
        length = cache.get_seq_length()
        if length != len(ids):  # which placeholders are left does not matter: nothing reads them but counts
            ids = self._without_dropped(ids, len(ids) - length)
        delta = int(self._backbone.rope_deltas.flatten()[0]) if self._grid_positions else 0
        layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        return Prefix(ids, layers, length + delta, row, reached)

    def _without_dropped(self, ids: Tensor, count: int) -> Tensor:
        """Take ``count`` placeholders out of the ids of a prefix."""
        places = torch.isin(ids, self._placeholders.to(ids.device)).nonzero().flatten()
        stays = torch.ones_like(ids, dtype=torch.bool)
        stays[places[:count]] = False
        return ids[stays]

    def _inputs(self, prefixes: list[Prefix], questions: Sequence[Tensor], more: int) -> dict[str, Any]:
        longest = max(len(prefix.ids) for prefix in prefixes)
        width = max(len(question) for question in questions)
        device = questions[0].device
        ids = torch.zeros(len(prefixes), longest + width, dtype=torch.long, device=device)
        mask, positions = torch.zeros_like(ids), torch.zeros(len(prefixes), width, dtype=torch.long, device=device)
        for row, (prefix, question) in enumerate(zip(prefixes, questions, strict=True)):
            ids[row, longest - len(prefix.ids) : longest] = prefix.ids
            mask[row, longest - len(prefix.ids) : longest] = 1
            ids[row, -len(question) :] = question
            mask[row, -len(question) :] = 1
            following = torch.arange(len(question), device=device)
            positions[row, -len(question) :] = prefix.next_position + following
        if self._grid_positions:  # count of tokens, then time, row and column, which are one behind an image
            counted = (mask.cumsum(1) - 1)[:, longest:].clamp(min=0)
            positions = torch.stack([counted, positions, positions, positions])
        cache = self._memory.begin_with(prefixes, -(-(width + more) // 32) * 32)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}


def _run_before(layer: int, decoder: Any, run: Callable[[], Any]) -> Reached:
    """Run a model of one prompt with the decoder layers before ``layer`` only; return what would enter that layer."""
    layers, seen = decoder.layers, {}

    def enter_first(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen["embedded"] = (args[0] if args else kwargs["hidden_states"])[0]
        seen["rotary"] = tuple(kwargs["position_embeddings"])

    def leave_last(_module: Any, args: Any) -> None:
        seen["states"] = args[0][0]

    hooks = [layers[0].register_forward_pre_hook(enter_first, with_kwargs=True)]
    hooks.append(decoder.norm.register_forward_pre_hook(leave_last))
    decoder.layers = layers[:layer]
    try:
        run()
    finally:
        decoder.layers = layers
        for hook in hooks:
            hook.remove()
    return Reached(**seen)
