"""Scores of a prompt's visual tokens that a method makes before any layer has read them, by the pixels of its images.

``generate`` may encode images before its first pass, which then sees no pixels. So the scores of such a call are made
as it begins, and hold until it ends: for every beam, and for every step of a run without a KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.base import Session
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedCallError
from lmms_eval_stability.model_wrappers.token_reduction.sequence import visual_tokens
from lmms_eval_stability.model_wrappers.token_reduction.short_prompt import images_per_row

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM

#: Of every row of a batch: (N,) of its visual tokens, None where it has none.
Scores = list[Tensor | None]


class FirstScores:
    """The first scores of an attached method, if it makes any."""

    def __init__(self, method: InsideLLM, model: Any, family: Family, session: Session) -> None:
        self._method, self._model, self._family, self._session = method, model, family, session
        self._placeholders = torch.tensor(family.placeholder_ids(model.config))
        self._wanted = method.has_first_scores and method.drops_tokens
        self._held: Scores | None = None

    @contextmanager
    def held(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Make the scores of a call of ``generate`` from its arguments, for all passes inside the ``with`` block."""
        before = self._held
        if self._wanted:
            ids, real = given["input_ids"], _real(given)
            visual = visual_tokens(ids, real, self._session.query_columns(ids, real), self._placeholders)
            self._held = self._make(given, visual.sum(dim=1).tolist())
        try:
            yield
        finally:
            self._held = before

    def of_rows(self, given: Mapping[str, Any], tokens: Sequence[int]) -> dict[int, Tensor | None]:
        """Return the scores of a prefill by row.

        Args:
            given: Arguments of the backbone.
            tokens: Visual tokens of each row's prompt, up to the query.
        """
        if not self._wanted:
            return {}
        if self._held is None:
            return dict(enumerate(self._make(given, tokens)))
        times = len(tokens) // len(self._held)  # each prompt serves equally many neighbouring rows
        return {row: self._held[row // times] for row in range(len(tokens))}

    def _make(self, given: Mapping[str, Any], tokens: Sequence[int]) -> Scores:
        if not any(tokens):
            return [None] * len(tokens)
        sizes, pixels = self._images(given)
        columns = torch.isin(given["input_ids"], self._placeholders.to(given["input_ids"].device))
        real = _real(given)
        whole = (columns if real is None else columns & real).sum(dim=1).tolist()  # images after the query, too
        scores: Scores = []
        start = 0
        for n, count in zip(tokens, images_per_row(whole, sizes), strict=True):
            own = range(start, start + count)
            seen = [pixels[i] for i in own if sum(sizes[start:i]) < n]
            scores.append(self._method.first_scores(n, seen) if n else None)
            start += count
        return scores

    def _images(self, given: Mapping[str, Any]) -> tuple[list[int], list[Tensor]]:
        """Return visual tokens and pixels of every image of a batch, the latter as the vision tower is given them."""
        vision = self._session.vision
        if vision is not None and vision.served is not None:  # the batch then has no pixels of its own
            sizes, pixels = [], []
            for image in vision.served:
                layouts = self._family.image_layouts(self._model, image.tensors)
                sizes += [layout.tokens for layout in layouts]
                pixels += self._family.image_pixels(image.tensors, layouts)
            return sizes, [one.to(self._model.dtype) for one in pixels]
        if given.get("pixel_values") is None:
            raise UnsupportedCallError(
                f"{self._method} draws by the images' pixels, so images that are already encoded (mm_encoder_outputs)"
                " are not supported: give pixel_values"
            )
        layouts = self._family.image_layouts(self._model, given)
        return [layout.tokens for layout in layouts], self._family.image_pixels(given, layouts)


def _real(given: Mapping[str, Any]) -> Tensor | None:
    """Return what is not padding, (B, L) bool; None where there is no mask."""
    mask = given.get("attention_mask")
    return None if mask is None else mask.to(given["input_ids"].device).bool()
