"""The inverse participation ratio (IPR) of visual tokens before and after a method, for the sample log.

The IPR of X (N, d) is the sum of p_k^2 with p_k = s_k^2 / sum of s^2, s_k its singular values; 1 / IPR is an effective
rank (the participation ratio of the spectrum). LoFi (Sun et al., arXiv 2503.06794 v1-v2) relates its change to changed
answers. Their layers are not known to us; the choices made here:

* Methods before the language model: the projected features of one image. All of them against what the language model is
  given instead, merged tokens included; newlines of LLaVA-NeXT, one learnt vector, are left out on both sides.
* Methods inside the language model: the hidden states of all visual tokens of a prompt as they enter the first layer at
  which any is dropped, against those of them whose tokens reach the last layer. One set of states, so that the
  difference is that of the choice and not of the layers between. A merged token counts as the token whose place it has.
* Methods before the vision tower: the projected features of the image against those of the smaller image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.token_reduction.before_llm import Compressed
    from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView


def inverse_participation_ratio(features: Tensor) -> float:
    """Return how concentrated the singular spectrum of ``features`` (N, d) is: sum of p^2 with p = s^2 / sum of s^2.

    1 when one direction holds everything, 1 / min(N, d) when all hold the same; its inverse is an effective rank. NaN
    if all features are zero, or there are none.
    """
    if not features.numel():
        return math.nan
    # The sum of s^4 is the squared norm of the Gram matrix and the sum of s^2 its trace, so no decomposition is needed.
    # fp32 is exact enough for sums of positive numbers, and float64 would be slow on many devices.
    products = gram(features.to(torch.promote_types(features.dtype, torch.float32)))
    return float((products / products.trace()).square().sum())


def gram(features: Tensor) -> Tensor:
    """Return the products of the shorter side's vectors: (N, d) -> (m, m) with m = min(N, d)."""
    matrix = features.T if len(features) > features.shape[1] else features
    return matrix @ matrix.T


def ratios(full: Tensor, kept: Tensor) -> dict[str, float]:
    """Return the numbers of the log: features (N, d) before a method and (N', d) after it."""
    return {"ipr_full": inverse_participation_ratio(full), "ipr_kept": inverse_participation_ratio(kept)}


def with_ratios(view: ImageView, part: Compressed | None) -> Compressed | None:
    """Add the numbers to what is left of one image, unless it is left as it is or the method has its own."""
    if part is None or "ipr_full" in part.diagnostics:
        return part
    patches = (view.layout.source >= 0).to(view.tokens.device)
    found = ratios(view.tokens[patches], part.features[patches[part.kept.to(patches.device)]])
    return replace(part, diagnostics={**part.diagnostics, **found})


def ratios_of_images(before: ImageView, after: ImageView) -> Mapping[str, float]:
    """Return the numbers of one image and its smaller version; none if that has as many tokens."""
    full, kept = (view.tokens[(view.layout.source >= 0).to(view.tokens.device)] for view in (before, after))
    return {} if len(full) == len(kept) else ratios(full, kept)
