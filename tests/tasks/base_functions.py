"""What the base task of the tests of perturbed tasks does with a document."""

from __future__ import annotations

from typing import Any

from PIL import Image


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str]) -> str:
    return f"{doc['question']} Options: {doc['options']}.{lmms_eval_specific_kwargs['post_prompt']}"


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> list[Any]:
    """Interleave text and image, as MMMU does."""
    before, _, after = doc_to_text(doc, lmms_eval_specific_kwargs or {"post_prompt": ""}).partition("<image 1>")
    texts = [{"type": "text", "text": part} for part in (before, after)]
    image = {"type": "image", "url": doc_to_visual(doc)[0]}
    return [{"role": "user", "content": [texts[0], image, texts[1]]}]
