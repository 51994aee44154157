"""From a 16-bit checkpoint to a quantised one: load, calibrate, quantise, write, and load again to be sure."""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError, WrapperError
from lmms_eval_stability.model_wrappers.families import Prompt, family_for
from lmms_eval_stability.model_wrappers.loading import LoadedModel, LoadOptions, load, resolve
from lmms_eval_stability.model_wrappers.measurements import fingerprints
from lmms_eval_stability.model_wrappers.quantization.checkpoints import stored_scheme
from lmms_eval_stability.model_wrappers.quantization.make import card, output
from lmms_eval_stability.model_wrappers.quantization.make.calibration import CalibrationSet, Choice, read_task
from lmms_eval_stability.model_wrappers.quantization.make.errors import MakeError, WrittenCheckpointError
from lmms_eval_stability.model_wrappers.quantization.make.recipe import (
    Recipe,
    decoder_layers,
    ignored,
    quantized_names,
    without_pinned_memory,
)
from lmms_eval_stability.model_wrappers.quantization.module_names import ModuleNames, names_of
from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS, MODELS, ModelEntry

Report = Callable[[str, int, int], None]
"""Called with what is under way, steps done, and steps in all (0: unknown)."""

#: Files of a hub checkpoint that are needed.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
#: What llm-compressor says of the machine and of the form of config.json, which is of no use to a reader of the card.
_CHATTER = ("get_main_device", "modify_text_config", "resave_config")


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Attributes:
        model: hub name, folder or ``demo``.
        calibration: documents read from a file, or the name of a task.
        dtype: to load and compute in; ``auto`` as the checkpoint says.
        store_dtype: of scales and of what is not quantised; ``auto`` is what it was computed in.
        command: what makes it again, for the card.
    """

    model: str
    recipe: Recipe
    calibration: CalibrationSet | str
    choice: Choice
    output: Path
    command: str
    revision: str = "main"
    overwrite: bool = False
    dtype: str = "auto"
    store_dtype: str = "auto"


def make(job: Job, report: Report) -> dict[str, Any]:
    """Make a quantised checkpoint; return the facts of its card.

    Raises:
        OutputFolderError, GroupSizeError, CalibrationError: before any weights are read.
        WrapperError: the model cannot be loaded, or is quantised already.
        WrittenCheckpointError: the result does not load as it should.
    """
    with output.new_folder(job.output, job.overwrite) as folder:
        report("reading the model's configuration", 0, 0)
        source, revision = _source(job)
        prefix = _check_model(job, source)
        report("choosing the documents", 0, 0)
        documents = _documents(job, FAMILIES[prefix].lmms_eval_name)
        report("loading the model", 0, 0)
        options = LoadOptions(pretrained=source, dtype=job.dtype, device="cpu")
        loaded = load(MODELS[f"{prefix}_baseline"], options)
        prompts = documents.prompts(loaded.family, loaded.processor)
        names = names_of(loaded.model, loaded.family)
        warnings = _quantize(loaded, job.recipe, names, prompts, report)
        report("writing", 0, 0)
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        _write(job, folder, source, loaded, names)
        del loaded
        gc.collect()
        facts = {
            "method": job.recipe.method,
            "model": f"{prefix}_{job.recipe.method}",
            "bits": job.recipe.bits,
            "group_size": job.recipe.group_size,
            "quantized_linears": len(quantized_names(names)),
            "not_quantized": list(names.beside_decoder),
            "base_model": _base_facts(job, source, revision),
            "calibration": _calibration_facts(job, documents, prompts),
            "dtype": dtype,
            "store_dtype": dtype if job.store_dtype == "auto" else job.store_dtype,
            "device": "accelerator" if torch.accelerator.is_available() else "CPU",
            "bytes": output.size(folder),
            "command": job.command,
            "versions": card.versions(),
            "warnings": warnings,
        }
        card.write_recipe(folder, facts)
        card.write_card(folder, facts)
        report("loading what was written", 0, 0)
        _check_written(job, folder, MODELS[str(facts["model"])], prompts[0])
    return facts


def _source(job: Job) -> tuple[str, str | None]:
    """Return the folder of the model, and the commit of one from the hub."""
    name = resolve(job.model)
    if Path(name).is_dir():
        return name, None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=job.revision, allow_patterns=_FILES)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidArgumentError(
            f"--model {job.model}: there is no such folder, and the hub does not give it: {str(error).splitlines()[0]}"
        ) from error
    return folder, Path(folder).name


def _check_model(job: Job, source: str) -> str:
    """Return the prefix of the models that serve the checkpoint; refuse one that cannot be quantised as asked."""
    config = AutoConfig.from_pretrained(source)
    family = family_for(config)
    if stored_scheme(config, source) is not None:
        raise InvalidArgumentError(f"--model {job.model} is quantised already; name the 16-bit checkpoint")
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config)
    job.recipe.check(skeleton, names_of(skeleton, family))
    return next(name for name, entry in FAMILIES.items() if config.model_type in entry.model_types)


def _documents(job: Job, lmms_eval_name: str) -> CalibrationSet:
    if isinstance(job.calibration, CalibrationSet):
        return job.calibration
    return read_task(job.calibration, job.choice, lmms_eval_name)


def _quantize(
    loaded: LoadedModel, recipe: Recipe, names: ModuleNames, prompts: Sequence[Prompt], report: Report
) -> list[str]:
    """Quantise a model in place; return llm-compressor's warnings."""
    with _compressor_messages() as warnings, without_pinned_memory():
        from llmcompressor import oneshot
        from torch.utils.data import DataLoader

        encoded = [
            dict(loaded.family.encode(loaded.processor, [prompt]).to("cpu", loaded.model.dtype)) for prompt in prompts
        ]
        layers = decoder_layers(loaded.model, loaded.family)
        with _layer_progress(layers, len(encoded), report):
            oneshot(
                model=loaded.model,
                processor=loaded.processor,
                recipe=recipe.modifiers(names),
                dataset=DataLoader(encoded, batch_size=1, shuffle=False, collate_fn=lambda rows: rows[0]),
                num_calibration_samples=len(encoded),
                shuffle_calibration_samples=False,
                sequential_targets=[type(layers[0]).__name__],
            )
    done = {name for name, module in loaded.model.named_modules() if hasattr(module, "quantization_scheme")}
    if done != set(quantized_names(names)):
        odd = sorted(done ^ set(quantized_names(names)))
        raise MakeError(
            f"llm-compressor quantised other layers than it was told ({', '.join(odd[:3])} and {len(odd)} in all);"
            " this release of llm-compressor is not served"
        )
    return warnings


@contextmanager
def _layer_progress(layers: Sequence[Any], samples: int, report: Report) -> Iterator[None]:
    """Report calls of the decoder layers: each sees every sample twice, before and after it is quantised."""
    total, calls = 2 * samples * len(layers), 0

    def called(index: int) -> None:
        nonlocal calls
        calls = min(calls + 1, total)
        report(f"quantising, layer {index + 1} of {len(layers)}", calls, total)

    handles = [
        layer.register_forward_hook(lambda *_args, index=index: called(index)) for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _compressor_messages() -> Iterator[list[str]]:
    """Import llm-compressor without its flood of lines on standard output; yield the list of its warnings."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import llmcompressor  # noqa: F401 - sets up loguru when imported, so the sink comes after it
    from loguru import logger

    warnings: list[str] = []

    def keep(message: Any) -> None:
        record = message.record
        if record["level"].name in ("WARNING", "ERROR", "CRITICAL") and record["function"] not in _CHATTER:
            warnings.append(record["message"])
            print(f"llm-compressor: {record['message']}", file=sys.stderr)

    sink = logger.add(keep, level="WARNING", filter="llmcompressor")
    try:
        yield warnings
    finally:
        logger.remove(sink)


def _write(job: Job, folder: Path, source: str, loaded: LoadedModel, names: ModuleNames) -> None:
    from llmcompressor.core import reset_session

    with _compressor_messages():
        loaded.model.save_pretrained(str(folder), save_compressed=True)
        reset_session()  # it holds on to the model
    output.state_ignored(folder, ignored(names))
    if job.store_dtype != "auto":
        output.store_as(folder, getattr(torch, job.store_dtype))
    # Read again: ours holds the image sizes of the evaluation.
    AutoProcessor.from_pretrained(source).save_pretrained(folder)


def _base_facts(job: Job, source: str, revision: str | None) -> dict[str, Any]:
    return {
        "name": job.model,
        "revision": revision,
        "sha256": output.digests(Path(source)),
        "bytes": output.size(Path(source)),
    }


def _calibration_facts(job: Job, documents: CalibrationSet, prompts: Sequence[Prompt]) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(fingerprints(prompt).input for prompt in prompts).encode()).hexdigest()
    return {
        "source": documents.source,
        **documents.details,
        "samples": job.choice.samples,
        "seed": job.choice.seed,
        "available": documents.available,
        "ids": list(documents.ids),
        "inputs_sha256": digest,
    }


def _check_written(job: Job, folder: Path, entry: ModelEntry, prompt: Prompt) -> None:
    """Load what was written as ``--model`` will, and answer one prompt.

    Raises:
        WrittenCheckpointError: it does not load, or the answer is not a number.
    """
    module, name = METHODS[entry.method].path.split(":")
    quantizer = getattr(importlib.import_module(f"lmms_eval_stability.model_wrappers.{module}"), name)()
    try:
        loaded = load(entry, LoadOptions(pretrained=str(folder), quantizer=quantizer))
        inputs = loaded.family.encode(loaded.processor, [prompt]).to(loaded.device, loaded.model.dtype)
        with torch.no_grad():
            logits = loaded.model(**inputs).logits
        if not torch.isfinite(logits).all():
            raise MakeError("its logits are not finite")
    except (WrapperError, RuntimeError) as error:
        kept = output.keep_rejected(folder, job.output)
        raise WrittenCheckpointError(
            f"the checkpoint that was written is not good: {error}; it is kept at {kept}"
        ) from error
