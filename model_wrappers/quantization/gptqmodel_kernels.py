"""What gptq and awq share: kernels of gptqmodel, which transformers loads both formats with."""

from __future__ import annotations

from typing import Any

from torch import nn

from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError


def select_kernel(request: LoadRequest, algorithm: str, config: dict[str, Any], backend: str) -> type[nn.Module]:
    """Return the kernel that gptqmodel chooses on the device, as transformers will ask for it.

    Raises:
        BackendError: there is no such kernel, or it does not run on the device or with the checkpoint.
    """
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    is_awq = algorithm == "awq"
    try:
        kernel: type[nn.Module] = hf_select_quant_linear_v2(
            bits=config["bits"],
            group_size=config["group_size"],
            desc_act=False if is_awq else bool(config.get("desc_act", False)),
            sym=False if is_awq else bool(config.get("sym", True)),
            format=stored_format(algorithm, config),
            quant_method=METHOD(algorithm),
            zero_point=bool(config.get("zero_point", True)) if is_awq else None,
            meta=None if is_awq else config.get("meta"),
            pack=False,
            device_map={"": str(request.device)},
            backend=backend,
        )
    except Exception as error:  # gptqmodel raises a class of its own for each reason
        raise BackendError(
            f"{request.model}: backend={backend} cannot run '{request.pretrained}' ({algorithm},"
            f" {config['bits']} bits, groups of {config['group_size']}) on {request.device.type}:"
            f" {type(error).__name__}: {error}. {_remedy(algorithm, config['bits'])}"
        ) from error
    return kernel


def _remedy(algorithm: str, bits: int) -> str:
    if algorithm == "awq" and bits != 4:
        return (
            "A checkpoint in the compressed-tensors format runs everywhere; make one with: lmms-eval-stability"
            f" quantize --method awq --bits {bits}"
        )
    kernel = "torch_awq" if algorithm == "awq" else "torch"
    return f"Leave backend out, or set backend={kernel}, which runs everywhere"


def stored_format(algorithm: str, config: dict[str, Any]) -> str:
    """Return the layout of the packed weights, as transformers reads it from the config."""
    if algorithm == "awq":
        return str(config.get("version") or config.get("format") or "gemm").lower()
    return str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()


def quantized_modules(model: nn.Module) -> set[str]:
    """Return the names of a model's layers of gptqmodel."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    return {name for name, module in model.named_modules() if isinstance(module, BaseQuantLinear)}


def description(config: dict[str, Any], symmetric: bool) -> str:
    """Return "W4A16, groups of 128, symmetric" for a config."""
    size = config["group_size"]
    groups = f"groups of {size}" if size > 0 else "one scale per output"
    return f"W{config['bits']}A16, {groups}, {'symmetric' if symmetric else 'asymmetric'}"
