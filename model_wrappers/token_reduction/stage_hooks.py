"""The hooks that carry out the stages of a method inside the language model; see ``inside_llm`` for the idea."""

from __future__ import annotations

import inspect
import weakref
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session
from lmms_eval_stability.model_wrappers.token_reduction.beginning import Beginning
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.first_scores import FirstScores
from lmms_eval_stability.model_wrappers.token_reduction.prefill import Continuation, Prefill
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, causal_mask, take, visual_tokens
from lmms_eval_stability.model_wrappers.token_reduction.trace import Trail

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM, Stage


def _refuse_call(given: dict[str, Any]) -> None:
    """Refuse arguments of the backbone under which tokens would be dropped wrongly."""
    if given.get("input_ids") is None:
        raise UnsupportedCallError("token reduction needs input_ids to find the visual tokens, not inputs_embeds")
    if given.get("pixel_values_videos") is not None:
        raise UnsupportedCallError("token reduction does not support video: only tokens of images are dropped")
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise UnsupportedCallError("token reduction supports 2D attention masks (batch, length) only")
    if given.get("cache") is not None or given.get("cu_seq_lens_q") is not None:
        raise UnsupportedCallError("token reduction does not support packed sequences or paged caches")
    if cache is not None and not isinstance(cache, DynamicCache):
        raise UnsupportedCallError(f"token reduction supports the dynamic KV cache only, not {type(cache).__name__}")


class StageHooks:
    """The hooks of one attached method and their state."""

    def __init__(
        self,
        method: InsideLLM,
        stages: tuple[Stage, ...],
        model: Any,
        family: Family,
        session: Session,
        first_scores: FirstScores,
    ) -> None:
        self._method = method
        self._stages = stages
        self._session = session
        self._first_scores = first_scores
        self._decoder: Any = family.decoder(model)
        self._backbone = family.backbone(model)
        self._parameters = tuple(inspect.signature(self._backbone.forward).parameters)
        self._placeholders = torch.tensor(family.placeholder_ids(model.config))
        self._renumbers = method.renumbers and not _has_grid_positions(self._decoder.config)
        self._taps: dict[int, AttentionTap] = {}
        self._prefill: Prefill | None = None  # the latest one; stays for the decoding steps
        self._continuation: Continuation | None = None  # set in a pass that is not a prefill
        self._beginning: Beginning | None = None  # set in a prefill over the rest of prompts
        self._running = False
        # Masks and rotary embeddings are the same for all layers between two stages, so they are made once per pass.
        self._shared: dict[int, tuple[Any, Any]] = {}

    def install(self, stack: ExitStack) -> None:
        """Register all hooks; ``stack`` removes them."""
        if not self._stages:
            return
        layers, backbone = self._decoder.layers, self._backbone
        read = {stage.attention_layer for stage in self._stages if stage.attention_layer is not None}
        first = 0 if self._method.has_raters else min({stage.layer for stage in self._stages} | read)
        for index in read:
            self._taps[index] = AttentionTap(layers[index].self_attn, stack)
        for index in range(first, len(layers)):
            hook = partial(self._enter_layer, index)
            stack.callback(layers[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(backbone.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        stack.callback(backbone.register_forward_hook(self._end, always_call=True).remove)
        stack.callback(self._decoder.register_forward_hook(self._leave_decoder).remove)

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a pass of the backbone: find out whether it is a prefill, and where its visual tokens are."""
        if self._session.suspended:
            return
        # By name, however they were passed: LLaVA-NeXT gives input_ids by position.
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        _refuse_call(given)
        input_ids, mask, cache = given["input_ids"], given.get("attention_mask"), given.get("past_key_values")
        mask = None if mask is None else mask.to(input_ids.device).bool()
        self._reset()
        self._beginning = self._session.take_beginning()
        if self._beginning is not None:
            self._begin_prefill(self._beginning.input_ids, mask, given)
        elif cache is None or cache.get_seq_length() == 0:
            self._begin_prefill(input_ids, mask, given)
        else:
            self._begin_continuation(input_ids, mask, cache)
        self._running = True

    def _begin_prefill(self, input_ids: Tensor, mask: Tensor | None, given: dict[str, Any]) -> None:
        real = None if mask is None or bool(mask.all()) else mask
        query = self._session.query_columns(input_ids, real)
        visual = visual_tokens(input_ids, real, query, self._placeholders)
        batch, length = input_ids.shape
        start = Kept.everything(batch, length, real, input_ids.device)
        tokens = visual.sum(dim=1).tolist()
        self._prefill = Prefill(start, query, query[:, None], [1] * batch, visual, [[count] for count in tokens])
        self._prefill.scores = self._first_scores.of_rows(given, tokens)
        if self._session.tracing:
            self._prefill.trails = [Trail(row.nonzero().squeeze(1).tolist()) for row in visual]

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
        self._continuation = Continuation(new, appended, real)

    def _end(self, _module: Any, _args: Any, _output: Any) -> None:
        """Close the pass, also a failed one, so that a language model called on its own afterwards is left alone."""
        self._reset()

    def _reset(self) -> None:
        self._running = False
        self._continuation = self._beginning = None
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
            beginning = self._beginning
            if index == 0 and self._method.has_raters:
                self._pick_raters(hidden if beginning is None else beginning.join_embedded(hidden), prefill)
            if beginning is not None and index == beginning.layer:
                hidden = beginning.join(hidden)
                prefill.kept.append((index, prefill.start))
            for number, stage in enumerate(self._stages):
                if stage.layer == index:
                    hidden = self._drop(number, hidden, kwargs, prefill)
                elif stage.attention_layer == index and self._acting(number, prefill):
                    rows, seen = prefill.rating()
                    # Of layers before the first drop the queries are those of the rest alone, and all raters are there.
                    skipped = beginning.length if beginning is not None and index < beginning.layer else 0
                    self._taps[index].want(rows - skipped, seen)
        kept = prefill.at(index)
        if kept is None:
            return None
        changed = self._fit(kept, hidden, kwargs)
        return ((hidden, *args[1:]), changed) if args else (args, {**changed, "hidden_states": hidden})

    def _acting(self, number: int, prefill: Prefill) -> list[int]:
        """Return the rows of the batch that a stage changes."""
        return [index for index, row in enumerate(prefill.counts) if self._method.acts(number, row[0], row[-1])]

    @torch.no_grad()
    def _pick_raters(self, hidden: Tensor, prefill: Prefill) -> None:
        """Have the method pick the text tokens that rank: hidden states (B, L, d) at the input of the first layer."""
        acting = {index for number in range(len(self._stages)) for index in self._acting(number, prefill)}
        picked = []
        for index, (visual, query) in enumerate(zip(prefill.visual, prefill.query, strict=True)):
            if index not in acting:
                picked.append(query[None])
                continue
            columns = visual.nonzero().squeeze(1)
            row, first = hidden[index], int(columns[-1]) + 1
            if self._beginning is not None and prefill.start.valid is not None:  # padding may stand behind the image
                first += int((~prefill.start.valid[index, first:]).sum())
            raters = self._method.raters(row[columns.to(row.device)], row[first : int(query) + 1])
            picked.append(raters.to(columns.device) + first)
        prefill.raters_of_row = [len(raters) for raters in picked]
        most = max(prefill.raters_of_row)
        prefill.raters = torch.stack([torch.cat([row, row[-1:].expand(most - len(row))]) for row in picked])

    def _attention(self, number: int, hidden: Tensor, kwargs: dict[str, Any], prefill: Prefill) -> Tensor | None:
        """Return the attention (B, H, R, S) by which a stage ranks the slots of the sequence before it, if by any."""
        stage = self._stages[number]
        if stage.attention_layer is None:
            return None
        tap = self._taps[stage.attention_layer]
        if stage.attention_layer < stage.layer:
            return tap.take()
        layer, kept = self._decoder.layers[stage.layer], prefill.at(stage.layer)
        rotary = kwargs["position_embeddings"] if kept is None else self._rotary(kept, hidden, kwargs)
        with torch.no_grad():
            return tap.measure(layer.input_layernorm(hidden), rotary, *prefill.rating())

    def _drop(self, number: int, hidden: Tensor, kwargs: dict[str, Any], prefill: Prefill) -> Tensor:
        """Drop the tokens of one stage: hidden states (B, S, d) -> (B, S', d)."""
        acting = self._acting(number, prefill)
        if not acting:  # nothing to do must be exactly nothing: results stay equal to the base model's, bit by bit
            for row in prefill.counts:
                row.append(row[-1])
            for trail in prefill.trails:
                trail.step(self._stages[number].layer)
            return hidden
        attention, now = self._attention(number, hidden, kwargs, prefill), prefill.now
        visual = prefill.left()
        dropped, order = visual.clone(), now.slot_order()
        merges: list[tuple[int, Tensor, Tensor]] = []
        for index, row in enumerate(prefill.counts):
            slots = visual[index].nonzero().squeeze(1)
            stays, left = slots, None
            if index in acting:
                tokens = hidden[index, slots.to(hidden.device)]
                if attention is None:
                    text, before = prefill.text(index, hidden), prefill.scores.get(index)
                    left = self._method.reduce_by_text(number, row[0], tokens, *text, before)
                    prefill.scores[index] = left.scores
                else:
                    rows = attention[index, :, : prefill.raters_of_row[index]]
                    left = self._method.reduce(number, row[0], rows[..., slots.to(rows.device)], tokens)
                stays = slots[left.stays.to(slots.device)]
                if left.merged is not None and left.places is not None:
                    places = slots[left.places.to(slots.device)]
                    merges.append((index, places, left.merged))
                    # Behind the last visual token, in the order given, and before whatever follows it.
                    order[index, places] = order[index, slots[-1]] + 1 + torch.arange(len(places), device=slots.device)
                    stays = torch.cat([stays, places])
            dropped[index, stays] = False
            row.append(len(stays))
            if prefill.trails:
                prefill.trails[index].step(self._stages[number].layer, now.columns[index, slots].tolist(), left)
        if self._session.spectrum and prefill.entered is None:
            prefill.entered = hidden
        kept, slots = now.without(dropped, order)
        prefill.kept.append((self._stages[number].layer, kept))
        if merges:
            hidden = hidden.clone()
        for index, places, merged in merges:
            hidden[index, places.to(hidden.device)] = merged.to(hidden)
        return take(hidden, slots)

    def _fit(self, kept: Kept, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a decoder layer, changed to fit the tokens of ``kept``."""
        kernel = self._decoder.config._attn_implementation
        step = self._continuation
        if id(kept) not in self._shared:
            valid, new = (kept.valid, hidden.shape[1]) if step is None else (step.all_keys(kept), step.new)
            mask = causal_mask(valid, new, kernel, hidden)
            self._shared[id(kept)] = (mask, self._rotary(kept, hidden, kwargs))
        mask, rotary = self._shared[id(kept)]
        changed = {**kwargs, "attention_mask": mask, "position_embeddings": rotary}
        if step is None:
            # Positions are in the rotary embeddings. A flash kernel would take the gaps between kept positions for the
            # borders of several packed sequences, and cut the attention there without notice.
            changed["position_ids"] = None
        return changed

    def _rotary(self, kept: Kept, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        """Return the rotary embeddings (cos, sin) of the tokens of ``kept``, or of those that follow them."""
        start = self._prefill.start if self._prefill else kept
        if self._continuation is None:
            columns = kept.renumbered(start) if self._renumbers else kept.columns
            parts = kwargs["position_embeddings"]
            parts = parts if self._beginning is None else self._beginning.join_rotary(parts)
            return tuple(take(part, columns) for part in parts)
        if not self._renumbers:
            return kwargs["position_embeddings"]
        ids: Tensor = kwargs["position_ids"]
        gone = (start.lengths() - kept.lengths())[:, None]
        return self._decoder.rotary_emb(hidden, ids - gone.to(ids.device))

    def _leave_decoder(self, _module: Any, _args: Any, output: Any) -> Any:
        """After a prefill: note the statistics, and put the hidden states back to the length of the prompt."""
        prefill = self._prefill
        if not self._running or self._continuation is not None or prefill is None:
            return None
        layers = (0, *(stage.layer for stage in self._stages))
        found = zip(prefill.counts, prefill.ratios(), strict=True)
        rows = [RowTokens(layers, tuple(row), numbers) for row, numbers in found]
        self._session.record(rows, [trail.stages for trail in prefill.trails])
        if not prefill.kept:
            return None
        states = prefill.now.restore_length(output.last_hidden_state)
        output.last_hidden_state = states if self._beginning is None else states[:, self._beginning.length :]
        return output


def _has_grid_positions(config: Any) -> bool:
    """Return whether positions are coordinates of a grid (multimodal rotary embedding) instead of numbers."""
    names = ("rope_parameters", "rope_scaling")
    return any("mrope_section" in (getattr(config, name, None) or ()) for name in names)
