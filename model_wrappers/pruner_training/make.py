"""From a job to a pruner in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig

from lmms_eval_stability.model_wrappers.families import family_for
from lmms_eval_stability.model_wrappers.loading import LoadedModel, LoadOptions, load, resolve
from lmms_eval_stability.model_wrappers.pruner_training.data import SHAPES, ShapesSource, Source, read_file, read_task
from lmms_eval_stability.model_wrappers.pruner_training.errors import TrainingSettingsError
from lmms_eval_stability.model_wrappers.pruner_training.folder import TrainingFolder
from lmms_eval_stability.model_wrappers.pruner_training.loop import Report, Trainer
from lmms_eval_stability.model_wrappers.pruner_training.settings import Job
from lmms_eval_stability.model_wrappers.quantization.make.calibration import is_file
from lmms_eval_stability.model_wrappers.registry import FAMILIES, MODELS
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import save_pruner


def make(job: Job, report: Report) -> dict[str, Any]:
    """Train a pruner and write it; return facts for a message.

    Under ``accelerate launch`` every process calls this; the first one writes.

    Raises:
        PrunerFolderError, TrainingDataError, TrainingSettingsError: before any weights are read.
        WrapperError: the model cannot be loaded.
        DivergedError: the loss is not a number any more.
    """
    accelerator = Accelerator()
    main = accelerator.is_main_process
    folder = TrainingFolder(job.output)
    source = read_file(Path(job.data)) if is_file(job.data) else None
    prefix = _prefix(job)
    if main:
        folder.prepare(resume=job.resume, overwrite=job.overwrite)
    report("loading the data", 0, 0)
    data = source or _named(job, FAMILIES[prefix].lmms_eval_name)
    report("loading the model", 0, 0)
    loaded = _load(job, prefix, accelerator)
    trainer = Trainer(loaded, data, job.settings, accelerator, job.micro_batch)
    accelerator.wait_for_everyone()
    if job.resume:
        trainer.restore(folder.load(trainer.identity()))
        if main:
            folder.cut_log(trainer.step)
    trainer.run(folder, job.checkpoint_every, report)
    accelerator.wait_for_everyone()
    if main:
        save_pruner(job.output, trainer.pruner, trainer.card(job.model, job.command))
        folder.finish()
    return {
        "model": f"{prefix}_lvpruning",
        "parameters": sum(parameter.numel() for parameter in trainer.pruner.parameters()),
        "steps": trainer.step,
        "main": main,
    }


def _prefix(job: Job) -> str:
    """Return the prefix of the models that serve the checkpoint."""
    config = AutoConfig.from_pretrained(resolve(job.model), revision=job.revision)
    family_for(config)
    return next(name for name, entry in FAMILIES.items() if config.model_type in entry.model_types)


def _named(job: Job, lmms_eval_name: str) -> Source:
    if job.data == SHAPES:
        if job.skip:
            raise TrainingSettingsError(f"--skip is for tasks; {SHAPES} has no documents to leave out")
        return ShapesSource(job.settings.seed)
    return read_task(job.data, job.skip, lmms_eval_name)


def _load(job: Job, prefix: str, accelerator: Accelerator) -> LoadedModel:
    device = job.device or (str(accelerator.device) if accelerator.num_processes > 1 else None)
    dtype = job.dtype
    if dtype == "auto":
        stated = AutoConfig.from_pretrained(resolve(job.model), revision=job.revision)
        stated = stated.dtype or stated.get_text_config().dtype
        # Gradients through a frozen float16 model underflow.
        dtype = "bfloat16" if stated == torch.float16 else "auto"
    if dtype == "float16":
        raise TrainingSettingsError("--dtype float16: gradients underflow in it; write bfloat16 or float32")
    # sdpa takes additive masks with gradients, flash kernels take none.
    options = LoadOptions(
        pretrained=job.model, revision=job.revision, dtype=dtype, device=device, attn_implementation="sdpa"
    )
    return load(MODELS[f"{prefix}_baseline"], options)
