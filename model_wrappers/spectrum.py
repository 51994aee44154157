"""How concentrated the singular spectra of a model's weights and activations are, and what quantisation does to that.

The spectrum of X is p_k = s_k^2 / sum of s^2. Its inverse participation ratio (IPR) is the sum of p_k^2: 1 when one
direction holds everything, 1 / min(N, d) when all hold the same. Its effective rank is the exponential of its entropy
(Roy and Vetterli, EUSIPCO 2007, definition 1, who take s_k itself where we take s_k^2, so that both numbers are of one
spectrum). LoFi (Sun et al., arXiv 2503.06794 v1-v2) relates the change of the IPR to changed answers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from lmms_eval_stability.model_wrappers.errors import CheckpointError
from lmms_eval_stability.model_wrappers.families import family_for
from lmms_eval_stability.model_wrappers.loading import LoadedModel, LoadOptions, load, resolve
from lmms_eval_stability.model_wrappers.quantization.make.calibration import Choice, is_file, read_file, read_task
from lmms_eval_stability.model_wrappers.quantization.module_names import module_names
from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS, MODELS
from lmms_eval_stability.model_wrappers.token_reduction.show import load_any

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.families import Prompt
    from lmms_eval_stability.model_wrappers.quantization.make.calibration import CalibrationSet

#: Rows of the identity that a layer reads at once.
_ROWS = 1024

Report = Callable[[str, int, int], None]
"""``(what, done, total)``"""


@dataclass(frozen=True)
class Spectrum:
    """Inverse participation ratio and effective rank of one matrix."""

    ipr: float
    effective_rank: float


@dataclass(frozen=True)
class Measured:
    """The spectra of one model by name: weights of linear layers, and what decoder layers hand on.

    Attributes:
        weights: by module name.
        activations: by (layer, "visual" or "all" tokens), mean over documents; layer 0 is what enters the first one.
    """

    weights: dict[str, Spectrum]
    activations: dict[tuple[int, str], Spectrum]


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        scheme: ``""`` for the model as it is, else a quantisation scheme.
        pretrained: folder or hub name.
    """

    scheme: str
    pretrained: str


def read_documents(source: str, choice: Choice, model: str) -> CalibrationSet:
    """Choose documents of a JSONL file or of an lmms-eval task, as the checkpoint ``model`` reads them.

    Raises:
        WrapperError: the checkpoint, the file or the task cannot be read.
    """
    if is_file(source):
        return read_file(Path(source), choice)
    return read_task(source, choice, family_for(_config(model)).lmms_eval_name)


def spectrum_of(matrix: Tensor) -> Spectrum:
    """Return the spectrum of a matrix (N, d), computed in float64; NaN for one of zeros."""
    matrix = matrix.double()
    shorter = matrix.T if len(matrix) > matrix.shape[1] else matrix
    squares = torch.linalg.eigvalsh(shorter @ shorter.T).clamp(min=0)
    shares = squares / squares.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return Spectrum(float(shares.square().sum()), float(entropy.exp()))


def effective_weight(layer: nn.Module, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (in, out) that a linear layer multiplies by, whatever it stores: its answer to the identity.

    A row of the identity has one entry, which the rounding of activations in ``int8`` keeps exactly.
    """
    bias = getattr(layer, "bias", None)
    rows = []
    for start in range(0, width, _ROWS):
        identity = torch.zeros(min(_ROWS, width - start), width, device=device, dtype=dtype)
        identity[torch.arange(len(identity)), start + torch.arange(len(identity))] = 1
        answer = layer(identity)
        rows.append((answer - bias if isinstance(bias, Tensor) else answer).double())
    return torch.cat(rows)


@torch.inference_mode()
def measure(subject: Subject, documents: CalibrationSet | None, report: Report) -> Measured:
    """Load a model and measure it; one model is in memory at a time.

    Args:
        subject: the model.
        documents: what it reads while its activations are measured; None leaves them out.
        report: called with what is under way.

    Raises:
        WrapperError: the model cannot be loaded so, or a document cannot be read.
    """
    report(f"loading {subject.pretrained} {subject.scheme}".strip(), 0, 0)
    loaded = _load(subject)
    names = module_names(_config(subject.pretrained), loaded.family)
    decoder = [name for name in names.linears if name.startswith(f"{names.decoder}.")]
    weights = {}
    for done, name in enumerate(decoder):
        report(f"{subject.scheme or 'baseline'}: weights", done, len(decoder))
        layer = loaded.model.get_submodule(name)
        weights[name] = spectrum_of(
            effective_weight(layer, _width(layer, name, loaded), loaded.device, loaded.model.dtype)
        )
    if documents is None:
        return Measured(weights, {})
    prompts = documents.prompts(loaded.family, loaded.processor)
    return Measured(weights, _activations(loaded, prompts, subject, report))


def _config(pretrained: str) -> Any:
    try:
        return AutoConfig.from_pretrained(resolve(pretrained))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"no checkpoint could be loaded from '{pretrained}': {reason}. Give a folder or the name of a checkpoint on"
            " the hub, or demo for the model that comes with the package"
        ) from error


def _load(subject: Subject) -> LoadedModel:
    if not subject.scheme:
        return load_any(subject.pretrained)
    model_type = family_for(_config(subject.pretrained)).model_type
    prefix = next(name for name, family in FAMILIES.items() if model_type in family.model_types)
    module, name = METHODS[subject.scheme].path.split(":")
    quantizer = getattr(importlib.import_module(f"lmms_eval_stability.model_wrappers.{module}"), name)()
    options = LoadOptions(pretrained=subject.pretrained, quantizer=quantizer)
    return load(MODELS[f"{prefix}_{subject.scheme}"], options)


def _width(layer: nn.Module, name: str, loaded: LoadedModel) -> int:
    """Return how many inputs a linear layer takes; kernels of quantised layers call it by either name."""
    for attribute in ("in_features", "infeatures"):
        value = getattr(layer, attribute, None)
        if isinstance(value, int):
            return value
    raise TypeError(f"{type(layer).__name__} {name} of {type(loaded.model).__name__} does not say how wide it is")


def _activations(
    loaded: LoadedModel, prompts: Sequence[Prompt], subject: Subject, report: Report
) -> dict[tuple[int, str], Spectrum]:
    placeholders = torch.tensor(loaded.family.placeholder_ids(loaded.model.config), device=loaded.device)
    sums: dict[tuple[int, str], list[Spectrum]] = {}
    for done, prompt in enumerate(prompts):
        report(f"{subject.scheme or 'baseline'}: activations", done, len(prompts))
        inputs = loaded.family.encode(loaded.processor, [prompt]).to(loaded.device, loaded.model.dtype)
        visual = torch.isin(inputs["input_ids"][0], placeholders)
        with _layer_states(loaded) as states:
            loaded.model(**inputs)
        for layer, state in enumerate(states):
            sums.setdefault((layer, "all"), []).append(spectrum_of(state[0]))
            if bool(visual.any()):
                sums.setdefault((layer, "visual"), []).append(spectrum_of(state[0][visual]))
    return {
        key: Spectrum(sum(one.ipr for one in found) / len(found), sum(one.effective_rank for one in found) / len(found))
        for key, found in sums.items()
    }


@contextmanager
def _layer_states(loaded: LoadedModel) -> Iterator[list[Tensor]]:
    """Yield a list that fills with what enters the first decoder layer and what each one hands on: (1, L, d) each."""
    states: list[Tensor] = []

    def entered(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).detach())

    def left(_module: nn.Module, _args: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).detach())

    layers: Any = loaded.family.decoder(loaded.model).layers
    handles = [layers[0].register_forward_pre_hook(entered, with_kwargs=True)]
    handles += [layer.register_forward_hook(left) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
