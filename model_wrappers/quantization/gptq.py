"""GPTQ: weights of 3, 4 or 8 bits, rounded one column after the other, each correcting the error of those before."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lmms_eval_stability.model_wrappers.quantization import gptqmodel_kernels as kernels
from lmms_eval_stability.model_wrappers.quantization import three_bits
from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest, Plan, Quantizer
from lmms_eval_stability.model_wrappers.quantization.compressed import plan_compressed
from lmms_eval_stability.model_wrappers.quantization.module_names import prefix_matches, respelled
from lmms_eval_stability.model_wrappers.quantization.packages import require_extra

_BLOCK = "block_name_to_quantize"


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Load a checkpoint quantised by GPTQ, in the format of gptqmodel or compressed-tensors.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023
    (arXiv 2210.17323). Weight-only: activations stay in the model's dtype. Only layers of the language model can be
    quantised in gptqmodel's format, because optimum, through which transformers loads it, looks nowhere else.

    Args:
        backend: kernel of gptqmodel; ``auto`` takes the fastest that runs on the device, and ``torch`` for 3 bits.
    """

    scheme: ClassVar[str] = "gptq"
    loads: ClassVar[str] = "a checkpoint quantised by GPTQ, in the format of gptqmodel or compressed-tensors"

    backend: str = "auto"

    def plan(self, request: LoadRequest) -> Plan:
        assert request.stored is not None
        if request.stored.format == "compressed-tensors":
            return plan_compressed(request, "GPTQ", self.backend)
        require_extra("gptq", f"{request.model}: '{request.pretrained}' (gptq)")
        config = copy.deepcopy(request.stored.config)
        corrections: tuple[str, ...] = ()
        if config.get(_BLOCK):
            block = respelled(config[_BLOCK], request.names.linears, prefix_matches)
            if block != config[_BLOCK]:
                corrections = (f"{_BLOCK}: {config[_BLOCK]} -> {block}",)
                config[_BLOCK] = block
        backend, symmetric, finish = self.backend, bool(config.get("sym", True)), None
        if config["bits"] == three_bits.BITS:
            backend = three_bits.backend(request, config, kernels.stored_format(self.scheme, config), backend)
            finish = partial(three_bits.require_symmetric, pretrained=request.pretrained) if symmetric else None
        kernel = kernels.select_kernel(request, self.scheme, config, backend)
        config["backend"] = backend
        return Plan(
            config=config,
            true_name=f"GPTQ {kernels.description(config, symmetric)}",
            parameters={key: config.get(key) for key in ("bits", "group_size", "sym", "desc_act")},
            backend=f"gptqmodel {kernel.__name__}",
            find_quantized=kernels.quantized_modules,
            extras=("gptq",),
            corrections=corrections,
            finish=finish,
        )
