"""The patches that have a model answer shortened prompts; see ``before_llm`` for the idea."""

from __future__ import annotations

import functools
import inspect
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.families.images import ImageLayout
from lmms_eval_stability.model_wrappers.lru import storage_bytes
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.ipr import ratios_of_images, with_ratios
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, take
from lmms_eval_stability.model_wrappers.token_reduction.short_prompt import (
    ShortPrompt,
    gathered,
    images_per_row,
    per_beam,
    positions_of,
    with_prompt,
)
from lmms_eval_stability.model_wrappers.token_reduction.trace import (
    RowTrace,
    StageTrace,
    image_trace,
    row_traces,
    smaller_image_trace,
)
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView, Wanted, encode_images

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM, Compressed

_UNSUPPORTED = {
    "inputs_embeds": "inputs_embeds: the visual tokens could not be found",
    "pixel_values_videos": "video: only images are shortened before the language model",
    "mm_encoder_outputs": "mm_encoder_outputs: the images must be encoded under the method's eyes",
    "position_ids": "position_ids: those of a shortened prompt are not the caller's",
    "max_length": "max_length, which counts the prompt: give max_new_tokens",
    "min_length": "min_length, which counts the prompt: give min_new_tokens",
    "assistant_model": "assisted decoding",
    "custom_generate": "custom generation loops",
}
_DEFAULT_MAX_LENGTH = 20  # of a generation config, in older releases of transformers


@dataclass(frozen=True)
class _Left:
    """What is left of one image, kept for its next question: ``part`` is None if it was left as it is."""

    part: Compressed | None
    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.tokens, None if self.part is None else self.part.kept)


@dataclass(frozen=True)
class _Images:
    """The images of a batch after the method: encoded and compressed, or smaller and not yet encoded."""

    layouts: Sequence[ImageLayout]  # before it
    per_row: list[int]
    parts: Sequence[Compressed | None] = ()  # what is left of each image; None: as it was
    output: Any = None  # what get_image_features returned, with what is left of the features
    smaller: dict[str, Any] = field(default_factory=dict)  # inputs that replace the images
    smaller_layouts: Sequence[ImageLayout] = ()
    smaller_numbers: Sequence[Mapping[str, float]] = ()  # about each smaller image

    def stays(self) -> Tensor:
        """Return which of all images' placeholders stay: (visual tokens of the batch,) bool."""
        if self.smaller:
            pairs = zip(self.layouts, self.smaller_layouts, strict=True)
            return torch.cat([torch.arange(full.tokens) < left.tokens for full, left in pairs])
        stays = [torch.zeros(layout.tokens, dtype=torch.bool) for layout in self.layouts]
        for mask, part in zip(stays, self.parts, strict=True):
            mask[slice(None) if part is None else part.kept.cpu()] = True
        return torch.cat(stays)

    def traces(self) -> list[RowTrace]:
        """Return the trace of each row."""
        if self.smaller:
            found = [smaller_image_trace(*pair) for pair in zip(self.layouts, self.smaller_layouts, strict=True)]
        else:
            found = [image_trace(*pair) for pair in zip(self.layouts, self.parts, strict=True)]
        return row_traces(found, [layout.tokens for layout in self.layouts], self.per_row)

    def diagnostics(self) -> list[dict[str, tuple[float | None, ...]]]:
        """Return the method's numbers of each row: by name, one per image; None where it has no finite one."""
        found = list(self.smaller_numbers) or [{} if part is None else part.diagnostics for part in self.parts]
        names = list(dict.fromkeys(name for numbers in found for name in numbers))
        rows: list[dict[str, tuple[float | None, ...]]] = []
        start = 0
        for count in self.per_row:
            own = found[start : start + count]
            rows.append({name: tuple(_finite(numbers.get(name)) for numbers in own) for name in names if own})
            start += count
        return rows


class Shortening:
    """The patches of one attached method."""

    def __init__(self, method: BeforeLLM, model: Any, family: Family, session: Session) -> None:
        self._method = method
        self._model = model
        self._family = family
        self._session = session
        self._backbone: Any = family.backbone(model)
        self._parameters = tuple(inspect.signature(self._backbone.forward).parameters)
        self._placeholders = torch.tensor(family.placeholder_ids(model.config))
        self._generating = False
        self._rows: int | None = None  # of the running pass: prompts times beams
        self._running: ShortPrompt | None = None  # in a plain forward pass
        self._latest: ShortPrompt | None = None  # of the latest plain forward pass, for what continues it
        self._pass = ExitStack()  # what must be undone when the running pass of the backbone ends

    def install(self, stack: ExitStack) -> None:
        """Patch; ``stack`` holds the way back."""
        self._patch_generate(stack)
        stack.callback(self._backbone.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        stack.callback(self._backbone.register_forward_hook(self._end, always_call=True).remove)
        stack.callback(lambda: self._pass.close())

    def _patch_generate(self, stack: ExitStack) -> None:
        original = self._model.generate

        @functools.wraps(original)
        def generate(inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
            if self._session.suspended:
                return original(inputs, generation_config, *args, **kwargs)
            given = {**kwargs, **({} if inputs is None else {"input_ids": inputs})}
            _refuse(given)
            if given.get("input_ids") is None:
                raise UnsupportedCallError("token reduction needs input_ids to find the visual tokens")
            mask = given.get("attention_mask")
            if mask is not None and not bool(mask[:, -1].all()):
                raise UnsupportedCallError("token reduction needs prompts padded on the left to generate")
            if getattr(generation_config, "max_length", None) not in (None, _DEFAULT_MAX_LENGTH):
                raise UnsupportedCallError(f"token reduction does not support {_UNSUPPORTED['max_length']}")
            short = self._shorten(given)
            self._generating = True
            try:
                if short is None:
                    return original(inputs, generation_config, *args, **kwargs)
                with self._standing_in(short):
                    result = original(None, generation_config, *args, **{**given, **short.inputs})
            finally:
                self._generating = False
            return with_prompt(result, given["input_ids"], short.inputs["input_ids"].shape[1])

        _set_attribute(self._model, "generate", generate, stack)

    def _shorten(self, given: dict[str, Any]) -> ShortPrompt | None:
        """Encode and shorten the images of a batch; None if the model should run as if there were no method."""
        input_ids, mask = given["input_ids"], given.get("attention_mask")
        real = None if mask is None else mask.to(input_ids.device).bool()
        real = None if real is None or bool(real.all()) else real
        visual = torch.isin(input_ids, self._placeholders.to(input_ids.device))
        if real is not None:
            visual &= real
        before = visual.sum(dim=1).tolist()
        if given.get("pixel_values") is None or not self._method.drops_tokens:
            self._record(before, before, None)
            return None
        images = self._reduce(given, before)
        dropped = torch.zeros_like(visual)
        dropped[visual] = ~images.stays().to(visual.device)
        self._record(before, (visual & ~dropped).sum(dim=1).tolist(), images)
        if not bool(dropped.any()):
            return None
        kept, slots = Kept.everything(len(input_ids), input_ids.shape[1], real, input_ids.device).without(dropped)
        changed = {**gathered(given, kept, slots), **images.smaller}
        short = ShortPrompt(changed, kept, images.per_row, images.output)
        if images.output is not None:
            self._place(short, given, real, slots)
        return short

    def _reduce(self, given: dict[str, Any], tokens: Sequence[int]) -> _Images:
        """Encode and compress the images, or make them smaller; ``tokens`` are the visual tokens of each row."""
        layouts = self._family.image_layouts(self._model, given)
        per_row = images_per_row(tokens, [layout.tokens for layout in layouts])
        smaller = self._method.smaller_images(self._model, self._family, given)
        if smaller is not None:
            fewer = self._family.image_layouts(self._model, smaller)
            numbers = self._compared(given, layouts, smaller, fewer) if self._session.spectrum else ()
            return _Images(layouts, per_row, smaller=smaller, smaller_layouts=fewer, smaller_numbers=numbers)
        vision = self._session.vision
        if vision is not None and vision.served is not None and not self._session.tracing:
            left = vision.each(f"left by {self._method}", self._compress_alone)
            output = BaseModelOutputWithPooling(pooler_output=[one.tokens for one in left])
            return _Images(layouts, per_row, [one.part for one in left], output)
        output, views, parts = self._compress(given, layouts)
        pairs = zip(views, parts, strict=True)
        output.pooler_output = [view.tokens if part is None else part.features for view, part in pairs]
        return _Images(layouts, per_row, parts, output)

    def _compress(
        self, given: Mapping[str, Any], layouts: Sequence[ImageLayout]
    ) -> tuple[Any, list[ImageView], list[Compressed | None]]:
        wanted = self._method.wanted(self._model, self._family)
        output, views = encode_images(self._model, self._family, given, layouts, wanted)
        with torch.no_grad():
            parts = [self._method.compress(view) for view in views]
            if self._session.spectrum:
                parts = [with_ratios(*pair) for pair in zip(views, parts, strict=True)]
        return output, views, parts

    def _compared(
        self,
        given: Mapping[str, Any],
        layouts: Sequence[ImageLayout],
        smaller: Mapping[str, Any],
        fewer: Sequence[ImageLayout],
    ) -> Sequence[Mapping[str, float]]:
        """Encode images in both sizes, for their numbers alone."""
        pairs = ((given, layouts), (smaller, fewer))
        before, after = (encode_images(self._model, self._family, *pair, Wanted())[1] for pair in pairs)
        return [ratios_of_images(*pair) for pair in zip(before, after, strict=True)]

    def _compress_alone(self, image: Mapping[str, Any]) -> _Left:
        _, (view,), (part,) = self._compress(image, self._family.image_layouts(self._model, image))
        # Where tokens come from is asked for traces only, and would keep everything alive that the method has read.
        part = None if part is None else replace(part, origin=None)
        return _Left(part, view.tokens if part is None else part.features)

    def _record(self, before: Sequence[int], after: Sequence[int], images: _Images | None) -> None:
        # A pin has one entry per prompt, as these rows have: beams are made later.
        numbers = [{} for _ in before] if images is None else images.diagnostics()
        rows = [RowTokens((0, 0), (n, left), more) for n, left, more in zip(before, after, numbers, strict=True)]
        traces: list[RowTrace] = []
        if self._session.tracing and images is not None:
            traces = images.traces()
        elif self._session.tracing:
            traces = [(StageTrace(0, tuple(range(n))),) * 2 for n in before]
        self._session.record(rows, traces)

    def _place(self, short: ShortPrompt, given: dict[str, Any], real: Tensor | None, slots: Tensor) -> None:
        """Qwen: give the kept tokens the positions that they have in the full prompt."""
        find = getattr(self._backbone, "get_rope_index", None)
        if find is None:
            return
        names = inspect.signature(find).parameters
        if "mm_token_type_ids" in names and given.get("mm_token_type_ids") is None:
            return  # the model itself numbers such a prompt like text
        full, deltas = find(**{name: value for name, value in given.items() if name in names and value is not None})
        full = full.to(slots.device)
        short.positions = take(full[..., None], slots)[..., 0]
        seen = full if real is None else full.masked_fill(~real, -1)
        short.next_position = seen.amax(dim=(0, 2)) + 1
        # Releases with token types count real tokens, older ones padding too.
        if "mm_token_type_ids" in names and short.kept.valid is not None:
            count = short.kept.valid.sum(dim=1)
        else:
            count = torch.full_like(short.next_position, slots.shape[1])
        short.deltas = (short.next_position - count)[:, None].to(deltas.dtype)

    @contextmanager
    def _standing_in(self, short: ShortPrompt) -> Iterator[None]:
        """Have the model's own methods answer for the shortened prompt."""
        with ExitStack() as stack:
            if short.output is None:
                yield
                return

            @functools.wraps(self._backbone.get_image_features)
            def get_image_features(*_args: Any, **_kwargs: Any) -> Any:
                output = type(short.output)(**short.output)  # callers change what they get
                output.pooler_output = per_beam(short, self._rows)
                return output

            _set_attribute(self._backbone, "get_image_features", get_image_features, stack)
            if short.positions is not None:

                @functools.wraps(self._backbone.get_rope_index)
                def get_rope_index(input_ids: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
                    return positions_of(short, *input_ids.shape)

                _set_attribute(self._backbone, "get_rope_index", get_rope_index, stack)
            yield

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Start a pass of the backbone."""
        if self._session.suspended:
            return None
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        if self._generating:
            ids = given.get("input_ids")
            self._rows = None if ids is None else len(ids)
            return None
        self._pass.close()
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return (), self._continued(given, cache)
        _refuse(given)
        if given.get("input_ids") is None:
            raise UnsupportedCallError("token reduction needs input_ids to find the visual tokens")
        self._latest = self._running = self._shorten(given)
        if self._running is None:
            return None
        self._pass.enter_context(self._standing_in(self._running))
        return (), {**given, **self._running.inputs}

    def _continued(self, given: dict[str, Any], cache: Any) -> dict[str, Any]:
        """Fit the mask of a pass that goes on after a shortened prompt to the cache."""
        short = self._latest
        if given.get("pixel_values") is not None:
            raise UnsupportedCallError("token reduction does not support new images on a filled KV cache")
        if short is None or short.cache is None or short.cache() is not cache:
            return given
        if short.positions is None and given.get("position_ids") is not None:
            raise UnsupportedCallError(f"token reduction does not support {_UNSUPPORTED['position_ids']}")
        kept, mask = short.kept, given.get("attention_mask")
        if mask is None and kept.valid is None:
            return given
        new = cache.get_seq_length() + given["input_ids"].shape[1] - kept.columns.shape[1]
        after = kept.columns.new_ones(len(kept.columns), new) if mask is None else mask[:, kept.columns_total :]
        prompt = torch.ones_like(kept.columns) if kept.valid is None else kept.valid
        return {**given, "attention_mask": torch.cat([prompt.to(after), after], dim=1)}

    def _end(self, _module: Any, _args: Any, output: Any) -> Any:
        """Close a pass, also a failed one; put hidden states back to the length of the prompt."""
        self._rows = None
        if self._generating:
            return None
        self._pass.close()
        short, self._running = self._running, None
        if short is None or output is None:
            return None
        cache = getattr(output, "past_key_values", None)
        short.cache = None if cache is None else weakref.ref(cache)
        output.last_hidden_state = short.kept.restore_length(output.last_hidden_state)
        return output


def _refuse(given: dict[str, Any]) -> None:
    for name, words in _UNSUPPORTED.items():
        if given.get(name) is not None:
            raise UnsupportedCallError(f"token reduction does not support {words}")
    mask = given.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise UnsupportedCallError("token reduction supports 2D attention masks only")


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _set_attribute(owner: Any, name: str, value: Any, stack: ExitStack) -> None:
    """Set an attribute of an instance until ``stack`` closes."""
    own = name in vars(owner)
    before = getattr(owner, name)
    stack.callback(setattr, owner, name, before) if own else stack.callback(delattr, owner, name)
    setattr(owner, name, value)
