"""Reading the vision tower while it encodes images: what methods before the language model rank tokens by.

The images are encoded once, by the model's own code. On the way past, hooks read only what a method asks for: the CLS
token's row of attention (LLaVA), or how much attention each token receives (Qwen, whose tower has no CLS token), and
the keys and the output of the layer that the projector reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.families.images import ImageLayout
from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap

_QUERY_BLOCK = 512  # rows of attention held at a time where all rows are averaged


@dataclass(frozen=True)
class Wanted:
    """What a method reads beside the visual tokens themselves.

    Attributes:
        attention: Vision layers whose attention is read.
        keys: Whether the keys of the last of them are read.
        hidden: Vision layer whose output is read; only of towers with a CLS token.
    """

    attention: tuple[int, ...] = ()
    keys: bool = False
    hidden: int | None = None


@dataclass(frozen=True)
class ImageView:
    """What a method sees of one image. Notation as in ``ImageLayout``; S is 1 + n with a CLS token, else n.

    Attributes:
        layout: Geometry.
        tokens: (N, d) the visual tokens that the base model would see.
        pixels: The image as the processor made it.
        attention: Per vision layer (P, H, S), fp32: the CLS row, or the attention received, averaged over heads and
            queries (H is 1).
        keys: (P, S, d_head) mean over heads; after rotary embedding and averaged over merged tokens where there are
            such. None unless wanted.
        hidden: (P, S, d_vision) output of the wanted layer; None unless wanted, and without a CLS token.
        project: The model's projector.
    """

    layout: ImageLayout
    tokens: Tensor
    pixels: Tensor
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    hidden: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None

    def importance(self, layer: int) -> Tensor:
        """Return each position's attention in ``layer``, summed over heads: (P, n)."""
        rows = self.attention[layer].sum(dim=1)
        return rows[:, rows.shape[1] - self.layout.positions :]


def call_encoder(encoder: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Call a model's ``get_image_features`` with those of ``inputs`` that it takes; has ``pooler_output``."""
    names = inspect.signature(encoder).parameters
    given = {name: value for name, value in inputs.items() if name in names and name != "kwargs" and value is not None}
    return encoder(**given, return_dict=True)


def encode_images(
    model: Any, family: Family, inputs: Mapping[str, Any], layouts: Sequence[ImageLayout], wanted: Wanted
) -> tuple[Any, list[ImageView]]:
    """Encode all images of a batch.

    Returns:
        What the model's ``get_image_features`` returned, and one view per image.
    """
    backbone: Any = family.backbone(model)
    reader = _ClsReader if family.has_cls else _ReceivedReader
    with ExitStack() as stack, torch.no_grad():
        reading = reader(model, family, inputs, layouts, wanted, stack)
        output = call_encoder(backbone.get_image_features, inputs)
        reading.finish()  # before the stack closes: taps forget then
    pixels = family.image_pixels(inputs, layouts)
    parts = zip(layouts, output.pooler_output, pixels, reading.per_image(), strict=True)
    return output, [ImageView(layout, tokens, pixel, **read) for layout, tokens, pixel, read in parts]


class _ClsReader:
    """CLIP towers: the CLS row of some layers, and keys and output of the last one."""

    def __init__(
        self,
        model: Any,
        family: Family,
        _inputs: Mapping[str, Any],
        layouts: Sequence[ImageLayout],
        wanted: Wanted,
        stack: ExitStack,
    ) -> None:
        self._partitions = [layout.partitions for layout in layouts]
        self._wanted = wanted
        self._keys: Tensor | None = None
        self._hidden: Tensor | None = None
        self._taps: dict[int, AttentionTap] = {}
        self._rows: dict[int, Tensor] = {}
        backbone: Any = family.backbone(model)
        self._project = getattr(backbone, "multi_modal_projector", None)
        layers = family.vision_layers(model)
        total = sum(self._partitions)
        for index in wanted.attention:
            tap = self._taps[index] = AttentionTap(family.vision_attention(layers[index]), stack)
            seen = torch.ones(total, 1, 1 + layouts[0].positions, dtype=torch.bool)
            tap.want(torch.zeros(total, 1, dtype=torch.long), seen)
        if wanted.keys:
            attention: Any = family.vision_attention(layers[wanted.attention[-1]])
            self._heads = attention.num_heads
            stack.callback(attention.k_proj.register_forward_hook(self._see_keys).remove)
        if wanted.hidden is not None:
            stack.callback(layers[wanted.hidden].register_forward_hook(self._see_hidden).remove)

    def finish(self) -> None:
        """Collect what the taps read."""
        self._rows = {index: tap.take()[:, :, 0] for index, tap in self._taps.items()}

    def _see_keys(self, _module: Any, _args: Any, output: Tensor) -> None:
        self._keys = output.unflatten(-1, (self._heads, -1)).mean(dim=2)

    def _see_hidden(self, _module: Any, _args: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    def per_image(self) -> list[dict[str, Any]]:
        """Return the arguments of each image's view."""
        found: list[dict[str, Any]] = []
        start = 0
        for count in self._partitions:
            part = slice(start, start + count)
            read: dict[str, Any] = {
                "attention": {layer: rows[part] for layer, rows in self._rows.items()},
                "project": self._project,
            }
            read["keys"] = None if self._keys is None else self._keys[part]
            read["hidden"] = None if self._hidden is None else self._hidden[part]
            found.append(read)
            start += count
        return found


class _ReceivedReader:
    """Qwen towers: the attention that each merged token receives within its image, and its keys."""

    def __init__(
        self,
        model: Any,
        family: Any,
        inputs: Mapping[str, Any],
        layouts: Sequence[ImageLayout],
        wanted: Wanted,
        stack: ExitStack,
    ) -> None:
        self._counts = [layout.positions for layout in layouts]
        self._wanted = wanted
        self._order = family.tower_order(model, inputs["image_grid_thw"]) if wanted.attention else None
        self._merge = model.config.vision_config.spatial_merge_size**2
        self._read: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._rotary: tuple[Tensor, Tensor] | None = None
        layers = family.vision_layers(model)
        for index in wanted.attention:
            attention: Any = family.vision_attention(layers[index])
            stack.callback(attention.register_forward_pre_hook(self._see_rotary, with_kwargs=True).remove)
            see = partial(self._see_projections, index, attention.num_heads)
            stack.callback(attention.qkv.register_forward_hook(see).remove)

    def finish(self) -> None:
        """Nothing to collect: everything was noted on the way."""

    def _see_rotary(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self._rotary = kwargs["position_embeddings"]

    def _see_projections(self, layer: int, heads: int, _module: Any, _args: Any, output: Tensor) -> None:
        """Read one layer: queries, keys and values of all images in a row, (tokens, 3 * d_vision)."""
        assert self._rotary is not None
        query, key, _ = output.float().unflatten(-1, (3, heads, -1)).unbind(dim=1)  # (tokens, H, d_head)
        query, key = (rotate(part, *self._rotary) for part in (query, key))
        sizes = [count * self._merge for count in self._counts]
        received, keys = [], []
        for image_query, image_key in zip(query.split(sizes), key.split(sizes), strict=True):
            received.append(received_attention(image_query, image_key))
            keys.append(image_key.mean(dim=1))
        self._read[layer] = (received, keys)

    def per_image(self) -> list[dict[str, Any]]:
        """Return the arguments of each image's view."""
        found: list[dict[str, Any]] = []
        start = 0
        for image, count in enumerate(self._counts):
            order = None if self._order is None else self._order[start : start + count] - start
            read: dict[str, Any] = {"attention": {}}
            for layer, (received, keys) in self._read.items():
                read["attention"][layer] = self._merged(received[image][:, None], order).T[None]
                if self._wanted.keys:
                    read["keys"] = self._merged(keys[image], order)[None]
            found.append(read)
            start += count
        return found

    def _merged(self, values: Tensor, order: Tensor | None) -> Tensor:
        """Average over the tokens that are merged, and undo the tower's order: (n * merge, c) -> (n, c)."""
        mean: Tensor = values.unflatten(0, (-1, self._merge)).mean(dim=1)
        if order is None:
            return mean
        return torch.empty_like(mean).index_copy_(0, order.to(mean.device), mean)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply a rotary embedding: (tokens, H, d), cos and sin (tokens, d)."""
    first, second = values.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return values * cos[:, None].float() + turned * sin[:, None].float()


def received_attention(query: Tensor, key: Tensor) -> Tensor:
    """Average over heads and queries of the attention that each token receives.

    Args:
        query: (n, H, d) after rotary embedding.
        key: (n, H, d) after rotary embedding.

    Returns:
        (n,), sums to one. At no time are more than 512 rows of attention in memory.
    """
    total = key.new_zeros(key.shape[0])
    keys = key.permute(1, 2, 0) * key.shape[-1] ** -0.5  # (H, d, n)
    for block in query.split(_QUERY_BLOCK):
        total += (block.transpose(0, 1) @ keys).softmax(dim=-1).sum(dim=(0, 1))
    return total / (query.shape[0] * query.shape[1])
