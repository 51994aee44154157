"""From ``pretrained=...`` to a model whose every weight came from the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmms_eval_stability.demo import SHORT_NAME, model_path
from lmms_eval_stability.model_wrappers.errors import CheckpointError, InvalidArgumentError, WrongFamilyError
from lmms_eval_stability.model_wrappers.families import Family, family_for
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


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer, and what reads its inputs."""

    model: Any
    processor: Any
    family: Family
    device: torch.device

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def load(entry: ModelEntry, options: LoadOptions) -> LoadedModel:
    """Load a checkpoint for the model named by ``entry``.

    Raises:
        WrongFamilyError: the checkpoint is of another architecture.
        CheckpointError: weights are missing from, unexpected in, or of another shape than the model.
        InvalidArgumentError: a dtype that torch does not know, or a processor argument that the family does not take.
    """
    pretrained = resolve(options.pretrained)
    common = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    config = AutoConfig.from_pretrained(pretrained, **common)
    family = _family(entry, config, options.pretrained)
    processor = AutoProcessor.from_pretrained(pretrained, **common, **_processor_arguments(entry, family, options))
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # Straight to the device: several processes of one machine must not hold the weights in main memory all at once.
    direct = {"": device} if device.type != "cpu" else None
    model, report = AutoModelForImageTextToText.from_pretrained(
        pretrained,
        config=config,
        dtype=_dtype(options.dtype),
        device_map=options.device_map or direct,
        attn_implementation=options.attn_implementation,
        use_safetensors=options.use_safetensors or None,
        output_loading_info=True,
        **common,
    )
    _refuse_partial_weights(options.pretrained, report)
    if options.device_map is not None:
        device = model.device
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return LoadedModel(model.eval(), processor, family, device)


def resolve(pretrained: str) -> str:
    """Return the folder of the embedded model for its short name, and any other name unchanged."""
    if pretrained == SHORT_NAME and not Path(pretrained).is_dir():
        return str(model_path())
    return pretrained


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


def _refuse_partial_weights(pretrained: str, report: dict[str, Any]) -> None:
    """Raise if the weights did not fill the model exactly: transformers would go on with random ones and a warning."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            problems.append(f"{len(names)} {kind.replace('_keys', '')} ({shown})")
    if problems:
        raise CheckpointError(
            f"the weights of '{pretrained}' do not fit the model: {'; '.join(problems)}. What is missing or mismatched"
            " would be random, what is unexpected would be left out; load a checkpoint that transformers 5 saved for"
            " this architecture"
        )
