"""Processor time that logging the spectrum of the visual tokens costs, against the same method without it.

    python benchmarks/ipr.py
    python benchmarks/ipr.py --rounds 100

One process, one thread, the embedded model: prefills of eight questions each, with and without in turns, so that a busy
machine slows both. Time is processor time; the ratio is of the medians. The embedded model has 144 visual tokens of
128 dimensions and a decoder of 8 layers: the dearest case, as a real decoder does far more arithmetic per token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from lmms_eval_stability.model_wrappers.loading import LoadOptions, load, resolve
from lmms_eval_stability.model_wrappers.quantization.make.calibration import Choice
from lmms_eval_stability.model_wrappers.registry import MODELS
from lmms_eval_stability.model_wrappers.spectrum import read_documents
from lmms_eval_stability.model_wrappers.token_reduction import FastV, HiRED, PyramidDrop, VisionZip

METHODS = {"fastv": FastV(), "pyramiddrop": PyramidDrop(), "visionzip": VisionZip(), "hired": HiRED()}


@torch.inference_mode()
def medians(loaded: Any, inputs: Any, method: Any, rounds: int) -> tuple[float, float]:
    """Return processor seconds of a prefill with and without the numbers."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with method.attach(loaded.model, loaded.family) as session:
        for number in range(2 * rounds + 4):
            session.spectrum = number % 2 == 0
            started = time.process_time()
            loaded.model(**inputs)
            if number >= 4:  # the first ones warm up
                seconds[session.spectrum].append(time.process_time() - started)
    return statistics.median(seconds[True]), statistics.median(seconds[False])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="prefills of either kind per method")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    loaded = load(MODELS["llava_baseline"], LoadOptions(pretrained="demo", device="cpu"))
    documents = read_documents("shapes_vqa", Choice(samples=8), resolve("demo"))
    inputs = loaded.family.encode(loaded.processor, documents.prompts(loaded.family, loaded.processor))
    for name, method in METHODS.items():
        with_it, without = medians(loaded, inputs, method, rounds)
        print(f"{name}: {1e3 * with_it:.2f} ms with, {1e3 * without:.2f} ms without: x {with_it / without:.4f}")


if __name__ == "__main__":
    main()
