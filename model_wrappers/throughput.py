"""What a run cost: samples per second, where the time went, and the peak of memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from lmms_eval_stability.model_wrappers.measurements import Measurements


@dataclass(frozen=True)
class Throughput:
    """Measurements of the requests of one call by lmms-eval, on one rank.

    Attributes:
        samples: requests answered.
        seconds: from the first document read to the last answer.
        samples_per_second: of these two.
        prefill_seconds, decode_seconds: sums over the batches; the vision tower is part of the prefill.
        vision_seconds: in the vision tower and the projector.
        images_encoded: images that went through them; None where that is not counted (``reuse=none``).
        input_tokens, output_tokens: sums over the samples.
        peak_memory_bytes: of tensors on the GPU; of the whole process so far on a CPU.
    """

    samples: int
    seconds: float
    samples_per_second: float
    prefill_seconds: float
    decode_seconds: float
    vision_seconds: float
    images_encoded: int | None
    input_tokens: int
    output_tokens: int
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, float | int]:
        """Return what is known, ready for JSON."""
        rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}
        return {name: value for name, value in rounded.items() if value is not None}


class Stopwatch:
    """Measures a run from when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._started = time.perf_counter()

    def read(self, counts: Sequence[Measurements], vision_seconds: float, images: int | None) -> Throughput:
        """Return the measurements of a run that has just ended."""
        seconds = time.perf_counter() - self._started
        return Throughput(
            samples=len(counts),
            seconds=seconds,
            samples_per_second=len(counts) / seconds if seconds else 0.0,
            prefill_seconds=sum(c.prefill_ms or 0.0 for c in counts) / 1e3,
            decode_seconds=sum(c.decode_ms or 0.0 for c in counts) / 1e3,
            vision_seconds=vision_seconds,
            images_encoded=images,
            input_tokens=sum(c.input_tokens or 0 for c in counts),
            output_tokens=sum(c.output_tokens or 0 for c in counts),
            peak_memory_bytes=self._peak(),
        )

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
