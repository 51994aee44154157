"""How many answers change at equal numbers of visual tokens: LVPruning against random tokens, FastV and even spacing.

    python benchmarks/lvpruning.py [--pruner DIR] [--questions N]

The demo model, the held-out questions of `shapes_vqa`, greedy first token in batches of 32 (answers are one token).
For every variant: visual tokens per layer, accuracy, how far it is below the unpruned model's, and divergence (answers
that differ), with 95 % percentile intervals of a bootstrap over pictures (10,000 draws). Two controls act at the
pruner's own layers with its own numbers of tokens: `random at the same layers`, and `even spacing`, which is the pruner
with all of its modules' logits equal, so that only its spread noise is left.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lmms_eval_stability.demo.dataset import HeldOutQuestion, build_held_out
from lmms_eval_stability.demo.training.prompts import INSTRUCTION
from lmms_eval_stability.model_wrappers.token_reduction import FastV, LVPruning, Random, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import Reduction
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import spread_noise
from lmms_eval_stability.model_wrappers.token_reduction.show import load_any

BATCH = 32
DRAWS = 10_000


@dataclass(frozen=True)
class SameLayers(LVPruning):
    """A control: the pruner's stages, without what its modules say."""

    even: bool = False

    def reduce_by_text(
        self,
        stage: int,
        entered: int,
        visual: Tensor,
        text: Tensor,  # noqa: ARG002
        after: int,  # noqa: ARG002
        scores: Tensor | None,
    ) -> Reduction:
        if scores is None:
            n = len(visual)
            scores = spread_noise(n, self.card.design.side) if self.even else torch.rand(n)
        stays = self.select(scores, self.keep_count(stage, entered, len(visual)))
        return Reduction(stays, scores=scores[stays])


class Asker:
    """Answers the questions with one method after the other."""

    def __init__(self, questions: Sequence[HeldOutQuestion], images: dict[str, bytes]) -> None:
        self.loaded, self.questions = load_any("demo"), questions
        self._images = {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in images.items()}

    def _inputs(self, rows: Sequence[HeldOutQuestion]) -> Any:
        prompts = []
        for row in rows:
            text = row.question + INSTRUCTION
            content = [{"type": "image", "url": self._images[row.image_id]}, {"type": "text", "text": text}]
            messages = [{"role": "user", "content": content}]
            prompts.append(self.loaded.family.build_prompt(self.loaded.processor, messages, text))
        return self.loaded.family.encode(self.loaded.processor, prompts)

    @torch.no_grad()
    def __call__(self, method: TokenReducer | None) -> tuple[list[str], str]:
        """Return the answers, and the visual tokens of a prompt on their way through the layers."""
        torch.manual_seed(0)
        model, answers = self.loaded.model, []
        with method.attach(model, self.loaded.family) if method else nullcontext() as session:
            for start in range(0, len(self.questions), BATCH):
                inputs = self._inputs(self.questions[start : start + BATCH])
                first = model(**inputs, logits_to_keep=1).logits[:, -1].argmax(-1)
                answers += [text.strip() for text in self.loaded.tokenizer.batch_decode(first[:, None])]
        depth = len(self.loaded.family.decoder(model).layers)
        tokens = "144" if session is None else _tokens(session.rows[0], depth)
        return answers, tokens


def _tokens(row: Any, depth: int) -> str:
    ends = [*row.layers[1:], depth]
    spans = [end - start for start, end in zip(row.layers, ends, strict=True)]
    mean = sum(n * span for n, span in zip(row.visual_tokens, spans, strict=True)) / depth
    return (
        f"{'/'.join(f'{n}x{span}' for n, span in zip(row.visual_tokens, spans, strict=True) if span)} (mean {mean:.1f})"
    )


def interval(values: Sequence[float], pictures: Sequence[str]) -> str:
    """Return the mean in percent with its 95 % interval; questions on one picture are drawn together."""
    names, member = np.unique(np.array(pictures), return_inverse=True)
    sums, counts = np.bincount(member, weights=np.array(values)), np.bincount(member)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    low, high = np.percentile(100 * (draws @ sums) / (draws @ counts), [2.5, 97.5])
    return f"{100 * np.mean(values):.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pruner", default="demo")
    parser.add_argument("--questions", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    held_out = build_held_out()
    questions = held_out.questions[: args.questions]
    ask, pictures = Asker(questions, held_out.images), [row.image_id for row in questions]
    pruner = LVPruning(args.pruner)
    depth = len(ask.loaded.family.decoder(ask.loaded.model).layers)
    layers, keep = pruner.card.design.layers, pruner.card.design.keep
    spans = [end - start for start, end in zip((0, *layers), (*layers, depth), strict=True)]
    mean = sum(share * span for share, span in zip((1.0, *keep), spans, strict=True)) / depth
    last = keep[-1]
    variants: dict[str, TokenReducer] = {
        "lvpruning": pruner,
        "random at the same layers": SameLayers(args.pruner),
        "even spacing at the same layers": SameLayers(args.pruner, even=True),
        "random before the decoder, equal mean": Random(tokens=round(576 * mean)),
        f"fastv k={layers[-1]}, equal last": FastV(k=layers[-1], r=1 - last),
        f"fastv k={layers[-2]}, equal last": FastV(k=layers[-2], r=1 - last),
        f"fastv k={layers[0]}, equal mean": FastV(k=layers[0], r=1 - (mean * depth - layers[0]) / (depth - layers[0])),
    }
    base, tokens = ask(None)
    right = [float(answer == row.answer) for answer, row in zip(base, questions, strict=True)]
    print("| variant | visual tokens x layers | accuracy | lost | divergence |\n|---|---|---|---|---|")
    print(f"| unpruned | {tokens}x{depth} | {interval(right, pictures)} | | |", flush=True)
    for name, method in variants.items():
        answers, tokens = ask(method)
        correct = [float(answer == row.answer) for answer, row in zip(answers, questions, strict=True)]
        lost = [before - now for before, now in zip(right, correct, strict=True)]
        differs = [float(answer != before) for answer, before in zip(answers, base, strict=True)]
        cells = [interval(values, pictures) for values in (correct, lost, differs)]
        print(f"| {name} | {tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
