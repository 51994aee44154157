"""FastV: drop the visual tokens that the end of the prompt hardly looks at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM, Stage
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest


@dataclass(frozen=True)
class FastV(InsideLLM):
    """Keep the visual tokens that the last prompt token attends to most; drop the rest before decoder layer ``k``.

    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764), section 4; official code
    https://github.com/pkunlp-icler/FastV, the llava-hf variant with a KV cache.

    Follows the official code where it departs from the paper: scores are the last prompt token's row of attention, not
    the average over all rows. Departs from the official code in that all images of a prompt are ranked together, any
    batch size works, and without a KV cache the selection is that of the prompt, not repeated with every new token.

    Args:
        k: Decoder layer (from 0) before which tokens are dropped, ranked by the attention of layer ``k - 1``;
            1 <= k < number of layers.
        r: Share of visual tokens to drop, 0 <= r < 1. ``round(n * (1 - r))`` are kept, in Python's rounding: halves go
            to the even number.
    """

    k: int = 3
    r: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InvalidParameterError(f"FastV: k must be a whole number of at least 1, not {self.k!r}")
        if isinstance(self.r, bool) or not isinstance(self.r, int | float) or not 0 <= self.r < 1:
            raise InvalidParameterError(f"FastV: r must be a number with 0 <= r < 1, not {self.r!r}")

    @property
    def drops_tokens(self) -> bool:
        return self.r > 0

    def stages(self, depth: int) -> tuple[Stage, ...]:  # noqa: ARG002
        return (Stage(layer=self.k, attention_layer=self.k - 1),)

    def keep_count(self, stage: int, entered: int, now: int) -> int:  # noqa: ARG002
        return round(entered * (1 - self.r))

    def score(self, attention: Tensor) -> Tensor:
        """Mean over heads of the last prompt token's attention: (H, 1, N) -> (N,)."""
        return attention.mean(dim=(0, 1))

    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the ``n`` highest scores' indices in ascending order: (N,) -> (n,). Of equal scores the first wins."""
        return highest(scores, n)
