"""AWQ: weights of 3, 4 or 8 bits, after channels that see large activations were scaled up to lose less."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from lmms_eval_stability.model_wrappers.quantization import gptqmodel_kernels as kernels
from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest, Plan, Quantizer
from lmms_eval_stability.model_wrappers.quantization.compressed import plan_compressed
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError
from lmms_eval_stability.model_wrappers.quantization.module_names import respell_all, transformers_matches
from lmms_eval_stability.model_wrappers.quantization.packages import require_extra

_SKIP = "modules_to_not_convert"
_ON_CPU = "torch_awq"


@dataclass(frozen=True)
class AWQ(Quantizer):
    """Load a checkpoint quantised by AWQ, in the format of autoawq and gptqmodel or of compressed-tensors.

    Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024
    (arXiv 2306.00978). Weight-only: activations stay in the model's dtype. In autoawq's format only 4 bits run on
    a CPU, and 3 bits nowhere.

    Args:
        backend: kernel of gptqmodel; ``auto`` is ``torch_awq`` on a CPU and gptqmodel's choice elsewhere.
    """

    scheme: ClassVar[str] = "awq"
    loads: ClassVar[str] = "a checkpoint quantised by AWQ, in the format of autoawq, gptqmodel or compressed-tensors"

    backend: str = "auto"

    def plan(self, request: LoadRequest) -> Plan:
        assert request.stored is not None
        if request.stored.format == "compressed-tensors":
            return plan_compressed(request, "AWQ", self.backend)
        require_extra("awq", f"{request.model}: '{request.pretrained}' (awq)")
        config = copy.deepcopy(request.stored.config)
        backend = self._backend(request)
        spelled, changed = respell_all(_SKIP, config.get(_SKIP) or [], request.names.linears, transformers_matches)
        config[_SKIP] = list(dict.fromkeys([*spelled, *request.in_16_bit]))
        kernel = kernels.select_kernel(request, self.scheme, config, backend)
        config["backend"] = backend
        asymmetric = bool(config.get("zero_point", True))
        return Plan(
            config=config,
            true_name=f"AWQ {kernels.description(config, symmetric=not asymmetric)}",
            parameters={key: config.get(key) for key in ("bits", "group_size", "zero_point")},
            backend=f"gptqmodel {kernel.__name__}",
            find_quantized=kernels.quantized_modules,
            extras=("awq",),
            corrections=tuple(changed),
        )

    def _backend(self, request: LoadRequest) -> str:
        if request.device.type != "cpu":
            return self.backend
        if self.backend not in ("auto", _ON_CPU):
            raise BackendError(
                f"{request.model}: backend={self.backend} does not run AWQ on a CPU; leave backend out or set"
                f" backend={_ON_CPU}"
            )
        return _ON_CPU
