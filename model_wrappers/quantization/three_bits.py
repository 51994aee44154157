"""3-bit GPTQ checkpoints in gptqmodel's format: which kernel runs them, and the zero points that it must have.

The layout ``gptq`` stores zero points less one. gptqmodel 5.7 adds the one with the constants of the first and the last
of each three int32 exchanged (corrected in later releases by its pull request 2763), and subtracts it so when it saves.
It reads back what it wrote itself, but gives wrong zero points, without a word, to what other programs or later
releases wrote. Symmetric weights have zero point 4 everywhere, so there the error is seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError, LayoutError

BITS = 3
#: The kernel of gptqmodel that reads 3 bits on every device.
_BACKEND = "torch"
#: 32 zero points of 4, as three int32 hold them.
_FOURS = sum(4 << (BITS * place) for place in range(32))
_WORDS = [(_FOURS >> shift) & 0xFFFFFFFF for shift in (0, 32, 64)]
_REMEDY = "quantise again with: lmms-eval-stability quantize --method gptq --bits 3"


def backend(request: LoadRequest, config: dict[str, Any], layout: str, asked: str) -> str:
    """Return the kernel for a 3-bit checkpoint.

    Raises:
        BackendError: another kernel was asked for.
        LayoutError: the checkpoint has zero points of its own in a layout whose zero points cannot be trusted.
    """
    if asked not in ("auto", _BACKEND):
        raise BackendError(
            f"{request.model}: backend={asked} is not served for the 3 bits of '{request.pretrained}'; leave backend"
            f" out, or set backend={_BACKEND}"
        )
    if layout == "gptq" and not config.get("sym", True):
        raise LayoutError(
            f"'{request.pretrained}' holds asymmetric 3-bit GPTQ weights in the layout 'gptq', whose zero points"
            f" gptqmodel reads differently from release to release; store it as gptq_v2, or {_REMEDY}"
        )
    return _BACKEND


def require_symmetric(model: nn.Module, pretrained: str) -> None:
    """Raise unless every zero point of a loaded symmetric model is 4.

    Raises:
        LayoutError: naming the first layer where one is not.
    """
    expected = torch.tensor([word - 2**32 if word >= 2**31 else word for word in _WORDS], dtype=torch.int32)
    for name, module in model.named_modules():
        zeros = getattr(module, "qzeros", None)
        if zeros is not None and not (zeros.reshape(-1, len(_WORDS)) == expected.to(zeros.device)).all():
            raise LayoutError(
                f"{name} of '{pretrained}' is symmetric by its config.json, but the installed gptqmodel reads zero"
                " points other than 4 from its 3-bit weights (it was written by another release or program);"
                f" {_REMEDY}"
            )
