"""How the visual tokens of one image came about: which patch of which tile each placeholder stands for."""

from __future__ import annotations

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
