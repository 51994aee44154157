"""LVPruning: small trained modules ask the question which visual tokens may go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM, Reduction, Stage
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_base import base_config, weights_digest
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import (
    Pruner,
    PrunerCard,
    load_pruner,
    read_card,
    spread_noise,
    stage_logits,
)
from lmms_eval_stability.model_wrappers.token_reduction.sequence import highest
from lmms_eval_stability.model_wrappers.token_reduction.spelling import AUTO, Numbers, shares, spelled

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lmms_eval_stability.model_wrappers.families.base import Family
    from lmms_eval_stability.model_wrappers.token_reduction.base import Session

#: ``pruner=demo``: the one that comes with the package, for the demo model.
DEMO = "demo"
_DECIDE = ("topk", "threshold")


class WrongBaseError(UnsupportedModelError):
    """A pruner was trained for another base model than the one that is loaded."""


@dataclass(frozen=True)
class LVPruning(InsideLLM):
    """Drop the visual tokens that a trained module, which has read the question, votes against.

    Sun et al., "LVPruning: An Effective yet Simple Language-Guided Vision Token Pruning Approach for Multi-modal Large
    Language Models", Findings of NAACL 2025 (arXiv 2501.13652). Written from the description in its abstract
    and figure 2, without official code: vision tokens are queries, language tokens keys and values of a cross-attention
    before chosen decoder layers, a decision per vision token, masks in training and removal by index here; the base's
    weights are frozen. Whatever else there is to choose is a parameter of this method or of the training, and ours.

    A trained pruner says before which layers it acts. What is left keeps its original positions.

    Args:
        pruner: Folder of a pruner made by ``lmms-eval-stability train-pruner``; ``demo`` is the demo model's.
        keep: Share of the prompt's visual tokens left after each stage, e.g. ``0.5-0.25-0.1``: ``round(n * share)``, at
            least 1, those with the highest logits. ``auto`` is what the pruner was trained for. 1 drops nothing.
        decide: ``topk`` keeps as many as ``keep`` says; ``threshold`` those whose probability of staying reaches
            ``cutoff``, at least one: a number of tokens that depends on image and question.
        cutoff: That probability, from 0 (drops nothing) to 1.
        any_base: Do not compare the base's weights with those that the pruner was trained for, only its sizes: for a
            quantised checkpoint of the base, say.
    """

    pruner: str = DEMO
    keep: Numbers = AUTO
    decide: str = "topk"
    cutoff: float = 0.5
    any_base: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pruner, str) or not self.pruner:
            raise InvalidParameterError(f"LVPruning: pruner must be a folder or '{DEMO}', not {self.pruner!r}")
        if self.decide not in _DECIDE:
            raise InvalidParameterError(f"LVPruning: decide must be topk or threshold, not {self.decide!r}")
        if not isinstance(self.any_base, bool):
            raise InvalidParameterError(f"LVPruning: any_base must be True or False, not {self.any_base!r}")
        cutoff: object = self.cutoff
        if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not 0 <= cutoff <= 1:
            raise InvalidParameterError(f"LVPruning: cutoff must be a number from 0 to 1, not {cutoff!r}")
        if self.decide == "topk" and cutoff != 0.5:
            raise InvalidParameterError("LVPruning: cutoff belongs to decide=threshold")
        if self.keep != AUTO:
            if self.decide == "threshold":
                raise InvalidParameterError("LVPruning: with decide=threshold the modules decide, so keep has no use")
            keep = shares("LVPruning: keep", self.keep)
            if list(keep) != sorted(keep, reverse=True) or not all(keep):
                raise InvalidParameterError(f"LVPruning: keep must be above 0 and not increase, which {self.keep!r} do")
            object.__setattr__(self, "keep", spelled(keep))  # one spelling: it is logged, and compared between runs

    @property
    def folder(self) -> Path:
        """Where the pruner is."""
        if self.pruner == DEMO and not Path(DEMO).is_dir():
            from lmms_eval_stability.demo import PRUNER_DIR

            return PRUNER_DIR
        return Path(self.pruner).expanduser()

    # Read when first asked for, and no fields: the parameters are logged, and compared between runs.

    @cached_property
    def card(self) -> PrunerCard:
        """What the pruner says of itself."""
        return read_card(self.folder)

    @cached_property
    def modules(self) -> Pruner:
        """Its modules."""
        return load_pruner(self.folder)

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """The shares that are kept, one per stage."""
        layers, trained = self.card.design.layers, self.card.design.keep
        keep = trained if self.keep == AUTO else shares("LVPruning: keep", self.keep)
        if len(keep) == 1:
            keep *= len(layers)
        if len(keep) != len(layers):
            raise InvalidParameterError(
                f"LVPruning: keep={self.keep} gives {len(keep)} shares, but the pruner {self.pruner} acts before layers"
                f" {spelled(layers)}; give one per layer, or one for all"
            )
        return keep

    @property
    def drops_tokens(self) -> bool:
        return self.cutoff > 0 if self.decide == "threshold" else min(self.ratios) < 1

    def stages(self, depth: int) -> tuple[Stage, ...]:  # noqa: ARG002
        return tuple(Stage(layer=layer, attention_layer=None) for layer in self.card.design.layers)

    def install(self, model: Any, family: Family, session: Session, stack: ExitStack) -> None:
        self._require_base(model)
        _ = self.ratios, self.modules  # what is wrong with them is said before anything is answered
        super().install(model, family, session, stack)

    def _require_base(self, model: Any) -> None:
        base, found = self.card.base, base_config(model.config)
        loaded = getattr(model.config, "_name_or_path", "") or type(model).__name__
        remedy = "train one for this model with lmms-eval-stability train-pruner"
        if base["config"] != found:
            differ = [part for part in found if base["config"].get(part) != found[part]]
            raise WrongBaseError(
                f"pruner {self.pruner} was trained for '{base['name']}', and '{loaded}' has other sizes"
                f" ({', '.join(differ)}); {remedy}"
            )
        if self.any_base:
            return
        digest = weights_digest(model)
        if digest != base["sha256"]:
            raise WrongBaseError(
                f"pruner {self.pruner} was trained for '{base['name']}' with weights {base['sha256'][:12]}, but"
                f" those of '{loaded}' are {digest[:12]}; {remedy}, or take it nonetheless with any_base=True"
            )

    def acts(self, stage: int, entered: int, now: int) -> bool:
        if self.decide == "threshold":
            return self.cutoff > 0 and now > 1
        # Also where nothing is dropped yet: later modules add to what this one says.
        return any(self.keep_count(later, entered, now) < now for later in range(stage, len(self.ratios)))

    def keep_count(self, stage: int, entered: int, now: int) -> int:
        return min(now, max(1, round(entered * self.ratios[stage])))

    def score(self, attention: Tensor) -> Tensor:
        """Not asked: no attention of the base ranks the tokens."""
        raise NotImplementedError

    def select_above(self, logits: Tensor) -> Tensor:
        """Return the indices of the tokens that reach the cutoff, ascending; the best one if none does."""
        above = (logits.sigmoid() >= self.cutoff).nonzero().squeeze(1)
        return above if len(above) else logits.argmax()[None]

    def select(self, logits: Tensor, n: int) -> Tensor:
        """Return the ``n`` highest logits' indices in ascending order: (N,) -> (n,). Of equal ones the first wins."""
        return highest(logits, n)

    def reduce_by_text(
        self, stage: int, entered: int, visual: Tensor, text: Tensor, after: int, scores: Tensor | None
    ) -> Reduction:
        """Ask the stage's module; what it says is added to what those before it said."""
        asked = text[len(text) - after :] if self.card.design.text == "question" and after else text
        design = self.card.design
        if scores is None and design.noise == "spread" and self.decide == "topk":
            scores = spread_noise(len(visual), design.side)
        logits = stage_logits(self.modules, stage, visual, asked, scores)
        if self.decide == "threshold":
            stays = self.select_above(logits)
        else:
            stays = self.select(logits, self.keep_count(stage, entered, len(visual)))
        return Reduction(stays, scores=logits[stays])
