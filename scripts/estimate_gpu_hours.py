"""GPU hours of the paper's studies, by a model of time: an estimate, not a measurement.

    python scripts/estimate_gpu_hours.py                                    # the studies of configs/paper
    python scripts/estimate_gpu_hours.py STUDY.yaml --tflops 989 --bandwidth 3.35
    python scripts/estimate_gpu_hours.py --measured llava_1_5_7b=14.2 --measured llava_1_5_7b/fastv=17.0

Seconds of a sample = 2 x multiply-adds of vision tower and prefill / (peak x share reached)
                    + answer tokens x bytes of the weights / (bandwidth x share reached) / batch size
                    + seconds on the host that the GPU waits for;
of a process, its start in addition. Multiply-adds of the prefill are `lmms_eval_stability.cost`'s, with the visual
tokens that each method leaves in each layer. Every assumption is a field of `Assumptions` and printed with the result;
a measured rate (samples per second of all tasks of a base model, or of one run of it) replaces it for these cells.

Left out: downloads, queues, failed runs, table 5's judge, making perturbed images and text, quantising checkpoints.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lmms_eval_stability.cost import Geometry, prefill_cost
from lmms_eval_stability.study import Cell, Plan, load_study, plan_study

CONFIGS = Path(__file__).parents[1] / "configs" / "paper"


@dataclass(frozen=True)
class Assumptions:
    """What the estimate rests on: one A100 80 GB, SXM, and pictures of 640 x 480.

    Attributes:
        tflops: dense 16-bit peak, 10^12 FLOP/s. bandwidth: of memory, 10^12 B/s.
        reached_tflops, reached_bandwidth: shares of these that transformers' generation reaches.
        int8: how many times slower LLM.int8() prefills than 16 bit.
        host: seconds per sample that the GPU waits for images and text processing.
        startup: seconds of a process until its first batch: imports, tasks, weights.
        text: tokens of a prompt that are no image. answer: tokens of an answer; conversation: of a long one.
    """

    tflops: float = 312.0
    bandwidth: float = 2.0
    reached_tflops: float = 0.35
    reached_bandwidth: float = 0.3
    int8: float = 2.0
    host: float = 0.01
    startup: float = 90.0
    text: int = 60
    answer: int = 4
    conversation: int = 200


@dataclass(frozen=True)
class Architecture:
    """A base model.

    Attributes:
        tower: as a language model of `patches` tokens. partitions: pictures that the tower sees per image.
        visual: tokens of an image of 640 x 480 in the prompt.
        weights: 10^9 bytes of the language model in 16 bit.
    """

    language: Geometry
    tower: Geometry
    patches: int
    partitions: int
    visual: int
    weights: float


_VICUNA = Geometry(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128)
_MISTRAL = Geometry(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128)
_QWEN2 = Geometry(layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128)
_CLIP = Geometry(layers=23, hidden=1024, intermediate=4096, heads=16, kv_heads=16, head_dim=64, mlp_matrices=2)
_VIT2 = Geometry(layers=32, hidden=1280, intermediate=5120, heads=16, kv_heads=16, head_dim=80, mlp_matrices=2)
# windows in most of its layers make Qwen2.5-VL's own a little cheaper than the whole square counted here
_VIT25 = Geometry(layers=32, hidden=1280, intermediate=3420, heads=16, kv_heads=16, head_dim=80)

#: By label of the base model in configs/paper. 640 x 480 is 2 x 2 tiles of 336 for LLaVA-NeXT (2,340 tokens with
#: newlines) and 23 x 17 tokens of 28 x 28 pixels for the Qwens.
ARCHITECTURES: dict[str, Architecture] = {
    "llava_1_5_7b": Architecture(_VICUNA, _CLIP, 577, 1, 576, 13.5),
    "llava_next_7b": Architecture(_VICUNA, _CLIP, 577, 5, 2340, 13.5),
    "llava_med_7b": Architecture(_MISTRAL, _CLIP, 577, 1, 576, 14.5),
    "qwen2_vl_7b": Architecture(_QWEN2, _VIT2, 4 * 391, 1, 391, 15.2),
    "qwen2_5_vl_7b": Architecture(_QWEN2, _VIT25, 4 * 391, 1, 391, 15.2),
}


def visual_tokens(method: str, base: Architecture) -> tuple[list[int], list[int]]:
    """Layers at whose input visual tokens are counted, and the counts, with the settings of configs/paper."""
    n = base.visual
    stages = {
        "fastv": ([0, 3], [n, round(n / 2)]),
        "pyramiddrop": ([0, 8, 16, 24], [n, n // 2, n // 4, n // 8]),
        "sparsevlm": ([0, 3, 7, 16], [n, *(n * tokens // 576 for tokens in (309, 204, 113))]),
        "visionzip": ([0], [192 * base.partitions]),
        "hired": ([0], [int(576 * base.partitions * 0.2)]),
    }
    return stages.get(method, ([0], [n]))


def seconds_per_sample(cell: Cell, base: Architecture, assumed: Assumptions) -> float:
    """The model of the module's docstring for one document of a cell."""
    layers, counts = visual_tokens(cell.method, base)
    prefill = prefill_cost(base.language, layers, counts, assumed.text).flops
    per_picture = base.tower.flops(base.patches * base.tower.layers, base.patches**2 * base.tower.layers)
    flops = 2 * (prefill + base.partitions * per_picture)
    slower = assumed.int8 if cell.method == "int8" else 1.0
    computing = slower * flops / (assumed.tflops * 1e12 * assumed.reached_tflops)
    arguments = cell.call.arguments
    batch = int(arguments[arguments.index("--batch_size") + 1])
    step = base.weights * 1e9 / (assumed.bandwidth * 1e12 * assumed.reached_bandwidth) / batch
    tokens = assumed.conversation if cell.task == "llava_med_conversation" else assumed.answer
    return computing + tokens * step + assumed.host


def hours(plan: Plan, assumed: Assumptions, measured: Mapping[str, float] | None = None) -> float:
    """Hours of one GPU for all cells of a plan, whatever of them is finished.

    Args:
        measured: samples per second by "BASE" or "BASE/RUN".

    Raises ValueError for a base model without an architecture, and for a cell of unknown size.
    """
    seconds = 0.0
    for base, run in plan.runs:
        cells = plan.of_run(base, run)
        rate = (measured or {}).get(f"{base}/{run}") or (measured or {}).get(base)
        if rate is None and base not in ARCHITECTURES:
            raise ValueError(
                f"base model {base!r}: no architecture in this script; give --measured {base}=SAMPLES_PER_S"
            )
        for cell in cells:
            if cell.samples is None:
                raise ValueError(f"{cell.name}: say in the study how many samples the task has")
            each = 1 / rate if rate else seconds_per_sample(cell, ARCHITECTURES[base], assumed)
            seconds += cell.samples * each
        split = sum(math.ceil((cell.samples or 0) / (cell.shard or 1)) for cell in cells if cell.is_split)
        seconds += assumed.startup * (split + any(not cell.is_split for cell in cells))
    return seconds / 3600


def rounded(value: float) -> str:
    """Two digits: an estimate has no more."""
    return f"{float(f'{value:.2g}'):g}"


def main() -> None:
    """Print a Markdown table of the studies, and the assumptions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, help="YAML files; those of configs/paper by default")
    parser.add_argument("--measured", action="append", default=[], metavar="BASE[/RUN]=SAMPLES_PER_S")
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    assumed = replace(Assumptions(), **{field.name: getattr(options, field.name) for field in fields(Assumptions)})
    measured = {}
    for text in options.measured:
        name, _, rate = text.partition("=")
        if not rate or float(rate) <= 0:
            parser.error(f"--measured {text!r} is not BASE[/RUN]=SAMPLES_PER_S")
        measured[name] = float(rate)
    print("| study | runs | samples | hours of one GPU |\n|---|---:|---:|---:|")
    for path in options.studies or sorted(CONFIGS.glob("*.yaml")):
        plan = plan_study(load_study(path))
        try:
            estimate = hours(plan, assumed, measured)
        except ValueError as error:
            sys.exit(f"error: {path}: {error}")
        print(f"| {path.stem} | {len(plan.runs)} | {plan.samples:,} | {rounded(estimate)} |")
    print()
    for field in fields(Assumptions):
        print(f"- {field.name}: {getattr(assumed, field.name)}")


if __name__ == "__main__":
    main()
