"""What is recorded with every answer, in lmms-eval's own sample log.

lmms-eval writes ``token_counts.to_dict()`` of each answer into the answer's line, so a subclass can carry more than
counts there: no side files that could be lost.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lmms_eval.api.instance import TokenCounts
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from lmms_eval_stability.model_wrappers.families.base import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Measurements(TokenCounts):
    """One answer's measurements; fields that are ``None`` are left out of the log.

    Attributes:
        input_fingerprint: 32 hex digits over the prompt text and the pixels of its images (see ``fingerprint``).
        image_fingerprint: 32 hex digits over the pixels alone, so that questions about one image can be told to belong
            together; absent for a prompt without images.
        visual_tokens: visual tokens at the input of the layers in ``visual_token_layers``; the first is the prompt's.
        visual_token_layers: decoder layers, the first is 0.
        diagnostics: what the method has to say of each image, by name: one number per image of the prompt, None for an
            image that it left as it was.
        prefill_ms: milliseconds up to the first token's logits, vision tower included; in a batch, the batch's time
            divided by its rows.
        decode_ms: milliseconds of the remaining steps, divided in the same way.
        vision_ms: the part of ``prefill_ms`` spent in the vision tower and the projector.
        first_token_logprobs: the five most probable first tokens: [id, text, natural log-probability].
        answer_tokens: tokens of an answer that was given to be scored.
        answer_logprob: sum of the natural log-probabilities of the answer's tokens, end-of-sequence included. Both
            log-probabilities are taken from the scores that the token was chosen by, after any logits processors of
            the checkpoint's generation settings.
        error: why there is no answer (``on_error=record`` only).
        run: facts of the whole run; carried by the first answer of each task on each rank.
    """

    input_fingerprint: str | None = None
    image_fingerprint: str | None = None
    visual_tokens: list[int] | None = None
    visual_token_layers: list[int] | None = None
    diagnostics: dict[str, list[float | None]] | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    vision_ms: float | None = None
    first_token_logprobs: list[list[Any]] | None = None
    answer_tokens: int | None = None
    answer_logprob: float | None = None
    error: str | None = None
    run: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Fingerprints:
    """Digests (BLAKE2b, 128 bits, as 32 hex digits) of what a document really shows the model.

    Attributes:
        input: rendered prompt text and the digests of its images.
        image: of a single image its digest, of several that of their digests; ``None`` without images.
        images: of each image: its size and its RGB pixels.
    """

    input: str
    image: str | None
    images: tuple[str, ...] = ()


class ImageDigests:
    """Digests of images; those seen last are recognised by their bytes, which takes a twentieth of the time.

    A data set decodes an image anew for every question about it, so equal images are different objects. To be called
    from several threads.

    Args:
        count: images whose bytes are kept.
    """

    def __init__(self, count: int = 4) -> None:
        self._seen: deque[tuple[bytes, str]] = deque(maxlen=count)

    def __call__(self, image: Image) -> str:
        """Return the digest of an image's size and RGB pixels, before any resizing by the processor."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        shown = rgb.width.to_bytes(4, "big") + rgb.height.to_bytes(4, "big") + rgb.tobytes()
        for before, digest in tuple(self._seen):
            if before == shown:
                return digest
        made = _digest(shown)
        self._seen.append((shown, made))
        return made


def fingerprints(prompt: Prompt, digest: Callable[[Image], str] | None = None) -> Fingerprints:
    """Return the digests of a prompt.

    Images count as RGB pixels with their size, before any resizing by the processor, so runs of different methods over
    the same inputs agree, and a re-encoded or perturbed image does not.

    Args:
        digest: an ``ImageDigests`` that has seen other prompts.
    """
    images = tuple(map(digest or ImageDigests(), prompt.images))
    text = prompt.text.encode()
    whole = _digest(b"".join([len(text).to_bytes(8, "big"), text, *map(bytes.fromhex, images)]))
    if len(images) < 2:
        return Fingerprints(whole, images[0] if images else None, images)
    return Fingerprints(whole, _digest(b"".join(map(bytes.fromhex, images))), images)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def log_throughput(counts: Sequence[Measurements]) -> None:
    """Hand the tokens and seconds of one rank's answers to lmms-eval, for the throughput in its results file."""
    seconds = sum((c.prefill_ms or 0.0) + (c.decode_ms or 0.0) for c in counts) / 1e3
    tokens = sum(c.output_tokens or 0 for c in counts)
    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=tokens,
        avg_speed=tokens / seconds if seconds else 0.0,
        additional_metrics={"total_requests": len(counts)},
    )
