"""Train the demo model: `python -m lmms_eval_stability.demo.training --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lmms_eval_stability.demo.training.loop import Settings, Trainer


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Turn command-line arguments into settings."""
    default = Settings(folder=Path("demo-training"))
    parser = argparse.ArgumentParser(
        prog="python -m lmms_eval_stability.demo.training",
        description="Train the demo model from nothing. Goes on from the folder's checkpoint if there is one; "
        "give a larger or smaller --minutes then to stretch or shorten what is left.",
    )
    parser.add_argument("--folder", type=Path, default=default.folder, help="receives checkpoint, log and model")
    parser.add_argument("--minutes", type=float, default=default.minutes, help="time budget (default %(default)s)")
    parser.add_argument("--steps", type=int, help="budget in steps instead: reproducible step by step")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--validate-every", type=float, default=default.validate_every, metavar="MINUTES")
    parser.add_argument("--float32", action="store_true", help="compute in float32 throughout, not bfloat16")
    args = parser.parse_args(argv)
    return Settings(
        folder=args.folder,
        minutes=args.minutes,
        steps=args.steps,
        seed=args.seed,
        validate_every=args.validate_every,
        bf16=not args.float32,
    )


if __name__ == "__main__":
    Trainer(parse()).run()
