"""One image on its way to the model, and which patch of which tile each of its placeholders stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageLayout:
    """The geometry of one image between the vision tower and the placeholders.

    A *partition* is what the tower encodes at once: the whole image, and for LLaVA-NeXT its tiles after it. *Positions*
    are the tower's tokens that become visual tokens (after merging, for Qwen), without a CLS token.

    Attributes:
        partitions: P.
        positions: n, positions of one partition; the P * n positions of the image are numbered through.
        tiles: (rows, columns) of the tiles, row by row in partitions 1 to P - 1; None where there are none.
        source: (N,) long, the position that each placeholder of the image stands for; -1 for a newline.
    """

    partitions: int
    positions: int
    tiles: tuple[int, int] | None
    source: Tensor

    @property
    def tokens(self) -> int:
        """N, the visual tokens that the base model sees."""
        return len(self.source)


@dataclass(frozen=True)
class ImageInputs:
    """What the processor makes of one image by itself.

    Attributes:
        key: digest of the image's pixels before the processor.
        tokens: N, its placeholders in the prompt.
        tensors: ``pixel_values`` and what describes them, each with a first dimension as for a batch of one image.
        typed: whether the processor marks the placeholders in ``mm_token_type_ids``.
    """

    key: str
    tokens: int
    tensors: Mapping[str, Tensor]
    typed: bool

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())
