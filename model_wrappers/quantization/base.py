"""What every scheme shares: how it is planned from a checkpoint, and how the loaded model is checked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from lmms_eval_stability.model_wrappers.quantization.errors import QuantizedModulesError, SchemeMismatchError
from lmms_eval_stability.model_wrappers.quantization.packages import installed_versions

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.quantization.checkpoints import StoredScheme
    from lmms_eval_stability.model_wrappers.quantization.module_names import ModuleNames


@dataclass(frozen=True)
class LoadRequest:
    """A checkpoint that is about to be loaded by a scheme.

    Attributes:
        model: the name after ``--model``, for messages.
        pretrained: folder or hub name of the checkpoint.
        stored: its own account of its quantisation; None for a 16-bit checkpoint.
        names: its modules.
        dtype: of everything that is not quantised, and of the activations.
        device: where it will run; its type decides which kernels there are.
        vision: quantise (or expect quantised) vision tower and projector.
        revision: of a hub checkpoint.
    """

    model: str
    pretrained: str
    stored: StoredScheme | None
    names: ModuleNames
    dtype: torch.dtype
    device: torch.device
    vision: bool = False
    revision: str = "main"

    @property
    def in_16_bit(self) -> tuple[str, ...]:
        """Modules that are not to be quantised."""
        return (self.names.head,) if self.vision else self.names.beside_decoder


@dataclass(frozen=True)
class Plan:
    """How ``from_pretrained`` is told to load a quantised model.

    Attributes:
        config: becomes ``quantization_config``: a dict for a checkpoint that is quantised, else transformers' object.
        true_name: what the scheme really does.
        parameters: its parameters, those of the checkpoint included.
        backend: the kernel.
        find_quantized: returns the names of a loaded model's quantised linear layers.
        extras: extras of this package whose packages take part.
        corrections: what was changed in the checkpoint's own config, one line each.
        finish: called with the loaded model before it is used.
    """

    config: Any
    true_name: str
    parameters: dict[str, Any]
    backend: str
    find_quantized: Callable[[nn.Module], set[str]]
    extras: tuple[str, ...]
    corrections: tuple[str, ...] = ()
    finish: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True)
class QuantizationRecord:
    """A quantised model as it was loaded, ready for the run's facts.

    Attributes:
        quantized_linears: number of quantised linear layers.
        not_quantized: linear layers left in 16 bit: module -> number of layers.
    """

    scheme: str
    true_name: str
    format: str
    parameters: dict[str, Any]
    backend: str
    dtype: str
    quantized_linears: int
    not_quantized: dict[str, int]
    scheme_from: str
    corrections: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record ready for JSON."""
        return {**dataclasses.asdict(self), "corrections": list(self.corrections)}


class Quantizer(ABC):
    """A scheme with its parameters; subclasses are frozen dataclasses."""

    #: Suffix of model names.
    scheme: ClassVar[str]
    #: What ``pretrained`` must name, for messages.
    loads: ClassVar[str]
    #: Whether a 16-bit checkpoint is quantised while it is loaded.
    quantizes: ClassVar[bool] = False

    @abstractmethod
    def plan(self, request: LoadRequest) -> Plan:
        """Return how the checkpoint is loaded.

        Raises:
            MissingPackageError: a package is missing.
            BackendError: the kernel does not run on the device.
            SchemeMismatchError: the checkpoint was made with other parameters.
        """

    def require_agreement(self, model: str, pretrained: str, stored: StoredScheme | None) -> None:
        """Raise unless the checkpoint can be loaded as this scheme.

        Raises:
            SchemeMismatchError: with the model name or the argument that agrees with the checkpoint.
        """
        if stored is None and not self.quantizes:
            raise SchemeMismatchError(
                f"{model} needs {self.loads}, but '{pretrained}' is not quantised; make one with: lmms-eval-stability"
                " quantize"
            )
        if stored is not None and self.scheme not in stored.schemes:
            raise SchemeMismatchError(
                f"{model} loads {self.scheme}, but '{pretrained}' is already quantised by {' or '.join(stored.schemes)}"
                f" ({stored.format}); use --model ..._{stored.schemes[0]} or quantization={stored.schemes[0]}"
            )


def require_unquantized(model: str, pretrained: str, stored: StoredScheme | None) -> None:
    """Raise for a quantised checkpoint under a model name that says nothing of it: it would pass for a baseline.

    Raises:
        SchemeMismatchError: with the argument that says it.
    """
    if stored is not None:
        scheme = stored.schemes[0]
        raise SchemeMismatchError(
            f"'{pretrained}' is quantised by {' or '.join(stored.schemes)} ({stored.format}), but {model} does not say"
            f" so; use --model ..._{scheme}, or add quantization={scheme} to --model_args"
        )


def modules_of(*types: type[nn.Module]) -> Callable[[nn.Module], set[str]]:
    """Return a function from a model to the names of its modules of ``types``."""
    return lambda model: {name for name, module in model.named_modules() if isinstance(module, types)}


def record(plan: Plan, quantizer: Quantizer, request: LoadRequest, model: nn.Module) -> QuantizationRecord:
    """Check where a loaded model is quantised, finish it, and return what the run's facts say about it.

    Raises:
        QuantizedModulesError: no layer of the language model is quantised, or one outside it is that should not be
            (or, with ``quantize_vision``, none is).
    """
    names = request.names
    quantized = plan.find_quantized(model)
    inside = {name for name in quantized if name.startswith(f"{names.decoder}.")}
    head = quantized & {names.head}
    vision = quantized - inside - head
    if not inside:
        raise QuantizedModulesError(
            f"{request.model}: no linear layer of the language model of '{request.pretrained}' is quantised, so this"
            f" would be the 16-bit model; the checkpoint is not what {quantizer.scheme} loads ({quantizer.loads})"
        )
    if vision and not request.vision:
        raise QuantizedModulesError(
            f"{request.model}: {len(vision)} linear layers of the vision tower or projector of '{request.pretrained}'"
            f" are quantised ({_some(vision)}); they stay in 16 bit unless quantize_vision=True"
        )
    if request.vision and not vision:
        raise QuantizedModulesError(
            f"{request.model}: quantize_vision=True, but '{request.pretrained}' has no quantised linear layer in its"
            " vision tower or projector; leave quantize_vision out, or quantise the checkpoint with them"
        )
    if head:
        raise QuantizedModulesError(
            f"{request.model}: the output layer ({names.head}) of '{request.pretrained}' is quantised; it must stay in"
            " 16 bit. Use a checkpoint whose output layer is not quantised"
        )
    if plan.finish is not None:
        plan.finish(model)
    stored = request.stored
    return QuantizationRecord(
        scheme=quantizer.scheme,
        true_name=plan.true_name,
        format=stored.format if stored else "bitsandbytes, while loading",
        parameters=plan.parameters,
        backend=plan.backend,
        dtype=str(model.dtype).removeprefix("torch."),
        quantized_linears=len(quantized),
        not_quantized=_left_out(names, quantized),
        scheme_from=stored.source if stored else "the model name",
        corrections=plan.corrections,
        versions=installed_versions(plan.extras),
    )


def _left_out(names: ModuleNames, quantized: set[str]) -> dict[str, int]:
    """Count the linear layers that are not quantised, by part outside the language model, by name inside it."""
    counts: Counter[str] = Counter()
    for name in names.linears:
        if name not in quantized:
            parts = [part for part in names.beside_decoder if name == part or name.startswith(f"{part}.")]
            counts[parts[0] if parts else name] += 1
    return dict(counts)


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:2]) + (", ..." if len(ordered) > 2 else "")
