"""Dropping visual tokens between decoder layers of a transformers vision-language model, without touching its code.

Everything hangs on pre-hooks of the decoder layers: the one where a stage acts shortens the hidden states, and every
later one rewrites what the model passes to all layers alike (rotary embeddings, mask, position ids) to fit. The cache
needs no care, because each of its layers grows by what that layer is given; ``generate`` asks only the first layer for
the length, which is never shortened. The language model's output is put back to the length of the prompt, so that
logits, labels and ``logits_to_keep`` mean what they always mean; logits at dropped tokens are those of a zero vector.

What is refused, because it would be wrong without notice: static, sliding-window and quantised caches, assisted
decoding, chunked prefill, ``inputs_embeds``, new images on a filled cache, flex attention, compiled models.
"""

from __future__ import annotations

import inspect
import weakref
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.errors import (
    InvalidParameterError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from lmms_eval_stability.model_wrappers.token_reduction.generation import patch_generate
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, causal_mask, take


@dataclass(frozen=True)
class Stage:
    """One place where tokens are dropped.

    Attributes:
        layer: Decoder layer (from 0) at whose input the tokens are dropped; at least 1.
        attention_layer: Layer before it whose attention ranks the tokens.
    """

    layer: int
    attention_layer: int


@dataclass(frozen=True)
class InsideLLM(TokenReducer):
    """Base of the methods that act inside the language model.

    A method says where it acts and how it ranks; hooks, masks, positions, cache, batches and statistics are done here.
    Tokens keep their original positions. Only tokens of the prompt are dropped, in the prefill.
    """

    @abstractmethod
    def stages(self, depth: int) -> tuple[Stage, ...]:
        """Return where the method acts in a language model of ``depth`` layers, in the order of layers."""

    @abstractmethod
    def keep_count(self, stage: int, entered: int, now: int) -> int:
        """Return how many visual tokens leave a stage.

        Args:
            stage: Index into ``stages``.
            entered: Visual tokens of the prompt, all images together.
            now: Visual tokens that are left before this stage.
        """

    @abstractmethod
    def score(self, attention: Tensor) -> Tensor:
        """Rank visual tokens: attention (H, R, N) of the query rows to them -> scores (N,), high means keep."""

    @abstractmethod
    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the indices of the ``n`` tokens to keep, ascending: (N,) -> (n,)."""

    def install(self, model: Any, family: Family, session: Session, stack: ExitStack) -> None:
        """Check that the model fits and hook its layers."""
        decoder: Any = family.decoder(model)
        depth = len(decoder.layers)
        stages = self.stages(depth)
        for stage in stages:
            if not 1 <= stage.layer < depth:
                raise InvalidParameterError(
                    f"{self}: cannot drop tokens before layer {stage.layer}; the language model has {depth} layers,"
                    f" so it must be 1 to {depth - 1}"
                )
        _refuse_model(model, decoder)
        patch_generate(model, session, stack)
        _Engine(self, stages, model, family, session).install(stack)


def _refuse_model(model: Any, decoder: Any) -> None:
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise UnsupportedModelError("token reduction does not work on a model wrapped by torch.compile")
    config = decoder.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or getattr(config, "sliding_window", None):
        raise UnsupportedModelError(
            "token reduction inside the language model does not support sliding-window attention: its windows would be"
            " counted over the tokens that are left"
        )
    kernel = config._attn_implementation
    if kernel not in ("eager", "sdpa") and ("flash" not in kernel or "|" in kernel):
        raise UnsupportedModelError(
            f"token reduction supports the attention implementations eager, sdpa and flash, not {kernel!r}"
        )


def _refuse_call(given: dict[str, Any]) -> None:
    """Refuse arguments of the backbone under which tokens would be dropped wrongly."""
    if given.get("input_ids") is None:
        raise UnsupportedCallError("token reduction needs input_ids to find the visual tokens, not inputs_embeds")
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise UnsupportedCallError("token reduction supports 2D attention masks (batch, length) only")
    if given.get("cache") is not None or given.get("cu_seq_lens_q") is not None:
        raise UnsupportedCallError("token reduction does not support packed sequences or paged caches")
    if cache is not None and not isinstance(cache, DynamicCache):
        raise UnsupportedCallError(f"token reduction supports the dynamic KV cache only, not {type(cache).__name__}")


@dataclass
class _Prefill:
    """One prefill, and what the decoding steps that follow it must know.

    Attributes:
        start: The sequence as it enters the language model.
        query: (B,) column of the query token.
        visual: (B, L) bool, the visual tokens of the prompt.
        counts: Visual tokens of each row: those of the prompt, then after each stage.
        kept: The latest shortened sequence and the layer where it begins, for each stage that dropped something.
        cache: The KV cache that this prefill filled; not kept alive.
    """

    start: Kept
    query: Tensor
    visual: Tensor
    counts: list[list[int]]
    kept: list[tuple[int, Kept]] = field(default_factory=list)
    cache: Callable[[], Any] = lambda: None

    @property
    def now(self) -> Kept:
        """The sequence after the stages so far."""
        return self.kept[-1][1] if self.kept else self.start

    def at(self, layer: int) -> Kept | None:
        """Return the shortened sequence that enters ``layer``, or None if nothing has been dropped before it."""
        return next((kept for first, kept in reversed(self.kept) if first <= layer), None)


@dataclass
class _Continuation:
    """Tokens after a prefill: ``new`` of them in this pass, (B, appended) real or not altogether; None if all are."""

    new: int
    appended: int
    real: Tensor | None


class _Engine:
    """The hooks of one attached method and their state."""

    def __init__(
        self, method: InsideLLM, stages: tuple[Stage, ...], model: Any, family: Family, session: Session
    ) -> None:
        self._method = method
        self._stages = stages
        self._session = session
        self._decoder: Any = family.decoder(model)
        self._backbone = family.backbone(model)
        self._parameters = tuple(inspect.signature(self._backbone.forward).parameters)
        self._placeholders = torch.tensor(family.placeholder_ids(model.config))
        self._taps: dict[int, AttentionTap] = {}
        self._prefill: _Prefill | None = None  # the latest one; stays for the decoding steps
        self._continuation: _Continuation | None = None  # set in a pass that is not a prefill
        self._running = False
        # Masks and rotary embeddings are the same for all layers between two stages, so they are made once per pass.
        self._shared: dict[int, tuple[Any, Any]] = {}

    def install(self, stack: ExitStack) -> None:
        """Register all hooks; ``stack`` removes them."""
        if not self._stages:
            return
        layers, backbone = self._decoder.layers, self._backbone
        first = min(stage.attention_layer for stage in self._stages)
        for index in {stage.attention_layer for stage in self._stages}:
            self._taps[index] = AttentionTap(layers[index].self_attn, stack)
        for index in range(first, len(layers)):
            hook = partial(self._enter_layer, index)
            stack.callback(layers[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(backbone.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        stack.callback(backbone.register_forward_hook(self._end, always_call=True).remove)
        stack.callback(self._decoder.register_forward_hook(self._leave_decoder).remove)

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a pass of the backbone: find out whether it is a prefill, and where its visual tokens are."""
        # By name, however they were passed: LLaVA-NeXT gives input_ids by position.
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        _refuse_call(given)
        input_ids, mask, cache = given["input_ids"], given.get("attention_mask"), given.get("past_key_values")
        mask = None if mask is None else mask.to(input_ids.device).bool()
        self._reset()
        if cache is None or cache.get_seq_length() == 0:
            self._begin_prefill(input_ids, mask)
        else:
            self._begin_continuation(input_ids, mask, cache)
        self._running = True

    def _begin_prefill(self, input_ids: Tensor, mask: Tensor | None) -> None:
        real = None if mask is None or bool(mask.all()) else mask
        query = self._session.query_columns(input_ids, real)
        visual = torch.isin(input_ids, self._placeholders.to(input_ids.device))
        # Not after the query: without a cache those are generated tokens, which may have a placeholder's id by chance.
        visual &= torch.arange(input_ids.shape[1], device=input_ids.device) < query[:, None]
        if real is not None:
            visual &= real
        batch, length = input_ids.shape
        start = Kept.everything(batch, length, real, input_ids.device)
        self._prefill = _Prefill(start, query, visual, [[count] for count in visual.sum(dim=1).tolist()])

    def _begin_continuation(self, input_ids: Tensor, mask: Tensor | None, cache: Any) -> None:
        prefill = self._prefill
        if prefill is None or prefill.cache() is not cache:
            raise UnsupportedCallError(
                "this KV cache was not filled by the latest prefill with the method attached, so it is unknown which"
                " tokens it holds"
            )
        new = input_ids.shape[1]
        # One token at a time is decoding, where a placeholder's id can only be an unlucky choice of the model.
        if new > 1 and bool(torch.isin(input_ids, self._placeholders.to(input_ids.device)).any()):
            raise UnsupportedCallError("token reduction does not support new images on a filled KV cache")
        length = prefill.start.columns_total
        appended = cache.get_seq_length() + new - length
        real = None if mask is None or bool(mask[:, length:].all()) else mask[:, length:]
        self._continuation = _Continuation(new, appended, real)

    def _end(self, _module: Any, _args: Any, _output: Any) -> None:
        """Close the pass, also a failed one, so that a language model called on its own afterwards is left alone."""
        self._reset()

    def _reset(self) -> None:
        self._running = False
        self._continuation = None
        self._shared.clear()
        for tap in self._taps.values():
            tap.reset()

    def _enter_layer(self, index: int, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before decoder layer ``index``: drop tokens if a stage acts here, fit the arguments to the tokens left."""
        prefill = self._prefill
        if not self._running or prefill is None:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if self._continuation is None:
            cache = kwargs.get("past_key_values")
            if cache is not None:  # where the caller gave none, the language model has made one
                prefill.cache = weakref.ref(cache)
            for number, stage in enumerate(self._stages):
                if stage.layer == index:
                    hidden = self._drop(number, hidden, prefill)
                if stage.attention_layer == index:
                    self._listen(number, prefill)
        kept = prefill.at(index)
        if kept is None:
            return None
        changed = self._fit(kept, hidden, kwargs)
        return ((hidden, *args[1:]), changed) if args else (args, {**changed, "hidden_states": hidden})

    def _goals(self, number: int, prefill: _Prefill) -> list[int]:
        return [min(row[-1], self._method.keep_count(number, row[0], row[-1])) for row in prefill.counts]

    def _listen(self, number: int, prefill: _Prefill) -> None:
        """Have the attention of this layer read, if the stage that needs it will drop anything."""
        if self._goals(number, prefill) == [row[-1] for row in prefill.counts]:
            return
        now = prefill.now
        rows = now.slot_of(prefill.query)[:, None]
        seen = torch.arange(now.columns.shape[1], device=rows.device) <= rows[..., None]
        if now.valid is not None:
            seen = seen & now.valid[:, None]
        self._taps[self._stages[number].attention_layer].want(rows, seen)

    def _drop(self, number: int, hidden: Tensor, prefill: _Prefill) -> Tensor:
        """Drop the tokens of one stage: hidden states (B, S, d) -> (B, S', d)."""
        goals, before = self._goals(number, prefill), [row[-1] for row in prefill.counts]
        for row, goal in zip(prefill.counts, goals, strict=True):
            row.append(goal)
        if goals == before:  # nothing to do must be exactly nothing: results stay equal to the base model's, bit by bit
            return hidden
        stage, now = self._stages[number], prefill.now
        attention = self._taps[stage.attention_layer].take()
        visual = prefill.visual.gather(1, now.columns)
        if now.valid is not None:
            visual &= now.valid
        dropped = visual.clone()
        for index, goal in enumerate(goals):
            stays = visual[index].nonzero().squeeze(1)
            if goal < len(stays):
                scores = self._method.score(attention[index][..., stays.to(attention.device)])
                stays = stays[self._method.select(scores, goal).to(stays.device)]
            dropped[index, stays] = False
        kept, slots = now.without(dropped)
        prefill.kept.append((stage.layer, kept))
        return take(hidden, slots)

    def _fit(self, kept: Kept, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a decoder layer, changed to fit the tokens of ``kept``."""
        kernel = self._decoder.config._attn_implementation
        step = self._continuation
        if id(kept) not in self._shared:
            if step is None:
                mask = causal_mask(kept.valid, hidden.shape[1], kernel, hidden)
                positions = tuple(take(part, kept.columns) for part in kwargs["position_embeddings"])
            else:
                mask = causal_mask(_all_keys(kept, step), step.new, kernel, hidden)
                positions = kwargs["position_embeddings"]
            self._shared[id(kept)] = (mask, positions)
        mask, positions = self._shared[id(kept)]
        changed = {**kwargs, "attention_mask": mask, "position_embeddings": positions}
        if step is None:
            # Positions are in the rotary embeddings. A flash kernel would take the gaps between kept positions for the
            # borders of several packed sequences, and cut the attention there without notice.
            changed["position_ids"] = None
        return changed

    def _leave_decoder(self, _module: Any, _args: Any, output: Any) -> Any:
        """After a prefill: note the statistics, and put the hidden states back to the length of the prompt."""
        prefill = self._prefill
        if not self._running or self._continuation is not None or prefill is None:
            return None
        layers = (0, *(stage.layer for stage in self._stages))
        self._session.record([RowTokens(layers, tuple(row)) for row in prefill.counts])
        if not prefill.kept:
            return None
        output.last_hidden_state = prefill.now.restore_length(output.last_hidden_state)
        return output


def _all_keys(kept: Kept, step: _Continuation) -> Tensor | None:
    """Return which of all keys of a shortened layer are real, (B, S + appended), or None if decoding needs no mask."""
    if kept.valid is None and step.real is None and step.new == 1:
        return None
    prompt = torch.ones_like(kept.columns, dtype=torch.bool) if kept.valid is None else kept.valid
    after = prompt.new_ones(len(prompt), step.appended) if step.real is None else step.real
    return torch.cat([prompt, after], dim=1)
