"""PyramidDrop: drop more visual tokens the deeper the layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM, Stage
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest
from lmms_eval_stability.model_wrappers.token_reduction.spelling import (
    AUTO,
    Numbers,
    require_ascending,
    scaled,
    shares,
    spelled,
    whole_numbers,
)

_LAYERS = (8, 16, 24)  # of 32


@dataclass(frozen=True)
class PyramidDrop(InsideLLM):
    """Drop visual tokens in stages, before each of ``layers``, until the share ``ratios`` of them is left.

    Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    CVPR 2025 (arXiv 2410.17247), section 3; official code https://github.com/Cooperx521/PyramidDrop.

    Like the official code: the tokens before a stage are ranked by the attention that the last prompt token pays them
    under the layer norm, queries and keys of the layer which follows, softmaxed in fp32 over all tokens; text is never
    dropped. Departs from the official code in that all images of a prompt are ranked together, any batch size works,
    key heads that serve several query heads (GQA) work, and grid positions (Qwen) stay as they are.

    Args:
        layers: Decoder layers (from 0) before which tokens are dropped, e.g. ``8-16-24``; 1 <= layer < number of
            layers, ascending. ``auto`` is 8-16-24 of 32 layers, scaled to the depth of the model.
        ratios: Share of the prompt's visual tokens that is left after each stage, not increasing. ``int(n * ratio)``
            stay, n being the visual tokens of the prompt, not those before the stage.
        renumber: Number the tokens that are left without gaps after each stage, as the official code does; otherwise
            they keep their positions.
    """

    layers: Numbers = AUTO
    ratios: Numbers = "0.5-0.25-0.125"
    renumber: bool = True

    def __post_init__(self) -> None:
        ratios = shares("PyramidDrop: ratios", self.ratios)
        if any(later > earlier for earlier, later in pairwise(ratios)):
            raise InvalidParameterError(f"PyramidDrop: ratios must not increase, which {self.ratios!r} do")
        layers = _LAYERS if self.layers == AUTO else whole_numbers("PyramidDrop: layers", self.layers)
        if len(layers) != len(ratios):
            raise InvalidParameterError(
                f"PyramidDrop: layers and ratios must be equally many, not {spelled(layers)} and {spelled(ratios)}"
            )
        if not isinstance(self.renumber, bool):
            raise InvalidParameterError(f"PyramidDrop: renumber must be True or False, not {self.renumber!r}")
        # One spelling, whatever was given: it is logged, and compared between runs.
        object.__setattr__(self, "ratios", spelled(ratios))
        object.__setattr__(self, "layers", AUTO if self.layers == AUTO else spelled(layers))

    @property
    def drops_tokens(self) -> bool:
        return min(shares("ratios", self.ratios)) < 1

    @property
    def renumbers(self) -> bool:
        return self.renumber

    def stages(self, depth: int) -> tuple[Stage, ...]:
        layers = scaled(_LAYERS, depth) if self.layers == AUTO else whole_numbers("layers", self.layers)
        require_ascending(str(self), layers, depth)
        return tuple(Stage(layer=layer, attention_layer=layer) for layer in layers)

    def keep_count(self, stage: int, entered: int, now: int) -> int:
        return min(now, int(entered * shares("ratios", self.ratios)[stage]))

    def score(self, attention: Tensor) -> Tensor:
        """Mean over heads of the last prompt token's attention: (H, 1, N) -> (N,)."""
        return attention.mean(dim=(0, 1))

    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the ``n`` highest scores' indices in ascending order: (N,) -> (n,). Of equal scores the first wins."""
        return highest(scores, n)
