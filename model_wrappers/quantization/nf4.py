"""NF4: 4-bit weights whose 16 values are quantiles of a normal distribution, multiplied in 16 bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from transformers import BitsAndBytesConfig

from lmms_eval_stability.model_wrappers.quantization import bitsandbytes_config as bnb
from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest, Plan, Quantizer, modules_of
from lmms_eval_stability.model_wrappers.quantization.errors import InvalidSchemeArgumentError


@dataclass(frozen=True)
class NF4(Quantizer):
    """Quantise every linear layer of the language model to NormalFloat4 by bitsandbytes while it is loaded.

    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023 (arXiv 2305.14314), section 3. Blocks
    of 64 weights share a scale. The products are computed in the model's own dtype (bitsandbytes' default is fp32).

    Args:
        double_quant: quantise the scales too, to 8 bits in blocks of 256.
    """

    scheme: ClassVar[str] = "nf4"
    loads: ClassVar[str] = "a 16-bit checkpoint, or one saved by bitsandbytes with load_in_4bit"
    quantizes: ClassVar[bool] = True

    double_quant: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.double_quant, bool):
            raise InvalidSchemeArgumentError(f"double_quant={self.double_quant}: write True or False")

    def plan(self, request: LoadRequest) -> Plan:
        bnb.require_bitsandbytes(request, self.scheme)
        from bitsandbytes.nn import Linear4bit

        corrections: tuple[str, ...] = ()
        if request.stored is None:
            config: object = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=request.dtype,
                bnb_4bit_use_double_quant=self.double_quant,
                llm_int8_skip_modules=list(request.in_16_bit),
            )
        else:
            stated = {"double_quant": ("bnb_4bit_use_double_quant", self.double_quant)}
            stored, corrections = bnb.stored_config(request, stated)
            config = {**stored, "bnb_4bit_compute_dtype": str(request.dtype).removeprefix("torch.")}
        return Plan(
            config=config,
            true_name=f"NF4: W4A16, blocks of 64{', scales quantised too' if self.double_quant else ''}",
            parameters={"double_quant": self.double_quant, "block_size": 64},
            backend="bitsandbytes Linear4bit",
            find_quantized=modules_of(Linear4bit),
            extras=(bnb.EXTRA,),
            corrections=corrections,
            finish=_same_arithmetic_on_every_cpu,
        )


def _same_arithmetic_on_every_cpu(model: nn.Module) -> None:
    """Keep bitsandbytes from its kernel for CPUs with AVX512-BF16, which rounds activations and scales to bfloat16.

    It does so in float16 and float32 models too (relative error of a layer 3e-3): answers would depend on the CPU.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
