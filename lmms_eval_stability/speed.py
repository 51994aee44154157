"""What a run cost in time and memory, where the model logged it: shown beside what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Speed:
    """Measurements of a whole run by its model, of one process where there were several.

    Attributes:
        samples_per_second: requests answered per second, reading and preparing them included.
        prefill_seconds, decode_seconds: time up to all first tokens, and after them.
        vision_seconds: the part of the first in vision tower and projector.
        peak_memory_bytes: of tensors on the GPU, or of the process on a CPU.
    """

    samples_per_second: float
    prefill_seconds: float
    decode_seconds: float
    vision_seconds: float
    peak_memory_bytes: float

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Speed | None:
        """Read what a model of this package logs; None where it says nothing, or no numbers."""
        logged = facts.get("throughput")
        if not isinstance(logged, Mapping):
            return None
        values = [logged.get(item.name) for item in fields(cls)]
        numbers = [float(v) for v in values if isinstance(v, (int, float)) and isfinite(v) and v >= 0]
        return cls(*numbers) if len(numbers) == len(values) else None

    def record(self) -> dict[str, float]:
        """The numbers by their names in every output."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.samples_per_second:.3g} samples/s (prefill {self.prefill_seconds:.4g} s,"
            f" of it vision {self.vision_seconds:.4g} s, decode {self.decode_seconds:.4g} s),"
            f" peak memory {self.peak_memory_bytes / 2**30:.3g} GiB"
        )


def describe_speeds(baseline: Speed | None, run: Speed | None) -> str:
    """Say in words how fast a run was, and how fast the baseline; empty where neither log says."""
    if run is None:
        return "" if baseline is None else f"not logged; baseline {baseline}"
    if baseline is None:
        return str(run)
    ratio = (
        f"; ×{run.samples_per_second / baseline.samples_per_second:.3g} samples/s"
        if baseline.samples_per_second
        else ""
    )
    return f"{run}; baseline {baseline}{ratio}"
