"""Dropping visual tokens between decoder layers of a transformers vision-language model, without touching its code.

Everything hangs on pre-hooks of the decoder layers: the one where a stage acts shortens the hidden states, and every
later one rewrites what the model passes to all layers alike (rotary embeddings, mask, position ids) to fit. The cache
needs no care, because each of its layers grows by what that layer is given; ``generate`` asks only the first layer for
the length, which is never shortened. The language model's output is put back to the length of the prompt, so that
logits, labels and ``logits_to_keep`` mean what they always mean; logits at dropped tokens are those of a zero vector.
The hooks themselves are in ``stage_hooks``; here is what a method has to say.

What is refused, because it would be wrong without notice: static, sliding-window and quantised caches, assisted
decoding, chunked prefill, ``inputs_embeds``, new images on a filled cache, flex attention, compiled models.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.base import Session, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.first_scores import FirstScores
from lmms_eval_stability.model_wrappers.token_reduction.generation import patch_generate
from lmms_eval_stability.model_wrappers.token_reduction.stage_hooks import StageHooks


@dataclass(frozen=True)
class Stage:
    """One place where tokens are dropped.

    Attributes:
        layer: Decoder layer (from 0) at whose input the tokens are dropped; at least 1.
        attention_layer: Layer whose attention ranks the tokens: one before ``layer``, read while it runs; or ``layer``
            itself, whose queries and keys are then computed from the tokens that it would have been given. None for a
            method that asks the text itself (``reduce_by_text``).
    """

    layer: int
    attention_layer: int | None


@dataclass(frozen=True)
class Reduction:
    """What a stage leaves of N visual tokens.

    Attributes:
        stays: (n,) indices of the tokens that stay, ascending.
        merged: (c, d) features made from tokens that do not stay, or None. They go behind the last visual token.
        places: (c,) index of the token whose place each of them takes in the bookkeeping: none of ``stays``, no two
            alike. Where positions are a grid's, that is the position it gets.
        sources: (M,) indices of the tokens that went into merged ones, for the trace.
        into: (M,) index into ``merged`` of each of them.
        scores: (n,) what a method wants to know of ``stays`` at its next stage; see ``reduce_by_text``.
    """

    stays: Tensor
    merged: Tensor | None = None
    places: Tensor | None = None
    sources: Tensor | None = None
    into: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class InsideLLM(TokenReducer):
    """Base of the methods that act inside the language model.

    A method says where it acts and how it ranks; hooks, masks, positions, cache, batches and statistics are done here.
    Only tokens of the prompt are dropped, in the prefill.
    """

    #: Whether the tokens are ranked by text tokens that ``raters`` picks, instead of by the last prompt token.
    has_raters: ClassVar[bool] = False
    #: Whether ``first_scores`` is asked for what the first stage is given as scores.
    has_first_scores: ClassVar[bool] = False

    @property
    def renumbers(self) -> bool:
        """Whether the tokens that are left are numbered anew without gaps, instead of keeping their positions.

        Without effect on models with multimodal rotary embedding (Qwen). There an image's positions are the rows and
        columns of its grid, and the text goes on after the longer side of the grid, however many tokens it has: there
        is no numbering that dropping could leave gaps in.
        """
        return False

    @abstractmethod
    def stages(self, depth: int) -> tuple[Stage, ...]:
        """Return where the method acts in a language model of ``depth`` layers, in the order of layers."""

    def first_drop(self, depth: int) -> int:
        """Return the first layer at whose input tokens may be dropped; ``depth`` if there is none."""
        return min((stage.layer for stage in self.stages(depth)), default=depth)

    @abstractmethod
    def keep_count(self, stage: int, entered: int, now: int) -> int:
        """Return how many visual tokens leave a stage.

        Args:
            stage: Index into ``stages``.
            entered: Visual tokens of the prompt, all images together.
            now: Visual tokens that are left before this stage.
        """

    @abstractmethod
    def score(self, attention: Tensor) -> Tensor:
        """Rank visual tokens: attention (H, R, N) of the query rows to them -> scores (N,), high means keep."""

    @abstractmethod
    def select(self, scores: Tensor, n: int) -> Tensor:
        """Return the indices of the ``n`` tokens to keep, ascending: (N,) -> (n,)."""

    def first_scores(self, n: int, pixels: Sequence[Tensor]) -> Tensor:
        """Return (n,) scores of a prompt's visual tokens before any layer has read them, if ``has_first_scores``.

        Args:
            n: Visual tokens of the prompt, all images together; at least 1.
            pixels: Of each of its images, as the vision tower is given them.
        """
        raise NotImplementedError

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        """Pick the text tokens whose attention ranks the visual ones, if ``has_raters``.

        Args:
            visual: (N, d) visual tokens as they enter the language model.
            text: (T, d) text tokens after them, up to the end of the prompt; T is at least 1.

        Returns:
            (R,) indices into ``text``, R at least 1.
        """
        raise NotImplementedError

    def acts(self, stage: int, entered: int, now: int) -> bool:
        """Return whether a stage changes anything, by the numbers of ``keep_count``."""
        return self.keep_count(stage, entered, now) < now

    def reduce(self, stage: int, entered: int, attention: Tensor, hidden: Tensor) -> Reduction:
        """Do one stage of one prompt; asked only where ``acts`` says so.

        Args:
            stage: Index into ``stages``.
            entered: Visual tokens of the prompt, all images together.
            attention: (H, R, N) float32, attention of the query rows to the visual tokens that are left.
            hidden: (N, d) those tokens, as they enter the layer of the stage.
        """
        n = self.keep_count(stage, entered, hidden.shape[0])
        return Reduction(self.select(self.score(attention), n))

    def reduce_by_text(
        self, stage: int, entered: int, visual: Tensor, text: Tensor, after: int, scores: Tensor | None
    ) -> Reduction:
        """Do one stage without an ``attention_layer`` of one prompt; asked only where ``acts`` says so.

        Args:
            stage: Index into ``stages``.
            entered: Visual tokens of the prompt, all images together.
            visual: (N, d) the visual tokens that are left, as they enter the layer of the stage.
            text: (T, d) all text tokens of the prompt, likewise.
            after: How many of these, the last ones, stand behind the last visual token of the prompt.
            scores: (N,) what the stage before returned as ``Reduction.scores``, or ``first_scores`` before any; None
                where neither said anything.
        """
        raise NotImplementedError

    def install(self, model: Any, family: Family, session: Session, stack: ExitStack) -> None:
        """Check that the model fits and hook its layers."""
        decoder: Any = family.decoder(model)
        depth = len(decoder.layers)
        stages = self.stages(depth)
        for stage in stages:
            if not 1 <= stage.layer < depth:
                raise InvalidParameterError(
                    f"{self}: cannot drop tokens before layer {stage.layer}; the language model has {depth} layers,"
                    f" so it must be 1 to {depth - 1}"
                )
        _refuse_model(model, decoder)
        scores = FirstScores(self, model, family, session)
        patch_generate(model, session, scores, stack)
        StageHooks(self, stages, model, family, session, scores).install(stack)


def _refuse_model(model: Any, decoder: Any) -> None:
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise UnsupportedModelError("token reduction does not work on a model wrapped by torch.compile")
    config = decoder.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or getattr(config, "sliding_window", None):
        raise UnsupportedModelError(
            "token reduction inside the language model does not support sliding-window attention: its windows would be"
            " counted over the tokens that are left. If prompts are shorter than the window, set sliding_window to null"
            " in the text_config of the checkpoint's config.json"
        )
    kernel = config._attn_implementation
    if kernel not in ("eager", "sdpa") and ("flash" not in kernel or "|" in kernel):
        raise UnsupportedModelError(
            f"token reduction supports the attention implementations eager, sdpa and flash, not {kernel!r}"
        )
