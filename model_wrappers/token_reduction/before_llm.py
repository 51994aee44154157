"""Shortening the visual features before a transformers language model, without touching its code.

The images are encoded once by the model's own tower and projector; the method makes fewer tokens of each image; the
placeholders that are left over are taken out of ``input_ids`` and everything of that length. Then the model runs as
usual on the shorter prompt. For that call its ``get_image_features`` answers with the shortened features, and for Qwen
its ``get_rope_index`` with the positions that the kept tokens have in the full prompt, so that whatever a release of
transformers does with features and positions (encoding before or inside ``forward``, beams, decoding) stays its own.

To the caller nothing is shorter: ``generate`` returns the full prompt before the answer, and a plain forward pass puts
hidden states back to the length of the prompt, zeros where a token was dropped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.base import Session, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.shortening import Shortening
from lmms_eval_stability.model_wrappers.token_reduction.trace import Origin
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView, Wanted


@dataclass(frozen=True)
class Compressed:
    """What is left of one image.

    Attributes:
        features: (N', d) the tokens that the language model sees.
        kept: (N',) long, ascending: the image's placeholders that they take the place of.
        origin: Says where the tokens come from, asked only for a trace; None: each is that of its placeholder.
        diagnostics: Numbers about this image for the sample log, by name.
    """

    features: Tensor
    kept: Tensor
    origin: Callable[[], Origin] | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BeforeLLM(TokenReducer):
    """Base of the methods that act between the vision tower and the language model.

    A method says what it reads of the vision tower and what it makes of one image; encoding, placeholders, positions,
    batches and statistics are done here. In ``RowTokens`` such a method acts at layer 0: ``layers`` is (0, 0), the
    counts are those before and after the method. What it makes of an image must depend on that image alone.
    """

    acts_before_llm: ClassVar[bool] = True

    def check_model(self, model: Any, family: Family) -> None:
        """Raise if the method cannot work on this model or its parameters do not fit it."""

    def wanted(self, model: Any, family: Family) -> Wanted:  # noqa: ARG002
        """Return what the method reads while images are encoded."""
        return Wanted()

    def smaller_images(self, model: Any, family: Family, inputs: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Return inputs that replace the images by smaller ones, for a method that acts before the vision tower."""
        return None

    @abstractmethod
    def compress(self, image: ImageView) -> Compressed | None:
        """Shorten one image; None leaves it as it is."""

    def install(self, model: Any, family: Family, session: Session, stack: ExitStack) -> None:
        """Check that the model fits, and patch its ``generate`` and its backbone."""
        if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            raise UnsupportedModelError("token reduction does not work on a model wrapped by torch.compile")
        self.check_model(model, family)
        Shortening(self, model, family, session).install(stack)
