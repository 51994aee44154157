"""The folder of a training: checkpoint and log while it runs, the pruner when it is done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmms_eval_stability.model_wrappers.pruner_training.errors import PrunerFolderError
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import CARD, WEIGHTS

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
_OURS = (CARD, WEIGHTS, CHECKPOINT, LOG)


@dataclass(frozen=True)
class TrainingFolder:
    """Reads and writes ``path``; in a training with several processes only the first one writes."""

    path: Path

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready, or refuse it.

        Raises:
            PrunerFolderError: it holds something else; it holds a pruner or a training and neither ``resume`` nor
                ``overwrite`` is set; or there is nothing to go on with.
        """
        if self.path.exists() and not self.path.is_dir():
            raise PrunerFolderError(f"{self.path} is a file; name a folder with --output")
        found = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        foreign = sorted(name for name in found if name not in _OURS)
        if foreign:
            raise PrunerFolderError(f"{self.path} holds what is no pruner ({foreign[0]}); name another folder")
        if resume:
            if CHECKPOINT not in found:
                raise PrunerFolderError(f"{self.path} holds no {CHECKPOINT}; start without --resume")
            return
        if found and not overwrite:
            remedy = "go on with --resume, or" if CHECKPOINT in found else "name another folder, or"
            raise PrunerFolderError(f"{self.path} is not empty; {remedy} replace it with --overwrite")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in found:
                (self.path / name).unlink()
        except OSError as error:
            raise PrunerFolderError(f"cannot write to {self.path}: {error.strerror}") from error

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the last one stays until the new one is complete."""
        unfinished = self.path / f"{CHECKPOINT}.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(self.path / CHECKPOINT)

    def load(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Read the checkpoint of a training with the same settings, base and data.

        Raises:
            PrunerFolderError: it cannot be read, or belongs to another training.
        """
        path = self.path / CHECKPOINT
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what torch raises for a broken file is of many classes
            raise PrunerFolderError(f"{path} cannot be read: {error}; start anew with --overwrite") from error
        before = json.loads(state["identity"])
        differ = [name for name in identity if before.get(name) != identity[name]]
        if differ:
            raise PrunerFolderError(
                f"{path} is of a training with other {', '.join(differ)}; give the same options, or another folder"
            )
        return state

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to the log."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop the lines of steps after ``step``, which will be taken again."""
        path = self.path / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def finish(self) -> None:
        """Remove what only a training that is not done needs."""
        (self.path / CHECKPOINT).unlink(missing_ok=True)
