"""From a logged line to a verdict: prediction, score, correct.

One small adapter per family of benchmarks, one module each. To add a benchmark: write an `Adapter`, put it in
`ADAPTERS`, and test its predictions against the benchmark's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Adapter, Verdict, judge, judge_line
from .exact_match import GQA, SHAPES_VQA, adapter_of
from .generic import CHOICE, GENERIC
from .groups import SHAPES_SPURIOUS
from .letters import AI2D, SCIENCEQA
from .mmbench import MMBENCH, MMBENCH_STATIC
from .mmmu import MMMU
from .pair_metrics import PairMetric
from .policies import POLICIES, SCORED, with_policy
from .pope import POPE
from .soft_vqa import SOFT_VQA, VQAV2
from .vqa_rad import VQA_RAD

ADAPTERS: tuple[Adapter, ...] = (
    GQA,
    SHAPES_VQA,
    SHAPES_SPURIOUS,
    VQAV2,
    SOFT_VQA,
    VQA_RAD,
    AI2D,
    SCIENCEQA,
    POPE,
    MMMU,
    MMBENCH,
    MMBENCH_STATIC,
)

__all__ = [
    "ADAPTERS",
    "CHOICE",
    "GENERIC",
    "POLICIES",
    "SCORED",
    "Adapter",
    "PairMetric",
    "Verdict",
    "adapter_for",
    "judge",
    "judge_line",
    "with_policy",
]


def adapter_for(task: str, exact_match: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter of a task: the longest matching name wins; `gqa_lite` and `gqa_image_perturbed` are judged as `gqa`.

    A task that no adapter names gets the generic one, which needs nothing but a number per sample, unless
    `exact_match` gives the options with which lmms-eval's own exact match compared its answers.
    """
    best = max(ADAPTERS, key=lambda adapter: adapter.matches(task))
    if best.matches(task):
        return best
    return (None if exact_match is None else adapter_of(exact_match)) or GENERIC
