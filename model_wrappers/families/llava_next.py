"""LLaVA-NeXT: LLaVA with tiles of the image at several resolutions and a newline embedding per row of tokens."""

from __future__ import annotations

from lmms_eval_stability.model_wrappers.families.llava import Llava


class LlavaNext(Llava):
    """Differs from LLaVA-1.5 in its configuration only; newline positions are image placeholders too."""

    model_type = "llava_next"
