"""Draw the training curve: `python -m lmms_eval_stability.demo.training.curve LOG.jsonl CURVE.png`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training log as dictionaries."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def draw(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a picture of two panels, losses and validation accuracy by kind, over minutes of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for name, label in (("auxiliary_loss", "auxiliary (vision)"), ("answer_loss", "answers")):
        lines = [line for line in log if name in line]
        losses.plot([line["minutes"] for line in lines], [line[name] for line in lines], label=label)
    losses.set(xlabel="minutes", ylabel="training loss", yscale="log")
    losses.legend()
    checks = [line for line in log if "validation" in line]
    for kind in checks[-1]["validation"]:
        bold = kind == "mean_over_kinds"
        accuracy.plot(
            [line["minutes"] for line in checks],
            [line["validation"][kind] for line in checks],
            label=kind.replace("_", " "),
            color="black" if bold else None,
            linewidth=2.5 if bold else 1.2,
        )
    accuracy.set(xlabel="minutes", ylabel="validation accuracy", ylim=(0, 1.02))
    accuracy.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw losses and validation accuracy of a training log."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    draw(read_log(args.log), args.picture)


if __name__ == "__main__":
    main()
