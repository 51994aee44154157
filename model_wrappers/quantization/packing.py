"""Packed weights in the files of a compressed-tensors checkpoint: which there are, and in which of two layouts.

compressed-tensors packs the b-bit values of a row into int32. Where b divides 32 there is one way to do so. Where it
does not (b = 3), releases before 0.18 put 32 // b values into each int32 and left its last bits empty; from 0.18 on
(its pull request 732) values lie without gaps, across the borders of int32. A release that expects one layout takes
the other for noise without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from packaging.version import InvalidVersion, Version
from safetensors import safe_open

from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest
from lmms_eval_stability.model_wrappers.quantization.checkpoints import checkpoint_file
from lmms_eval_stability.model_wrappers.quantization.errors import LayoutError

_WORD = 32
_PACKED, _SHAPE = ".weight_packed", ".weight_shape"
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
#: The first release of compressed-tensors that leaves no gaps.
_DENSE_SINCE = Version("0.18")
_REMEDY = "Quantise again with: lmms-eval-stability quantize"


def packed_names(request: LoadRequest) -> list[str]:
    """Return the names of the modules that a checkpoint's files hold packed, as the files call them."""
    return [name.removesuffix(_PACKED) for name in _files(request) if name.endswith(_PACKED)]


def require_dense(request: LoadRequest, bits: int) -> None:
    """Raise unless the packed weights lie without gaps, which is what the served compressed-tensors reads.

    A row of n values has ceil(n * bits / 32) int32 without gaps, and ceil(n / (32 // bits)) with them. Where these are
    equal for every layer, the release that wrote the checkpoint decides.

    Raises:
        LayoutError: they have gaps, or neither the files nor the config say.
    """
    if _WORD % bits == 0:
        return
    per_word, proven, undecided = _WORD // bits, False, False
    for name, inputs, words in _rows(request):
        dense, padded = -(-inputs * bits // _WORD), -(-inputs // per_word)
        if words != dense:
            raise LayoutError(
                f"{name}{_PACKED} of '{request.pretrained}' has {words} int32 for a row of {inputs} {bits}-bit weights;"
                f" without gaps it would have {dense}. compressed-tensors before {_DENSE_SINCE} packed {bits} bits with"
                f" gaps, and later releases would read noise. {_REMEDY}"
            )
        proven = proven or dense != padded
        undecided = undecided or inputs > per_word
    if undecided and not proven and not _written_dense(request):
        raise LayoutError(
            f"'{request.pretrained}' was not written by compressed-tensors {_DENSE_SINCE} or later, as far as its"
            f" config.json says, and the sizes of its {bits}-bit weights do not tell how they are packed. {_REMEDY}"
        )


def _written_dense(request: LoadRequest) -> bool:
    assert request.stored is not None
    try:
        return Version(str(request.stored.config.get("version"))) >= _DENSE_SINCE
    except InvalidVersion:
        return False


def _rows(request: LoadRequest) -> Iterator[tuple[str, int, int]]:
    """Yield each packed module, the input width that it states, and the int32 that a row of it has."""
    files = _files(request)
    for name in packed_names(request):
        if name + _SHAPE not in files:
            continue  # will be refused as missing when the weights are loaded
        with _opened(request, files[name + _PACKED]) as file:
            words = file.get_slice(name + _PACKED).get_shape()[-1]
        with _opened(request, files[name + _SHAPE]) as file:
            inputs = int(file.get_tensor(name + _SHAPE)[-1])
        yield name, inputs, words


def _opened(request: LoadRequest, file: str) -> Any:
    return safe_open(checkpoint_file(request.pretrained, file, request.revision), "pt")


def _files(request: LoadRequest) -> dict[str, str]:
    """Return tensor name -> name of the file that holds it; empty if the checkpoint has no safetensors."""
    index = checkpoint_file(request.pretrained, _INDEX, request.revision)
    if index is not None:
        where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return where
    if checkpoint_file(request.pretrained, _WHOLE, request.revision) is None:
        return {}
    with _opened(request, _WHOLE) as file:
        return dict.fromkeys(file.keys(), _WHOLE)
