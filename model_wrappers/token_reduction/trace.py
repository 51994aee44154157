"""Which visual tokens stay and which are merged, stage by stage: recorded on request, for pictures and tests.

Visual tokens are numbered as in the full prompt of a row, from 0, all its images through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from lmms_eval_stability.model_wrappers.families.images import ImageLayout

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.token_reduction.before_llm import Compressed
    from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import Reduction


@dataclass(frozen=True)
class StageTrace:
    """What is left of one prompt's visual tokens at the input of a decoder layer.

    Attributes:
        layer: The decoder layer; the first is 0.
        kept: Visual tokens that are left as they are, ascending.
        merged: For each token made of several, the visual tokens that went into it, ascending. Where those are merged
            tokens themselves, what these were made of.
        others: Tokens that stand for no visual token of the prompt: CLS tokens, padding of tiles, smaller images.
    """

    layer: int
    kept: tuple[int, ...]
    merged: tuple[tuple[int, ...], ...] = ()
    others: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are left, as ``RowTokens.visual_tokens`` counts them."""
        return len(self.kept) + len(self.merged) + self.others


#: One prompt: an entry for each of ``RowTokens.layers``, the first with all its visual tokens.
RowTrace = tuple[StageTrace, ...]


@dataclass(frozen=True)
class Origin:
    """Where an image's tokens come from, for a method whose tokens are not simply some of the image's.

    Attributes:
        kept: (k,) positions (see ``ImageLayout``) that stay as they are.
        merged: Per merged token the positions that went into it.
        others: Tokens of no position.
    """

    kept: Tensor
    merged: tuple[Tensor, ...] = ()
    others: int = 0


class Trail:
    """Follows the visual tokens of one row through the stages inside the language model."""

    def __init__(self, columns: Sequence[int]) -> None:
        """Start with the visual tokens at these columns of ``input_ids``."""
        self._sources: dict[int, tuple[int, ...]] = {column: (number,) for number, column in enumerate(columns)}
        self._merged: set[int] = set()  # columns that hold merged tokens
        self._stages = [self._state(0)]

    @property
    def stages(self) -> RowTrace:
        """The row's trace so far."""
        return tuple(self._stages)

    def step(self, layer: int, columns: Sequence[int] = (), left: Reduction | None = None) -> None:
        """Note what a stage before ``layer`` left of the visual tokens at ``columns``; None: everything."""
        if left is not None:
            stays = [columns[index] for index in left.stays.tolist()]
            sources = {column: self._sources[column] for column in stays}
            merged = self._merged & set(stays)
            if left.places is not None and left.sources is not None and left.into is not None:
                places = [columns[index] for index in left.places.tolist()]
                groups: list[list[int]] = [[] for _ in places]
                for index, group in zip(left.sources.tolist(), left.into.tolist(), strict=True):
                    groups[group] += self._sources[columns[index]]
                sources.update({column: tuple(sorted(group)) for column, group in zip(places, groups, strict=True)})
                merged |= set(places)
            self._sources, self._merged = sources, merged
        self._stages.append(self._state(layer))

    def _state(self, layer: int) -> StageTrace:
        kept = sorted(source for column, (source, *_) in self._sources.items() if column not in self._merged)
        return StageTrace(layer, tuple(kept), tuple(self._sources[column] for column in sorted(self._merged)))


def image_trace(layout: ImageLayout, made: Compressed | None) -> StageTrace:
    """Return what a method before the language model left of one image, its visual tokens numbered from 0."""
    if made is None:
        return StageTrace(0, tuple(range(layout.tokens)))
    if made.origin is None:
        return StageTrace(0, tuple(made.kept.tolist()))
    origin = made.origin()
    token = {position: number for number, position in enumerate(layout.source.tolist()) if position >= 0}
    kept = [token[position] for position in origin.kept.tolist() if position in token]
    merged = [sorted(token[position] for position in group.tolist() if position in token) for group in origin.merged]
    others = origin.others + len(origin.kept) - len(kept)
    return StageTrace(0, tuple(sorted(kept)), tuple(map(tuple, merged)), others)


def smaller_image_trace(full: ImageLayout, smaller: ImageLayout) -> StageTrace:
    """Return the same for an image that was replaced by a smaller one: none of its tokens is one of the image's."""
    if smaller.tokens == full.tokens:
        return StageTrace(0, tuple(range(full.tokens)))
    return StageTrace(0, (), (), smaller.tokens)


def row_traces(traces: Sequence[StageTrace], tokens: Sequence[int], images: Sequence[int]) -> list[RowTrace]:
    """Return the trace of each row of a batch before its first layer.

    Args:
        traces: One per image.
        tokens: Visual tokens of each image in the full prompt.
        images: Images of each row.
    """
    rows: list[RowTrace] = []
    start = 0
    for count in images:
        own = slice(start, start + count)
        offset, left = 0, StageTrace(0, ())
        for trace, size in zip(traces[own], tokens[own], strict=True):
            left = replace(
                left,
                kept=left.kept + tuple(number + offset for number in trace.kept),
                merged=left.merged + tuple(tuple(number + offset for number in group) for group in trace.merged),
                others=left.others + trace.others,
            )
            offset += size
        rows.append((StageTrace(0, tuple(range(offset))), left))
        start += count
    return rows
