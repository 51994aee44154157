"""Models of tiny width with the depth and image tokens of the real LLaVA: 32 layers, 336 pixels, 24 x 24 patches."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.model_wrappers.families import family_for
from tests import tiny_models
from tests.model_wrappers.token_reduction.conftest import Tiny


def build_real_geometry(kind: str, folder: Path) -> Tiny:
    """Return a ``llava`` or ``llava_next`` whose prompts have as many visual tokens as those of the checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "_IMAGE_SIZE", 336)
        patch.setattr(tiny_models, "DEPTH", 32)
        tiny_models.build_tiny(kind, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return Tiny(kind, model, AutoProcessor.from_pretrained(folder), family_for(model.config))
