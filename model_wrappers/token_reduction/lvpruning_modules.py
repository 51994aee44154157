"""The trained part of LVPruning: one small cross-attention module per stage, and the file format that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmms_eval_stability.model_wrappers.token_reduction.errors import TokenReductionError

CARD = "pruner.json"
WEIGHTS = "pruner.safetensors"
FORMAT = 1
#: What the vision tokens ask: all text of the prompt, or only what stands behind the last image.
TEXTS = ("all", "question")
#: How chance is added to the logits: independently for every token, in training only; or spread evenly over the image.
NOISES = ("random", "spread")
#: Two irrational steps whose multiples fill the unit interval evenly along rows and columns (Roberts' R2 sequence).
_STEPS = (0.7548776662466927, 0.5698402909980532)


class PrunerFileError(TokenReductionError, ValueError):
    """A folder that should hold a trained pruner does not, or holds one that cannot be read."""


@dataclass(frozen=True)
class PrunerDesign:
    """What a pruner is, apart from its weights.

    Attributes:
        layers: Decoder layers (from 0) before which tokens are dropped, ascending; the first is at least 1.
        keep: Share of the prompt's visual tokens left after each stage, not increasing: what it was trained for.
        hidden: Width d of the base's decoder.
        width: Width of the modules.
        heads: Heads of their cross-attention; divides ``width``.
        text: The text tokens that are keys and values, one of ``TEXTS``.
        noise: One of ``NOISES``. With ``spread`` it is added at inference, too.
        side: Tokens per row of an image, for ``spread``; 0 where images differ: the square root of their number.
    """

    layers: tuple[int, ...]
    keep: tuple[float, ...]
    hidden: int
    width: int
    heads: int
    text: str = "all"
    noise: str = "random"
    side: int = 0

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 1:
            raise PrunerFileError(f"pruner: layers must ascend and begin at 1 or later, not {list(self.layers)}")
        if len(self.keep) != len(self.layers) or list(self.keep) != sorted(self.keep, reverse=True):
            raise PrunerFileError(
                f"pruner: keep must give one share per layer, not increasing; {list(self.keep)} for layers"
                f" {list(self.layers)}"
            )
        if not all(0 < share <= 1 for share in self.keep):
            raise PrunerFileError(f"pruner: shares to keep must be above 0 and at most 1, not {list(self.keep)}")
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise PrunerFileError(f"pruner: width {self.width} is not a multiple of {self.heads} heads")
        if self.text not in TEXTS:
            raise PrunerFileError(f"pruner: text must be one of {', '.join(TEXTS)}, not {self.text!r}")
        if self.noise not in NOISES:
            raise PrunerFileError(f"pruner: noise must be one of {', '.join(NOISES)}, not {self.noise!r}")


class PruningModule(nn.Module):
    """Says of every vision token whether it stays, after asking the language tokens (Sun et al.).

    Vision tokens are queries, language tokens keys and values of one cross-attention; a two-layer perceptron reads its
    result beside the query. The order of layers and norms is our choice (pre-norm, as the decoder's), and so is that a
    module adds to the logits of the modules before it: their verdict stands until there is reason to change it. It
    computes in float32 whatever the base computes in.
    """

    def __init__(self, hidden: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.vision_norm = nn.LayerNorm(hidden)
        self.language_norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, width)
        self.key = nn.Linear(hidden, width)
        self.value = nn.Linear(hidden, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * width)
        self.decide = nn.Linear(2 * width, 1)

    def forward(self, vision: Tensor, language: Tensor, real: Tensor | None = None) -> Tensor:
        """Return what this module adds to the logits of staying: (B, N, d), (B, T, d) -> (B, N) float32.

        A token whose sum is above 0 should stay.

        Args:
            vision: Hidden states of the vision tokens.
            language: Hidden states of the language tokens.
            real: (B, T) bool, the language tokens that count; at least one per row. None if all do.
        """
        batch, n, _ = vision.shape
        query = self.query(self.vision_norm(vision.float()))
        heard = self.language_norm(language.float())
        split = [part.view(batch, part.shape[1], self.heads, -1).transpose(1, 2) for part in (query, self.key(heard))]
        values = self.value(heard).view(batch, language.shape[1], self.heads, -1).transpose(1, 2)
        mask = None if real is None else real[:, None, None]
        asked = nn.functional.scaled_dot_product_attention(*split, values, attn_mask=mask)
        told = query + self.mix(asked.transpose(1, 2).reshape(batch, n, -1))
        logits: Tensor = self.decide(nn.functional.gelu(self.first(self.norm(told))))
        return logits.squeeze(-1)


class Pruner(nn.Module):
    """All modules of a pruner, in the order of their layers."""

    def __init__(self, design: PrunerDesign) -> None:
        super().__init__()
        self.design = design
        self.stages = nn.ModuleList(PruningModule(design.hidden, design.width, design.heads) for _ in design.layers)

    def begin_at_shares(self) -> None:
        """Set the last layers so that, with noise, each stage begins at its share, and prefers no token to another."""
        before = 0.0
        for module, share in zip(self.stages, self.design.keep, strict=True):
            logit = math.log(min(share, 0.99) / (1 - min(share, 0.99)))
            nn.init.constant_(module.decide.bias, logit - before)
            nn.init.zeros_(module.decide.weight)
            before = logit


@dataclass(frozen=True)
class PrunerCard:
    """What stands beside the weights.

    Attributes:
        design: What the pruner is.
        base: The model it was trained for: ``name``, ``config`` (see ``lvpruning_base.base_config``) and ``sha256``.
        training: How it was trained; free, not read by the method.
    """

    design: PrunerDesign
    base: Mapping[str, Any]
    training: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the text of ``pruner.json``."""
        content = {"format": FORMAT, "method": "lvpruning", "design": asdict(self.design)}
        return json.dumps({**content, "base": dict(self.base), "training": dict(self.training)}, indent=2) + "\n"


def save_pruner(folder: Path, pruner: Pruner, card: PrunerCard) -> None:
    """Write both files of a pruner into an existing folder."""
    state = {name: value.detach().cpu().contiguous() for name, value in pruner.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CARD).write_text(card.to_json(), encoding="utf-8")


def read_card(folder: Path) -> PrunerCard:
    """Read ``pruner.json``.

    Raises:
        PrunerFileError: there is none, or it is not what ``train-pruner`` writes.
    """
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PrunerFileError(
            f"there is no pruner at {folder}: {CARD} cannot be read ({error.strerror}); train one with"
            " lmms-eval-stability train-pruner, or give pruner=demo for the one of the demo model"
        ) from error
    except ValueError as error:
        raise PrunerFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("method") != "lvpruning" or content.get("format") != FORMAT:
        raise PrunerFileError(f"{path} is not a pruner of format {FORMAT}; train it again with this version")
    try:
        design = dict(content["design"])
        for name in ("layers", "keep"):
            design[name] = tuple(design[name])
        base = content["base"]
        if not {"name", "config", "sha256"} <= set(base):
            raise PrunerFileError(f"{path}: 'base' must have name, config and sha256")
        return PrunerCard(PrunerDesign(**design), base, content.get("training") or {})
    except (KeyError, TypeError) as error:
        raise PrunerFileError(f"{path} lacks or misspells a part: {error}; train the pruner again") from error


def load_pruner(folder: Path) -> Pruner:
    """Read a pruner, in evaluation mode on the CPU.

    Raises:
        PrunerFileError: a file is missing or the weights do not fit the card.
    """
    pruner = Pruner(read_card(folder).design)
    path = folder / WEIGHTS
    try:
        pruner.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise PrunerFileError(f"{folder} has a {CARD} but no {WEIGHTS}; copy the whole folder") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PrunerFileError(f"{path} cannot be loaded: {reason}") from error
    return pruner.eval().requires_grad_(False)


def spread_noise(n: int, side: int, shift: float = 0.0) -> Tensor:
    """Return logistic noise (n,) for the tokens of an image, row by row, that differs as evenly as it can.

    As in the dithering of pictures: where all logits are equal, the tokens with the highest sums are spread over the
    image instead of being in clusters, as those of independent noise are; where logits differ, more of them are where
    these are higher.

    Args:
        n: Tokens; several images, or tiles, are read on as if they were further rows.
        side: Tokens per row; 0 takes the square root of ``n``.
        shift: Moves all values by as much of the unit interval.
    """
    side = side or max(1, math.isqrt(n))
    number = torch.arange(n, dtype=torch.float64)
    uniform = ((number // side) * _STEPS[0] + (number % side) * _STEPS[1] + shift) % 1
    return uniform.clamp(1e-4, 1 - 1e-4).logit().float()


def stage_logits(pruner: Pruner, stage: int, vision: Tensor, language: Tensor, before: Tensor | None) -> Tensor:
    """Return one prompt's logits of one stage: (N, d), (T, d) -> (N,) float32, on the device of ``vision``.

    ``before`` are the logits (N,) of the stage before, or None.
    """
    module = pruner.stages[stage].to(vision.device)
    with torch.no_grad():
        logits: Tensor = module(vision[None], language[None].to(vision.device))[0]
    return logits if before is None else before.to(logits.device) + logits
