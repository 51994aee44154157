"""From ``pretrained=...`` to a model whose every weight came from the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.demo import SHORT_NAMES, model_path
from lmms_eval_stability.model_wrappers.errors import CheckpointError, InvalidArgumentError, WrongFamilyError
from lmms_eval_stability.model_wrappers.families import Family, family_for
from lmms_eval_stability.model_wrappers.quantization.base import (
    LoadRequest,
    Plan,
    QuantizationRecord,
    Quantizer,
    record,
    require_unquantized,
)
from lmms_eval_stability.model_wrappers.quantization.checkpoints import (
    refuse_original_layout,
    refuse_own_files,
    stored_scheme,
)
from lmms_eval_stability.model_wrappers.quantization.module_names import module_names
from lmms_eval_stability.model_wrappers.registry import FAMILIES, MODELS, ModelEntry


@dataclass(frozen=True)
class LoadOptions:
    """Where a checkpoint is and how it is loaded.

    Attributes:
        pretrained: hub name, folder, or ``demo`` for the model that comes with the package.
        dtype: ``auto`` (as stored) or a torch dtype by name.
        device: device of the whole model; ``None`` is cuda where there is one, else cpu. Ignored with ``device_map``.
        use_safetensors: refuse pickled weights.
        processor: arguments of the processor that the user set.
        quantizer: how the weights are, or will be, quantised; None for a 16-bit model.
        quantize_vision: quantise vision tower and projector too.
    """

    pretrained: str
    revision: str = "main"
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True
    processor: dict[str, Any] = field(default_factory=dict)
    quantizer: Quantizer | None = None
    quantize_vision: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer, and what reads its inputs."""

    model: Any
    processor: Any
    family: Family
    device: torch.device
    quantization: QuantizationRecord | None = None

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def load(entry: ModelEntry, options: LoadOptions) -> LoadedModel:
    """Load a checkpoint for the model named by ``entry``.

    Raises:
        WrongFamilyError: the checkpoint is of another architecture.
        CheckpointError: weights are missing from, unexpected in, or of another shape than the model.
        InvalidArgumentError: a dtype that torch does not know, or a processor argument that the family does not take.
        QuantizationError: the checkpoint is quantised otherwise than asked for, or cannot be loaded so.
    """
    pretrained = resolve(options.pretrained)
    common = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    config = AutoConfig.from_pretrained(pretrained, **common)
    family = _family(entry, config, options.pretrained)
    processor = AutoProcessor.from_pretrained(pretrained, **common, **_processor_arguments(entry, family, options))
    device = _device(options)
    quantized = _plan_quantization(entry, options, config, family, device)
    dtype, extra = _dtype(options.dtype), {}
    if quantized is not None:
        request, plan = quantized
        dtype, extra = request.dtype, _state_quantization(config, plan)
    # Straight to the device: several processes of one machine must not hold the weights in main memory all at once.
    direct = {"": device} if device.type != "cpu" or quantized else None
    model, report = AutoModelForImageTextToText.from_pretrained(
        pretrained,
        config=config,
        dtype=dtype,
        device_map=options.device_map or direct,
        attn_implementation=options.attn_implementation,
        use_safetensors=options.use_safetensors or None,
        output_loading_info=True,
        **extra,
        **common,
    )
    _refuse_partial_weights(options.pretrained, report, quantized is not None)
    if options.device_map is not None:
        device = model.device
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    kept = None
    if quantized is not None and options.quantizer is not None:
        request, plan = quantized
        kept = record(plan, options.quantizer, request, model)
        _require_dtype(options, request, model.dtype)
        logger.info(f"{entry.name}: {kept.true_name}; {kept.quantized_linears} linear layers; {kept.backend}")
    return LoadedModel(model.eval(), processor, family, device, kept)


def resolve(pretrained: str) -> str:
    """Return the folder of an embedded model for its short name, and any other name unchanged."""
    if pretrained in SHORT_NAMES and not Path(pretrained).is_dir():
        return str(model_path(pretrained))
    return pretrained


def _device(options: LoadOptions) -> torch.device:
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _plan_quantization(
    entry: ModelEntry, options: LoadOptions, config: Any, family: Family, device: torch.device
) -> tuple[LoadRequest, Plan] | None:
    """Return how a quantised model is loaded, or None for a 16-bit one; refuse a checkpoint that is something else."""
    quantizer, pretrained = options.quantizer, resolve(options.pretrained)
    if options.quantize_vision and quantizer is None:
        raise InvalidArgumentError(f"{entry.name}: quantize_vision=True needs a scheme; add quantization=int8")
    stored = stored_scheme(config, pretrained, options.revision)
    if quantizer is None:
        require_unquantized(entry.name, options.pretrained, stored)
        return None
    if stored is None:
        refuse_original_layout(config, pretrained)
        refuse_own_files(pretrained, options.revision)
    quantizer.require_agreement(entry.name, options.pretrained, stored)
    spread = options.device_map is not None and torch.cuda.is_available()
    request = LoadRequest(
        model=entry.name,
        pretrained=pretrained,
        stored=stored,
        names=module_names(config, family),
        dtype=_stated_dtype(options, config),
        device=torch.device("cuda") if spread else device,
        vision=options.quantize_vision,
        revision=options.revision,
    )
    plan = quantizer.plan(request)
    for correction in plan.corrections:
        logger.warning(f"'{options.pretrained}' names modules as transformers 4 did; read as: {correction}")
    return request, plan


def _state_quantization(config: Any, plan: Plan) -> dict[str, Any]:
    """Put a plan where transformers looks: into the configuration of a quantised checkpoint, else into an argument."""
    if not isinstance(plan.config, dict):
        return {"quantization_config": plan.config}
    text = config.get_text_config()
    if text is not config and hasattr(text, "quantization_config"):
        del text.quantization_config
    config.quantization_config = plan.config
    return {}


def _stated_dtype(options: LoadOptions, config: Any) -> torch.dtype:
    """Return the dtype of what is not quantised: the one asked for, else the one that the checkpoint states."""
    asked = _dtype(options.dtype)
    stated = asked if asked != "auto" else config.dtype or config.get_text_config().dtype
    if not isinstance(stated, torch.dtype):
        raise InvalidArgumentError(
            f"the configuration of '{options.pretrained}' states no dtype; write dtype=float16 or dtype=bfloat16"
        )
    return stated


def _require_dtype(options: LoadOptions, request: LoadRequest, found: torch.dtype) -> None:
    """Refuse a dtype that a scheme changed although it was asked for; say so where the checkpoint's own was changed."""
    if found == request.dtype:
        return
    names = str(request.dtype).removeprefix("torch."), str(found).removeprefix("torch.")
    if options.dtype != "auto":
        raise InvalidArgumentError(
            f"{request.model}: dtype={names[0]} was asked for, but transformers runs this scheme in {names[1]} on"
            f" {request.device.type}; write dtype={names[1]}"
        )
    logger.warning(f"{request.model}: transformers runs this scheme in {names[1]}, not in the checkpoint's {names[0]}")


def _family(entry: ModelEntry, config: Any, pretrained: str) -> Family:
    served = FAMILIES[entry.family].model_types
    if config.model_type in served:
        return family_for(config)
    right = [
        m.name
        for m in MODELS.values()
        if m.method == entry.method and config.model_type in FAMILIES[m.family].model_types
    ]
    remedy = f"use --model {right[0]}" if right else "no model of this package serves that architecture"
    raise WrongFamilyError(
        f"{entry.name} serves checkpoints of type {' or '.join(served)}, but '{pretrained}' is of type"
        f" '{config.model_type}'; {remedy}"
    )


def _processor_arguments(entry: ModelEntry, family: Family, options: LoadOptions) -> dict[str, Any]:
    foreign = sorted(set(options.processor) - set(family.processor_defaults))
    if foreign:
        raise InvalidArgumentError(f"{entry.name} does not take {', '.join(foreign)}: its images have a fixed size")
    return {**family.processor_defaults, **options.processor}


def _dtype(name: str) -> str | torch.dtype:
    dtype = getattr(torch, name, None)
    if name == "auto":
        return name
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgumentError(f"dtype={name} is not a torch dtype; use auto, float32, float16 or bfloat16")
    return dtype


def _refuse_partial_weights(pretrained: str, report: dict[str, Any], quantized: bool) -> None:
    """Raise if the weights did not fill the model exactly: transformers would go on with random ones and a warning."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            problems.append(f"{len(names)} {kind.replace('_keys', '')} ({shown})")
    if problems:
        remedy = (
            "the checkpoint was quantised for other modules than its config.json says; quantise again with:"
            " lmms-eval-stability quantize (and see docs/quantization.md)"
            if quantized
            else "load a checkpoint that transformers 5 saved for this architecture"
        )
        raise CheckpointError(
            f"the weights of '{pretrained}' do not fit the model: {'; '.join(problems)}. What is missing or mismatched"
            f" would be random, what is unexpected would be left out; {remedy}"
        )
