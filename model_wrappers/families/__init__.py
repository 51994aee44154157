"""Base architectures: one file each, found by ``config.model_type``."""

from __future__ import annotations

from typing import Any

from lmms_eval_stability.model_wrappers.errors import WrongFamilyError
from lmms_eval_stability.model_wrappers.families.base import Family, Prompt
from lmms_eval_stability.model_wrappers.families.llava import Llava
from lmms_eval_stability.model_wrappers.families.llava_next import LlavaNext
from lmms_eval_stability.model_wrappers.families.qwen2_5_vl import Qwen25VL
from lmms_eval_stability.model_wrappers.families.qwen2_vl import Qwen2VL

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Llava(), LlavaNext(), Qwen2VL(), Qwen25VL())}

__all__ = ["FAMILIES", "Family", "Llava", "LlavaNext", "Prompt", "Qwen2VL", "Qwen25VL", "family_for"]


def family_for(config: Any) -> Family:
    """Return the family of a transformers configuration.

    Raises:
        WrongFamilyError: when no family serves ``config.model_type``.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise WrongFamilyError(
            f"checkpoints of type '{config.model_type}' are not served; served are: {', '.join(sorted(FAMILIES))}"
        )
    return family
