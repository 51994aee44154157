"""``deterministic=True``: what torch can do so that a run can be repeated bit by bit, and what it cannot."""

from __future__ import annotations

import os

import torch
from loguru import logger

from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError

#: The workspace that cuBLAS needs to give the same sums every time; read when CUDA starts.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
REMAINS = (
    "another GPU or CPU model, another number of CPU threads, other versions of torch, CUDA or cuDNN, another dtype,"
    " and quantised kernels that torch does not control can still change the last bits"
)


def be_deterministic(attn_implementation: str | None) -> None:
    """Switch this process to deterministic kernels, for good.

    Attention is computed by plain matrix products (torch's math kernel, or transformers' eager one).

    Raises:
        InvalidArgumentError: another attention kernel is asked for.
    """
    if attn_implementation not in (None, "sdpa", "eager"):
        raise InvalidArgumentError(
            f"deterministic=True: attn_implementation={attn_implementation} adds in an order that may change; leave it"
            " out, or take sdpa or eager"
        )
    os.environ.setdefault(*_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)
    logger.warning(
        f"deterministic=True: one row at a time, nothing reused, deterministic kernels. What remains: {REMAINS}"
    )
