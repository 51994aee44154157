"""The training loop: a budget in minutes or steps, checkpoints that it can go on from, and a log."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmms_eval_stability.demo.dataset import SEED
from lmms_eval_stability.demo.questions import KINDS
from lmms_eval_stability.demo.scenes import HELD_OUT_DIFFICULTY
from lmms_eval_stability.demo.training import architecture
from lmms_eval_stability.demo.training.batches import Batch, BatchRequest, make_batch
from lmms_eval_stability.demo.training.losses import (
    AuxiliaryHeads,
    TensorBatch,
    answer_logits,
    answer_loss,
    see,
    subset_of_patches,
)
from lmms_eval_stability.demo.training.schedule import Phase, difficulty_at, learning_rate_at, phase_at

VALIDATION_BATCH = 32
PREFETCH = 3


@dataclass(frozen=True)
class Settings:
    """What a training run is told.

    Attributes:
        folder: receives checkpoint.pt, log.jsonl and model/.
        minutes: time budget, counted over all resumed parts; ignored when `steps` is given.
        steps: budget in steps: slower machines then train longer, but every step is reproducible.
        seed: of the initial weights and the training pictures.
        validate_every: minutes between validations, each of which also writes a checkpoint.
        bf16: compute in bfloat16 where autocast allows; 1.6 times as fast on CPUs with AVX512-BF16.
        n_images: pictures per step, None for the schedule's.
        validation_images: pictures of each validation, 8 questions each.
    """

    folder: Path
    minutes: float = 80.0
    steps: int | None = None
    seed: int = SEED
    validate_every: float = 4.0
    bf16: bool = True
    n_images: int | None = None
    validation_images: int = 128


class Trainer:
    """Holds model, optimiser and counters; `run()` spends the budget."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processor = architecture.build_processor()
        self.model = architecture.build_model(self.processor.tokenizer, settings.seed)
        self.heads = AuxiliaryHeads()
        self.optimizer = _optimizer(self.model, self.heads)
        self.step, self.images, self.elapsed = 0, 0, 0.0
        settings.folder.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.is_file():
            self._load()

    @property
    def _checkpoint(self) -> Path:
        return self.settings.folder / "checkpoint.pt"

    @property
    def progress(self) -> float:
        """Share of the budget used up, 0 to 1."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.elapsed / (60 * self.settings.minutes)

    def run(self) -> None:
        """Train until the budget is spent, from the folder's checkpoint if it has one."""
        last_validation, losses = self.elapsed, Averages()
        with self._batches() as batches:
            while self.progress < 1:
                start = time.monotonic()
                phase, rate = phase_at(self.progress), learning_rate_at(self.progress, self.step)
                batch = next(batches)
                losses.add(self.train_step(batch, phase, rate))
                self.elapsed += time.monotonic() - start
                if self.step % 50 == 0:
                    self.log(phase=phase.name, rate=rate, **losses.drain())
                if self.elapsed - last_validation >= 60 * self.settings.validate_every:
                    start = time.monotonic()
                    self._validate_and_save()
                    self.elapsed += time.monotonic() - start
                    last_validation = self.elapsed
        self._validate_and_save()

    def train_step(self, batch: Batch, phase: Phase, rate: float) -> dict[str, float]:
        """Take one optimiser step; return the losses and, in joint phases, the share of answers that were right."""
        self.model.train()
        tensors = TensorBatch.of(batch)
        measured: dict[str, float] = {}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            vision = see(self.model, tensors)
            auxiliary = self.heads(vision, tensors)
            loss = phase.auxiliary_weight * auxiliary
            measured["auxiliary_loss"] = auxiliary.item()
            if phase.answers:
                keep = None if phase.keep is None else subset_of_patches(tensors, phase.keep)
                logits = answer_logits(self.model, vision, tensors, keep)
                answers = answer_loss(logits, tensors, self.processor.tokenizer.eos_token_id)
                loss = loss + answers
                measured["answer_loss"] = answers.item()
                measured["answers_right"] = _right(logits, tensors).float().mean().item()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.step += 1
        self.images += len(batch.pixels)
        return measured

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the share of right answers by kind on validation pictures as hard as the held-out ones.

        All tokens, float32, first answer token: what greedy generation answers.
        """
        self.model.eval()
        right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for first in range(0, self.settings.validation_images, VALIDATION_BATCH):
            size = min(VALIDATION_BATCH, self.settings.validation_images - first)
            request = BatchRequest("validation", first, size, HELD_OUT_DIFFICULTY, self.settings.seed)
            batch = TensorBatch.of(make_batch(request))
            correct = _right(answer_logits(self.model, see(self.model, batch), batch, None), batch)
            for kind, good in zip(batch.kinds.flatten().tolist(), correct.flatten().tolist(), strict=True):
                right[KINDS[kind]].append(good)
        each = {kind: sum(good) / len(good) for kind, good in right.items() if good}
        return {"mean_over_kinds": sum(each.values()) / len(each), **each}

    def _validate_and_save(self) -> None:
        accuracy = self.validate()
        self.log(validation={kind: round(share, 4) for kind, share in accuracy.items()})
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.step, self.images, self.elapsed),
            "generator": torch.get_rng_state(),
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)  # a run cut short while saving must not lose the checkpoint before
        architecture.save(self.model, self.processor, self.settings.folder / "model")

    def _load(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.images, self.elapsed = state["counters"]
        torch.set_rng_state(state["generator"])

    def log(self, **values: Any) -> None:
        """Append one line to log.jsonl and print it."""
        line = {"step": self.step, "images": self.images, "minutes": round(self.elapsed / 60, 2), **values}
        text = json.dumps(line)
        print(text, flush=True)
        with (self.settings.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Batch]]:
        """Yield an endless iterator over training batches, drawn ahead of time by one worker process."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:

            def endless() -> Iterator[Batch]:
                waiting: deque[Future[Batch]] = deque()
                first = self.images
                while True:
                    while len(waiting) < PREFETCH:
                        size = self.settings.n_images or phase_at(self.progress).n_images
                        request = BatchRequest("train", first, size, difficulty_at(self.progress), self.settings.seed)
                        waiting.append(pool.submit(make_batch, request))
                        first += size
                    yield waiting.popleft().result()

            yield endless()
            pool.shutdown(cancel_futures=True)


class Averages:
    """Means of named numbers since the last `drain()`."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def drain(self) -> dict[str, float]:
        means = {name: round(sum(values) / len(values), 4) for name, values in self._values.items()}
        self._values.clear()
        return means


def _right(logits: Tensor, batch: TensorBatch) -> Tensor:
    """Return which answers the logits (B, Q, 2, vocabulary) get right, boolean (B, Q)."""
    return logits[:, :, 0].argmax(-1) == batch.answers


def _optimizer(model: nn.Module, heads: nn.Module) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, not on norms, biases, embeddings and positions."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in (model, heads):
        for name, parameter in module.named_parameters():
            (decay if parameter.ndim >= 2 and "embed" not in name else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
