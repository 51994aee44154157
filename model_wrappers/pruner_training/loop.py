"""The training of a pruner, on one process or, under ``accelerate launch``, on several."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lmms_eval_stability.model_wrappers.loading import LoadedModel
from lmms_eval_stability.model_wrappers.preparation import Ahead, OwnCopy
from lmms_eval_stability.model_wrappers.pruner_training.data import Batch, Order, Source, collate, stream_key
from lmms_eval_stability.model_wrappers.pruner_training.errors import DivergedError, TrainingSettingsError
from lmms_eval_stability.model_wrappers.pruner_training.folder import TrainingFolder
from lmms_eval_stability.model_wrappers.pruner_training.losses import Losses, answer_losses
from lmms_eval_stability.model_wrappers.pruner_training.masking import Decision, Masking
from lmms_eval_stability.model_wrappers.pruner_training.settings import TrainingSettings
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_base import base_config, weights_digest
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import (
    Pruner,
    PrunerCard,
    PrunerDesign,
    spread_noise,
)

Report = Callable[[str, int, int], None]
"""Called with what is under way, steps done, and steps in all (0: unknown)."""

_LOG_EVERY = 10
_PACKAGES = ("lmms-eval-stability", "transformers", "torch", "accelerate")


@dataclass(frozen=True)
class Micro:
    """Examples of one forward pass on one process: their step and positions in the order of examples."""

    step: int
    positions: tuple[int, ...]


class Trainer:
    """Trains a pruner on a frozen base model.

    Every step is a function of the state before it, the seed and the step's number: a training that goes on from a
    checkpoint takes the steps that it would have taken. The base's parameters get no gradients and are never written.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        source: Source,
        settings: TrainingSettings,
        accelerator: Accelerator,
        micro_batch: int | None = None,
    ) -> None:
        """Build modules and optimiser.

        Raises:
            TrainingSettingsError: the settings do not fit the model or the number of processes.
        """
        self.settings, self.accelerator = settings, accelerator
        self._loaded, self._source = loaded, source
        self._order = Order(settings.seed, source.size)
        self._processors = OwnCopy(loaded.processor)
        self._decoder: Any = loaded.family.decoder(loaded.model)
        if settings.batch_size % accelerator.num_processes:
            raise TrainingSettingsError(
                f"batch-size {settings.batch_size} cannot be shared out among {accelerator.num_processes} processes"
            )
        self._rows = settings.batch_size // accelerator.num_processes
        self._micro = min(micro_batch or self._rows, self._rows)
        loaded.model.requires_grad_(False).eval()
        with torch.random.fork_rng():
            torch.manual_seed(stream_key(settings.seed, "weights"))
            self.pruner = Pruner(self._design()).to(loaded.device)
            self.pruner.begin_at_shares()
        matrices = [parameter for parameter in self.pruner.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.pruner.parameters() if parameter.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        self.step = 0

    def _design(self) -> PrunerDesign:
        settings, depth = self.settings, len(self._decoder.layers)
        hidden = self._decoder.config.hidden_size
        positions = self._loaded.family.fixed_positions(self._loaded.model)
        try:
            design = PrunerDesign(
                layers=settings.layers,
                keep=settings.keep,
                hidden=hidden,
                width=settings.width_for(hidden),
                heads=settings.heads,
                text=settings.text,
                noise=settings.noise,
                side=0 if positions is None else math.isqrt(positions),
            )
        except ValueError as error:
            raise TrainingSettingsError(str(error)) from error
        if settings.layers[-1] >= depth:
            raise TrainingSettingsError(
                f"layers: the language model has {depth} layers, so they must be 1 to {depth - 1}, not"
                f" {settings.layers[-1]}"
            )
        return design

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a training to go on from a checkpoint."""
        settings = self.settings.to_json()
        return {"settings": settings, "base": weights_digest(self._loaded.model), "data": self._source.details}

    def state(self) -> dict[str, Any]:
        """Return a checkpoint."""
        return {
            "identity": json.dumps(self.identity()),
            "step": self.step,
            "pruner": self.pruner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]
        self.pruner.load_state_dict(state["pruner"])
        self.optimizer.load_state_dict(state["optimizer"])

    def card(self, name: str, command: str) -> PrunerCard:
        """Return what stands beside the weights."""
        model = self._loaded.model
        base = {"name": name, "config": base_config(model.config), "sha256": weights_digest(model)}
        training = {
            "settings": self.settings.to_json(),
            "data": self._source.details,
            "command": command,
            "dtype": str(model.dtype).removeprefix("torch."),
            "processes": self.accelerator.num_processes,
            "versions": {package: version(package) for package in _PACKAGES},
        }
        return PrunerCard(self.pruner.design, base, training)

    def run(self, folder: TrainingFolder, checkpoint_every: int, report: Report) -> None:
        """Train to the last step, with checkpoints and a log in ``folder``.

        Raises:
            DivergedError: the loss is not a number; the last checkpoint stays.
            TrainingDataError: an example cannot be used.
        """
        first, main, started = self.step, self.accelerator.is_main_process, time.monotonic()
        workers = 2 if self._loaded.device.type == "cuda" else 0
        entry: dict[str, float] = {}
        for micro, prepared in Ahead(self._prepare, workers)(self._schedule()):
            losses = self._accumulate(micro, prepared())
            for name, value in losses.items():
                entry[name] = entry.get(name, 0.0) + value
            if micro.positions[-1] != self._positions(micro.step)[-1]:
                continue
            self._update(entry["loss"])
            done = self.step
            if main and (done % _LOG_EVERY == 0 or done == self.settings.steps):
                rounded = {name: round(value, 5) for name, value in entry.items()}
                folder.log({"step": done, **rounded, "seconds": round(time.monotonic() - started, 1)})
                report(_described(rounded), done, self.settings.steps)
            if main and (done % checkpoint_every == 0 or done == self.settings.steps) and done > first:
                folder.save(self.state())
            entry = {}

    def _positions(self, step: int) -> range:
        """Return this process's examples of a step."""
        begin = step * self.settings.batch_size
        return range(begin, begin + self.settings.batch_size)[
            self.accelerator.process_index :: self.accelerator.num_processes
        ]

    def _schedule(self) -> Iterator[Micro]:
        for step in range(self.step, self.settings.steps):
            positions = self._positions(step)
            for start in range(0, len(positions), self._micro):
                yield Micro(step, tuple(positions[start : start + self._micro]))

    def _prepare(self, micro: Micro) -> Batch:
        """Return the inputs of a forward pass; called from several threads."""
        processor, family = self._processors.get(), self._loaded.family
        examples = [self._source.example(family, processor, self._order[p]) for p in micro.positions]
        return collate(family, processor, self._loaded.model.config, examples, self.settings.text)

    def _accumulate(self, micro: Micro, batch: Batch) -> dict[str, float]:
        """Add the gradient of some examples; return their part of the step's losses."""
        batch = batch.to(self._loaded.device, self._loaded.model.dtype)
        losses, shares = self.losses(batch, micro)
        part = len(micro.positions) / self._rows
        total = losses.total(self.settings.weights)
        (total * part).backward()
        numbers = {"loss": total, **vars(losses)}
        numbers |= {f"kept_{layer}": share.mean() for layer, share in zip(self.settings.layers, shares, strict=True)}
        return {name: float(value.detach()) * part for name, value in numbers.items()}

    def losses(self, batch: Batch, micro: Micro) -> tuple[Losses, list[Tensor]]:
        """Run the base without and with masks; return the losses and the share of tokens kept per stage, (B,) each."""
        settings, model = self.settings, self._loaded.model
        ids = batch.inputs["input_ids"]
        columns = ids.shape[1]
        rows = [row for row, n in enumerate(batch.lengths) for _ in range(n)]
        places = [columns - n + i for n in batch.lengths for i in range(n)]  # of the answers' tokens
        before = [place - 1 for place in places]
        captured: dict[str, Any] = {}
        hook = self._decoder.register_forward_pre_hook(lambda _m, _a, given: captured.update(given), with_kwargs=True)
        head = model.get_output_embeddings()
        try:
            with torch.no_grad():
                hidden = self._loaded.family.backbone(model)(**batch.inputs, use_cache=False).last_hidden_state
                unpruned = head(hidden[rows, before])
        finally:
            hook.remove()
        real = batch.inputs["attention_mask"].bool()
        decide = Decision(settings.sampling, settings.temperature, settings.keep)
        masking = Masking(self.pruner, decide, batch.visual, batch.text, self._noise(micro, batch.visual))
        with masking.attached(self._decoder, None if bool(real.all()) else real):
            hidden = self._decoder(**captured).last_hidden_state
        pruned = head(hidden[rows, before])
        targets, temperature = ids[rows, places], settings.weights.temperature
        losses = answer_losses(pruned, unpruned, targets, batch.lengths, masking.shares, settings.keep, temperature)
        return losses, masking.shares

    def _noise(self, micro: Micro, visual: Tensor) -> Tensor:
        """Return logistic noise (B, L): that of a visual token depends on its example and its number only.

        It is the same at all stages: what one stage keeps by luck, the next does not lose by bad luck.
        """
        noise, design = torch.zeros(visual.shape), self.pruner.design
        for row, position in enumerate(micro.positions):
            places = visual[row].cpu().nonzero().squeeze(1)
            generator = torch.Generator().manual_seed(stream_key(self.settings.seed, "noise", position))
            if design.noise == "spread":
                shift = float(torch.rand((), generator=generator))
                noise[row, places] = spread_noise(len(places), design.side, shift)
            else:
                uniform = torch.rand(len(places), generator=generator).clamp(1e-6, 1 - 1e-6)
                noise[row, places] = uniform.logit()
        return noise.to(visual.device)

    def _update(self, loss: float) -> None:
        """Take a step with the mean of all processes' gradients."""
        parameters = [parameter for parameter in self.pruner.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients if gradient is not None])
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(flat, reduction="mean")
        norm = flat.norm()
        if not bool(norm.isfinite()):
            raise DivergedError(
                f"step {self.step + 1}: the gradient is not finite (loss {loss}); lower --learning-rate, and compute in"
                " bfloat16 or float32"
            )
        flat *= (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1


def _described(entry: dict[str, float]) -> str:
    kept = "/".join(f"{100 * value:.0f}" for name, value in entry.items() if name.startswith("kept_"))
    return f"loss {entry['loss']:.3f}, {100 * entry['agreement']:.0f} % answers kept, {kept} % tokens"
