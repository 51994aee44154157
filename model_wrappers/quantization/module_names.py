"""Names of modules in quantisation configs: as published, and as transformers 5 calls the same modules.

Published configs name modules as transformers 4 did (``visual``, ``language_model.model.layers``). In transformers 5
all parts of these models lie below ``model.``, names are compared from their start, and a name that fits nothing is
ignored without a word: what should have stayed in 16 bit becomes an empty quantised layer, or the other way round.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.families import Family

#: Beginnings of names that transformers 4 used, and those of transformers 5. The first that fits a module wins.
_MOVED = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("model.layers", "model.language_model.layers"),
    ("layers", "model.language_model.layers"),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("", "model."),
)

Matches = Callable[[str, str], bool]
"""``(entry, module name) -> bool``: whether an entry of a config means a module."""


@dataclass(frozen=True)
class ModuleNames:
    """Names of the linear layers of an architecture, and of its parts, as this transformers calls them.

    Attributes:
        linears: every linear layer.
        decoder: the language model without its head.
        beside_decoder: the outermost modules with linear layers outside the decoder: vision tower, projector, head.
        head: the output layer of the language model.
    """

    linears: tuple[str, ...]
    decoder: str
    beside_decoder: tuple[str, ...]
    head: str

    @property
    def vision(self) -> tuple[str, ...]:
        """Vision tower and projector: what stays in 16 bit unless ``quantize_vision``, beside the head."""
        return tuple(name for name in self.beside_decoder if name != self.head)


def module_names(config: Any, family: Family) -> ModuleNames:
    """Return the names of an architecture's modules; builds it without memory for its weights."""
    bare = copy.deepcopy(config)
    for part in (bare, bare.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(bare)
    return names_of(skeleton, family)


def names_of(model: nn.Module, family: Family) -> ModuleNames:
    """Return the names of a 16-bit model's modules."""
    names = {module: name for name, module in model.named_modules()}
    decoder, backbone = names[family.decoder(model)], names[family.backbone(model)]
    linears = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    outside = [name for name in linears if not name.startswith(f"{decoder}.")]
    depth = backbone.count(".") + 1  # of a part of the backbone
    parts = dict.fromkeys(
        ".".join(name.split(".")[: depth + 1]) if name.startswith(f"{backbone}.") else name.split(".")[0]
        for name in outside
    )
    return ModuleNames(linears, decoder, tuple(parts), "lm_head")


def transformers_matches(entry: str, name: str) -> bool:
    """Whether transformers takes ``entry`` of a skip list to mean the module ``name``."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    return not should_convert_module(name, [entry])


def prefix_matches(entry: str, name: str) -> bool:
    """Whether optimum takes ``entry`` (``block_name_to_quantize``) to mean the module ``name``."""
    return name.startswith(entry)


def compressed_tensors_matches(entry: str, name: str) -> bool:
    """Whether compressed-tensors takes ``entry`` (``ignore``, ``targets``) to mean the module ``name``."""
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), name) is not None
    return entry in (name, nn.Linear.__name__)


def respelled(entry: str, linears: Sequence[str], matches: Matches) -> str:
    """Return the spelling of ``entry`` that means a module of the model; ``entry`` itself if none does.

    >>> respelled("visual", ["model.visual.merger.mlp.0"], transformers_matches)
    'model.visual'
    """
    for candidate in (entry, *_candidates(entry)):
        if any(matches(candidate, name) for name in linears):
            return candidate
    return entry


def respell_all(
    key: str, entries: Sequence[str], linears: Sequence[str], matches: Matches
) -> tuple[list[str], list[str]]:
    """Return ``entries`` in the spelling of this transformers, and a line for each that was changed."""
    spelled = [respelled(entry, linears, matches) for entry in entries]
    changed = [f"{key}: {old} -> {new}" for old, new in zip(entries, spelled, strict=True) if old != new]
    return list(dict.fromkeys(spelled)), changed


def _candidates(entry: str) -> list[str]:
    mark, body = ("re:", entry.removeprefix("re:")) if entry.startswith("re:") else ("", entry)
    candidates = []
    for old, new in _MOVED:
        for start in (old, old.replace(".", r"\.")):
            if body.startswith(start):
                candidates.append(mark + new + body[len(start) :])
    return candidates
