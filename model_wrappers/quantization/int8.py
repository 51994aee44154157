"""LLM.int8(): 8-bit weights and 8-bit activations, except for activation columns with outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import BitsAndBytesConfig

from lmms_eval_stability.model_wrappers.quantization import bitsandbytes_config as bnb
from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest, Plan, Quantizer, modules_of
from lmms_eval_stability.model_wrappers.quantization.errors import InvalidSchemeArgumentError


@dataclass(frozen=True)
class Int8(Quantizer):
    """Quantise every linear layer of the language model by bitsandbytes' LLM.int8() while it is loaded.

    Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022
    (arXiv 2208.07339), section 3. Weights are scaled by row (one scale for each output), activations by token. Input
    columns in which an activation of the batch reaches ``threshold`` are multiplied in 16 bit with dequantised weights.
    This is W8A8 with 16-bit outlier columns, not W8A16 as papers that use it say.

    Args:
        threshold: magnitude from which an input column is an outlier, >= 0; 0 quantises every column.
    """

    scheme: ClassVar[str] = "int8"
    loads: ClassVar[str] = "a 16-bit checkpoint, or one saved by bitsandbytes with load_in_8bit"
    quantizes: ClassVar[bool] = True

    threshold: float = 6.0

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise InvalidSchemeArgumentError(f"threshold={self.threshold}: give a number of at least 0")

    def plan(self, request: LoadRequest) -> Plan:
        bnb.require_bitsandbytes(request, self.scheme)
        from bitsandbytes.nn import Linear8bitLt

        corrections: tuple[str, ...] = ()
        if request.stored is None:
            config: object = BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=float(self.threshold),
                llm_int8_skip_modules=list(request.in_16_bit),
            )
        else:
            given = {"threshold": ("llm_int8_threshold", self.threshold)}
            config, corrections = bnb.stored_config(request, given)
        return Plan(
            config=config,
            true_name=f"LLM.int8(): W8A8 with 16-bit outlier columns (threshold {self.threshold:g})",
            parameters={"threshold": self.threshold},
            backend="bitsandbytes Linear8bitLt",
            find_quantized=modules_of(Linear8bitLt),
            extras=(bnb.EXTRA,),
            corrections=corrections,
        )
