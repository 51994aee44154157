"""Shortening the visual features before a transformers language model, without touching its code.

The images are encoded once by the model's own tower and projector; the method makes fewer tokens of each image; the
placeholders that are left over are taken out of ``input_ids`` and everything of that length. Then the model runs as
usual on the shorter prompt. For that call its ``get_image_features`` answers with the shortened features, and for Qwen
its ``get_rope_index`` with the positions that the kept tokens have in the full prompt, so that whatever a release of
transformers does with features and positions (encoding before or inside ``forward``, beams, decoding) stays its own.

To the caller nothing is shorter: ``generate`` returns the full prompt before the answer, and a plain forward pass puts
hidden states back to the length of the prompt, zeros where a token was dropped.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.families.images import ImageLayout
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.errors import (
    UnsupportedCallError,
    UnsupportedModelError,
)
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, take
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView, Wanted, encode_images

#: Inputs that have one entry per token of the prompt, beside ``input_ids`` and ``attention_mask``.
_PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
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
class Compressed:
    """What is left of one image.

    Attributes:
        features: (N', d) the tokens that the language model sees.
        kept: (N',) long, ascending: the image's placeholders that they take the place of.
    """

    features: Tensor
    kept: Tensor


@dataclass(frozen=True)
class BeforeLLM(TokenReducer):
    """Base of the methods that act between the vision tower and the language model.

    A method says what it reads of the vision tower and what it makes of one image; encoding, placeholders, positions,
    batches and statistics are done here. In ``RowTokens`` such a method acts at layer 0: ``layers`` is (0, 0), the
    counts are those before and after the method.
    """

    def check_model(self, model: Any, family: Family) -> None:
        """Raise if the method cannot work on this model or its parameters do not fit it."""

    def wanted(self, model: Any, family: Family) -> Wanted:  # noqa: ARG002
        """Return what the method reads while images are encoded."""
        return Wanted()

    def smaller_images(self, model: Any, family: Family, inputs: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Return inputs that replace the images by smaller ones, for a method that acts before the vision tower."""
        return None

    @abstractmethod
    def compress(self, image: ImageView) -> Compressed | None:
        """Shorten one image; None leaves it as it is."""

    def install(self, model: Any, family: Family, session: Session, stack: ExitStack) -> None:
        """Check that the model fits, and patch its ``generate`` and its backbone."""
        if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            raise UnsupportedModelError("token reduction does not work on a model wrapped by torch.compile")
        self.check_model(model, family)
        _Engine(self, model, family, session).install(stack)


@dataclass
class _Shortened:
    """A batch of prompts after the method."""

    inputs: dict[str, Any]  # what replaces the caller's
    kept: Kept
    images: list[int]  # images of each row
    output: Any  # what get_image_features returns, with shortened features; None: the model encodes smaller images
    positions: Tensor | None = None  # Qwen: (3, B, L') of the kept tokens in the full prompt
    next_position: Tensor | None = None  # Qwen: (B,) of the first generated token
    deltas: Tensor | None = None  # Qwen: (B, 1) what transformers adds to a count of tokens to get that
    cache: Any = None  # weak reference to the cache that a plain forward pass filled


class _Engine:
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
        self._running: _Shortened | None = None  # in a plain forward pass
        self._latest: _Shortened | None = None  # of the latest plain forward pass, for what continues it
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
            return _with_prompt(result, given["input_ids"], short.inputs["input_ids"].shape[1])

        _set_attribute(self._model, "generate", generate, stack)

    def _shorten(self, given: dict[str, Any]) -> _Shortened | None:
        """Encode and shorten the images of a batch; None if the model should run as if there were no method."""
        input_ids, mask = given["input_ids"], given.get("attention_mask")
        real = None if mask is None else mask.to(input_ids.device).bool()
        real = None if real is None or bool(real.all()) else real
        visual = torch.isin(input_ids, self._placeholders.to(input_ids.device))
        if real is not None:
            visual &= real
        before = visual.sum(dim=1).tolist()
        if given.get("pixel_values") is None or not self._method.drops_tokens:
            self._record(before, before)
            return None
        layouts = self._family.image_layouts(self._model, given)
        images = _images_per_row(before, [layout.tokens for layout in layouts])
        smaller = self._method.smaller_images(self._model, self._family, given)
        output: Any = None
        if smaller is not None:
            left = self._family.image_layouts(self._model, smaller)
            stays = [torch.arange(full.tokens) < part.tokens for full, part in zip(layouts, left, strict=True)]
        else:
            output, stays = self._encode(given, layouts)
        dropped = torch.zeros_like(visual)
        dropped[visual] = ~torch.cat(stays).to(visual.device)
        self._record(before, (visual & ~dropped).sum(dim=1).tolist())
        if not bool(dropped.any()):
            return None
        kept, slots = Kept.everything(len(input_ids), input_ids.shape[1], real, input_ids.device).without(dropped)
        short = _Shortened({**_gathered(given, kept, slots), **(smaller or {})}, kept, images, output)
        if output is not None:
            self._place(short, given, real, slots)
        return short

    def _encode(self, given: dict[str, Any], layouts: Sequence[ImageLayout]) -> tuple[Any, list[Tensor]]:
        """Encode and compress: what get_image_features returns, shortened, and (N,) bool per image, what stays."""
        wanted = self._method.wanted(self._model, self._family)
        output, views = encode_images(self._model, self._family, given, layouts, wanted)
        with torch.no_grad():
            made = [self._method.compress(view) for view in views]
        pairs = list(zip(views, made, strict=True))
        output.pooler_output = [view.tokens if part is None else part.features for view, part in pairs]
        return output, [_kept_mask(view, part) for view, part in pairs]

    def _record(self, before: Sequence[int], after: Sequence[int]) -> None:
        # A pin has one entry per prompt, as these rows have: beams are made later.
        self._session.record([RowTokens((0, 0), pair) for pair in zip(before, after, strict=True)])

    def _place(self, short: _Shortened, given: dict[str, Any], real: Tensor | None, slots: Tensor) -> None:
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
    def _standing_in(self, short: _Shortened) -> Iterator[None]:
        """Have the model's own methods answer for the shortened prompt."""
        with ExitStack() as stack:
            if short.output is None:
                yield
                return

            @functools.wraps(self._backbone.get_image_features)
            def get_image_features(*_args: Any, **_kwargs: Any) -> Any:
                output = type(short.output)(**short.output)  # callers change what they get
                output.pooler_output = _per_beam(short, self._rows)
                return output

            _set_attribute(self._backbone, "get_image_features", get_image_features, stack)
            if short.positions is not None:

                @functools.wraps(self._backbone.get_rope_index)
                def get_rope_index(input_ids: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
                    return _positions(short, *input_ids.shape)

                _set_attribute(self._backbone, "get_rope_index", get_rope_index, stack)
            yield

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Start a pass of the backbone."""
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


def _images_per_row(tokens: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return how many images each row has: placeholders per row, and per image, in order."""
    counts, image = [], 0
    for total in tokens:
        start, found = image, 0
        while found < total and image < len(sizes):
            found += sizes[image]
            image += 1
        if found != total:
            break
        counts.append(image - start)
    if len(counts) < len(tokens) or image < len(sizes):
        raise UnsupportedCallError(
            f"the images make {list(sizes)} visual tokens, but the prompts have {list(tokens)} placeholders"
        )
    return counts


def _kept_mask(view: ImageView, made: Compressed | None) -> Tensor:
    """Return which placeholders of an image stay: (N,) bool."""
    if made is None:
        return torch.ones(view.layout.tokens, dtype=torch.bool)
    stays = torch.zeros(view.layout.tokens, dtype=torch.bool)
    stays[made.kept.cpu()] = True
    return stays


def _gathered(given: dict[str, Any], kept: Kept, slots: Tensor) -> dict[str, Any]:
    """Return the inputs that have one entry per token, shortened."""
    ids = given["input_ids"]
    changed: dict[str, Any] = {"input_ids": ids.gather(1, slots)}
    mask = torch.ones_like(slots) if kept.valid is None else kept.valid
    changed["attention_mask"] = mask.to(torch.long)
    if kept.valid is not None and given.get("attention_mask") is not None:
        # A padding slot may name the column of a dropped placeholder, which would be counted as one.
        pad = ids.masked_select(~given["attention_mask"].bool())
        changed["input_ids"] = changed["input_ids"].masked_fill(~kept.valid, int(pad[0]) if len(pad) else 0)
    elif kept.valid is not None:
        changed["input_ids"] = changed["input_ids"].masked_fill(~kept.valid, 0)
    for name in _PER_TOKEN:
        if given.get(name) is not None:
            values = given[name].gather(1, slots)
            changed[name] = values if kept.valid is None else values.masked_fill(~kept.valid, 0)
    return changed


def _per_beam(short: _Shortened, rows: int | None) -> list[Tensor]:
    """Return the features, each prompt's as often as it has rows in the running pass."""
    times = 1 if rows is None else rows // len(short.images)
    features: list[Tensor] = []
    start = 0
    for count in short.images:
        features += list(short.output.pooler_output[start : start + count]) * times
        start += count
    return features


def _positions(short: _Shortened, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return positions (3, rows, length) of prompts and what was generated after them, and the deltas (rows, 1)."""
    assert short.positions is not None
    assert short.next_position is not None
    assert short.deltas is not None
    more = torch.arange(length - short.positions.shape[2], device=short.positions.device)
    after = (short.next_position[:, None] + more).expand(3, -1, -1)
    times = rows // short.positions.shape[1]
    positions = torch.cat([short.positions, after], dim=2)
    return positions.repeat_interleave(times, dim=1), short.deltas.repeat_interleave(times, dim=0)


def _with_prompt(result: Any, input_ids: Tensor, shortened: int) -> Any:
    """Put the caller's prompt before the answers: sequences (rows, L' + n) -> (rows, L + n)."""
    sequences = result if isinstance(result, Tensor) else result.sequences
    prompts = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    full = torch.cat([prompts, sequences[:, shortened:]], dim=1)
    if isinstance(result, Tensor):
        return full
    result.sequences = full
    return result


def _set_attribute(owner: Any, name: str, value: Any, stack: ExitStack) -> None:
    """Set an attribute of an instance until ``stack`` closes."""
    own = name in vars(owner)
    before = getattr(owner, name)
    stack.callback(setattr, owner, name, before) if own else stack.callback(delattr, owner, name)
    setattr(owner, name, value)
