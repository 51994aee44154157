"""What is quantised, and by which algorithm: llm-compressor's modifiers for a model of one of our families.

Only the linear layers of the language model are quantised. Vision tower, projector and output layer stay as they are,
as in the checkpoints that GPTQ and AWQ are known by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lmms_eval_stability.model_wrappers.quantization.make.errors import GroupSizeError

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.families import Family
    from lmms_eval_stability.model_wrappers.quantization.module_names import ModuleNames

METHODS = ("gptq", "awq")
#: Group sizes worth naming in a message, those that other programs know first.
_USUAL_SIZES = (128, 64, 32, 16, 8)
#: Layers whose output AWQ scales down, and the layers whose input weights it scales up in return. All four language
#: models (Llama, Mistral, Qwen2 in both) have these names. Where keys and values have fewer heads than queries, the
#: outputs of v_proj are no longer the inputs of o_proj, and llm-compressor leaves that pair out.
_AWQ_PAIRS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


@dataclass(frozen=True)
class Recipe:
    """A quantisation of the language model's linear layers; weights only, symmetric, one scale per group.

    GPTQ: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023
    (arXiv 2210.17323), columns in order of activation (``actorder=static``). AWQ: Lin et al., "AWQ: Activation-aware
    Weight Quantization for LLM Compression and Acceleration", MLSys 2024 (arXiv 2306.00978). Departs from the paper,
    whose groups have zero points: transformers 5.23 cannot load them in this format, so groups are symmetric.

    Attributes:
        method: ``gptq`` or ``awq``.
        bits: bits per weight: 3, 4 or 8.
        group_size: input columns that share a scale.
    """

    method: str
    bits: int = 4
    group_size: int = 128

    def check(self, model: nn.Module, names: ModuleNames) -> None:
        """Raise if the groups do not fill the layers; ``model`` may be without weights.

        Raises:
            GroupSizeError: with the sizes that do.
        """
        widths = {name: model.get_submodule(name).in_features for name in quantized_names(names)}
        bad = [name for name, width in widths.items() if width % self.group_size]
        if bad:
            common = math.gcd(*widths.values())
            fitting = [size for size in _USUAL_SIZES if common % size == 0] or [common]
            raise GroupSizeError(
                f"--group-size {self.group_size} does not divide the input width of {len(bad)} of {len(widths)} layers"
                f" ({bad[0]}: {widths[bad[0]]}); use --group-size {' or '.join(map(str, fitting))}"
            )

    def modifiers(self, names: ModuleNames) -> list[Any]:
        """Return llm-compressor's modifiers for a model with these module names."""
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

        # Texts, where the classes would take them from their defaults as objects that recipe.yaml cannot hold.
        weights = QuantizationArgs(
            num_bits=self.bits,
            type="int",
            symmetric=True,
            strategy="group",
            group_size=self.group_size,
            actorder="static" if self.method == "gptq" else None,
        )
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        ignore = ignored(names)
        if self.method == "gptq":
            return [GPTQModifier(config_groups=groups, ignore=ignore)]
        mappings = [AWQMapping(smooth, balance) for smooth, balance in awq_pairs(names)]
        return [AWQModifier(mappings=mappings), QuantizationModifier(config_groups=groups, ignore=ignore)]


def quantized_names(names: ModuleNames) -> list[str]:
    """Return the names of the layers that a recipe quantises."""
    return [name for name in names.linears if name.startswith(f"{names.decoder}.")]


def ignored(names: ModuleNames) -> list[str]:
    """Return what is not quantised, as expressions that mean the same modules wherever they lie.

    llm-compressor saves the modules' names of today's transformers without "model.", and such names, once read back,
    fit nothing.
    """
    parts = [name.rpartition(".")[2] for name in names.beside_decoder]
    return [f"re:(.*\\.)?{re.escape(part)}(\\..*)?$" for part in parts]


def awq_pairs(names: ModuleNames) -> list[tuple[str, list[str]]]:
    """Return AWQ's pairs with names that fit layers of the language model alone."""
    start = f"re:{re.escape(names.decoder)}\\.layers\\.\\d+\\."
    return [
        (f"{start}{re.escape(smooth)}$", [f"{start}{re.escape(name)}$" for name in balance])
        for smooth, balance in _AWQ_PAIRS
    ]


def decoder_layers(model: nn.Module, family: Family) -> Sequence[nn.Module]:
    """Return the layers of the language model."""
    decoder: Any = family.decoder(model)
    layers: nn.ModuleList = decoder.layers
    return list(layers)


@contextmanager
def without_pinned_memory() -> Iterator[None]:
    """Let AWQ run without an accelerator: it pins what it copies to one, and PyTorch cannot pin where there is none."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    original = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_args, **_named: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original  # type: ignore[method-assign]
