"""Encoding every distinct image once: what the vision tower and the projector make of it is kept and used again.

Images are encoded one at a time, as in a batch of one document, so features do not depend on what else is in a batch:
they are equal bit by bit to those of batch size 1. Only the model's ``get_image_features`` is replaced; whatever a
release of transformers does around it (encoding before the first pass or inside it) stays its own.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lmms_eval_stability.model_wrappers.families import Family
from lmms_eval_stability.model_wrappers.families.images import ImageInputs
from lmms_eval_stability.model_wrappers.lru import ByteLRU, Sized, storage_bytes

T = TypeVar("T", bound=Sized)


@dataclass(frozen=True)
class Features:
    """The visual tokens of one image, (N, d)."""

    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.tokens)


class VisionReuse:
    """The features of the images seen last, and the time that encoding takes.

    Args:
        model: a transformers model.
        family: its architecture.
        limit: bytes of features that are kept.

    Attributes:
        seconds: time spent in the vision tower and the projector.
        encoded: images that went through them, counted only while ``serving``.
    """

    def __init__(self, model: Any, family: Family, limit: int) -> None:
        self._model, self._backbone = model, family.backbone(model)
        self._kept: ByteLRU[Any] = ByteLRU(limit)
        self._images: Sequence[ImageInputs] | None = None
        self.seconds = 0.0
        self.encoded = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the model's ``get_image_features`` inside the ``with`` block."""
        backbone: Any = self._backbone
        original = backbone.get_image_features
        names = tuple(inspect.signature(original).parameters)

        @functools.wraps(original)
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if self._images is None:
                return self._timed(original, given)

            def make(inputs: Mapping[str, Tensor]) -> Features:
                return Features(self._timed(original, {**given, **inputs, "return_dict": True}).pooler_output[0])

            found = self.each("features", make)
            return BaseModelOutputWithPooling(pooler_output=[features.tokens for features in found])

        with ExitStack() as stack:
            stack.callback(_restore, backbone, "get_image_features", vars(backbone).get("get_image_features"))
            backbone.get_image_features = get_image_features
            yield

    def clear(self) -> None:
        """Forget all features."""
        self._kept.clear()

    @contextmanager
    def serving(self, images: Sequence[ImageInputs] | None) -> Iterator[None]:
        """Say which images the passes inside the ``with`` block are about, in the order of their placeholders.

        None leaves it to the model: it encodes the pixels that it is given, all at once.
        """
        before, self._images = self._images, images
        try:
            yield
        finally:
            self._images = before

    @property
    def served(self) -> Sequence[ImageInputs] | None:
        """The images of ``serving``; None where the model encodes what it is given."""
        return self._images

    def each(self, kind: str, make: Callable[[Mapping[str, Tensor]], T]) -> list[T]:
        """Return what is made of each of the images that are being served, from memory where it is there.

        Args:
            kind: tells apart what different callers make of the same image.
            make: gets one image's inputs on the model's device; the model encodes what it is given meanwhile.
        """
        images = self._images
        if images is None:
            raise RuntimeError("no images are being served")

        def made(image: ImageInputs) -> T:
            self.encoded += 1
            with self.serving(None):
                return make(on_device(image.tensors, self._model.device, self._model.dtype))

        return [self._kept.get((kind, image.key), functools.partial(made, image)) for image in images]

    def _timed(self, encode: Callable[..., Any], given: dict[str, Any]) -> Any:
        synchronize(self._model.device)
        started = time.perf_counter()
        output = encode(**given)
        synchronize(self._model.device)
        self.seconds += time.perf_counter() - started
        return output


def stand_in(images: Sequence[ImageInputs], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return image inputs without pixels, for a model whose images are served: geometry, and how many there are."""
    if not images:
        return {}
    names = [name for name in images[0].tensors if name != "pixel_values"]
    joined = {name: torch.cat([image.tensors[name] for image in images]) for name in names}
    empty = torch.empty(len(images), 0, device=device, dtype=dtype)
    return {**on_device(joined, device, dtype), "pixel_values": empty}


def on_device(inputs: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors on a device, floating-point ones as ``dtype``; from pinned memory without waiting."""
    moved = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for, so that time can be taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _restore(owner: Any, name: str, value: Any) -> None:
    if value is None:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
