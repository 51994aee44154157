"""From a logged line to a verdict: prediction, score, correct.

One small adapter per family of benchmarks, one module each. To add a benchmark: write an `Adapter`, put it in
`ADAPTERS`, and test its `normalise` against the benchmark's own code.
"""

from __future__ import annotations

from .base import Adapter, Verdict, judge, judge_line
from .exact_match import GQA, SHAPES_VQA
from .generic import GENERIC
from .soft_vqa import SOFT_VQA, VQAV2

ADAPTERS: tuple[Adapter, ...] = (GQA, SHAPES_VQA, VQAV2, SOFT_VQA)

__all__ = ["ADAPTERS", "Adapter", "Verdict", "adapter_for", "judge", "judge_line"]


def adapter_for(task: str) -> Adapter:
    """The adapter of a task: the longest matching name wins; `gqa_lite` and `gqa_perturbed_image` are judged as `gqa`.

    A task that no adapter names gets the generic one, which needs nothing but a number per sample.
    """
    best = max(ADAPTERS, key=lambda adapter: adapter.matches(task))
    return best if best.matches(task) else GENERIC
