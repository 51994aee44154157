"""AWQ checkpoints in the format of autoawq and gptqmodel (needs gptqmodel, triton: scripts/install_quantization.sh)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmms_eval_stability.model_wrappers.errors import CheckpointError, InvalidArgumentError
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError
from tests.quantization.checkpoints import Recipe, parts_outside_decoder
from tests.quantization.running import (
    DECODER_LINEARS,
    answers,
    logits,
    make,
    relative_error,
    twin_of,
    worst_layer,
)
from tests.tiny_models import KINDS

Folders = Callable[[str, str], tuple[Path, Path]]
MakeCheckpoint = Callable[[Recipe, str], tuple[Path, Path]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_equals_its_dequantised_twin(kind: str, quantized: Folders) -> None:
    folder, twin = quantized("awq", kind)
    model, dense = make(kind, "awq", folder, batch_size=2), make(kind, "baseline", twin)
    assert model.model.dtype == torch.float16
    assert worst_layer(model, twin_of(dense)) < 2e-3
    rounding = relative_error(logits(dense), logits(make(kind, "baseline", twin, dtype="float32")))
    assert relative_error(logits(model), logits(dense)) < rounding
    assert any(answers(model))
    facts = json.loads(json.dumps(model._facts))["quantization"]
    assert facts["true_name"] == "AWQ W4A16, groups of 32, asymmetric"
    assert facts["parameters"] == {"bits": 4, "group_size": 32, "zero_point": True}
    assert (facts["format"], facts["backend"]) == ("gptqmodel", "gptqmodel AwqTorchQuantLinear")  # not "auto" on a CPU
    assert facts["quantized_linears"] == DECODER_LINEARS
    assert set(facts["not_quantized"]) == {*parts_outside_decoder(kind), "lm_head"}
    assert {"gptqmodel", "triton"} >= facts["versions"].keys() >= {"gptqmodel"}
    assert type(model.model.lm_head) is nn.Linear


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_nothing_is_left_of_the_difference(kind: str, quantized: Folders) -> None:
    folder, twin = quantized("awq", kind)
    model = make(kind, "awq", folder, dtype="float32")
    assert model._facts["quantization"]["dtype"] == "float32"
    dense = make(kind, "baseline", twin, dtype="float32", batch_size=2)
    assert relative_error(logits(model), logits(dense)) < 1e-4
    assert answers(make(kind, "awq", folder, dtype="float32", batch_size=2)) == answers(dense)


def test_a_dtype_that_transformers_changes_is_refused_or_said(
    quantized: Folders, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    """On CUDA transformers runs AWQ in float16 whatever was asked for; here it is made to run in bfloat16."""
    from transformers.quantizers.quantizer_awq import AwqQuantizer

    monkeypatch.setattr(AwqQuantizer, "update_dtype", lambda self, dtype: torch.bfloat16)
    folder, _ = quantized("awq", "llava")
    with pytest.raises(InvalidArgumentError, match=r"dtype=float16 was asked for, but .* in bfloat16 on cpu"):
        make("llava", "awq", folder, dtype="float16")
    model = make("llava", "awq", folder)
    assert model._facts["dtype"] == model._facts["quantization"]["dtype"] == "bfloat16"
    assert any("in bfloat16, not in the checkpoint's float16" in line for line in logged)


@pytest.mark.parametrize(
    ("kind", "skip", "line"),
    [
        ("qwen2_5_vl", ["visual"], "modules_to_not_convert: visual -> model.visual"),
        ("qwen2_vl", ["visual", "lm_head"], "modules_to_not_convert: visual -> model.visual"),
        (
            "llava",
            ["vision_tower", "multi_modal_projector"],
            "modules_to_not_convert: vision_tower -> model.vision_tower",
        ),
        ("llava_next", None, None),
    ],
)
def test_the_skip_list_as_published_is_read_as_it_was_meant(
    kind: str,
    skip: list[str] | None,
    line: str | None,
    make_checkpoint: MakeCheckpoint,
    quantized: Folders,
    logged: list[str],
) -> None:
    folder, _ = make_checkpoint(Recipe("awq", {"modules_to_not_convert": skip}), kind)
    model = make(kind, "awq", folder)
    assert torch.equal(logits(model), logits(make(kind, "awq", quantized("awq", kind)[0])))
    if line is not None:
        assert line in model.quantization.corrections
        assert any(line in text for text in logged)


def test_transformers_alone_empties_the_vision_tower(make_checkpoint: MakeCheckpoint) -> None:
    """The reason for the test above; when this one fails, the correction may go."""
    from transformers import AutoModelForImageTextToText, AwqConfig

    folder, _ = make_checkpoint(Recipe("awq", {"modules_to_not_convert": ["visual"]}), "qwen2_5_vl")
    _, report = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=AwqConfig(backend="torch_awq"), output_loading_info=True
    )
    assert any("visual" in name for name in report["missing_keys"])


@pytest.mark.parametrize("backend", ["gemm", "gemm_triton", "torch_fused_awq", "marlin", "no_such_kernel"])
def test_only_torch_awq_runs_on_a_cpu(backend: str, quantized: Folders) -> None:
    with pytest.raises(BackendError, match=rf"backend={backend} does not run AWQ on a CPU.*backend=torch_awq"):
        make("llava", "awq", quantized("awq", "llava")[0], backend=backend)


@pytest.mark.parametrize(
    "changes", [{"version": "gemv"}, {"version": "gemv_fast"}, {"version": "llm-awq"}, {"bits": 8}]
)
def test_layouts_without_a_kernel_on_a_cpu_are_refused(
    changes: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    folder, _ = make_checkpoint(Recipe("awq", changes), "llava")
    with pytest.raises(BackendError, match=r"backend=torch_awq cannot run .* on cpu"):
        make("llava", "awq", folder)


def test_three_bits_have_no_kernel_and_a_remedy(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("awq", {"bits": 3}), "llava")
    with pytest.raises(BackendError, match=r"\(awq, 3 bits, groups of 32\).*quantize --method awq --bits 3"):
        make("llava", "awq", folder)


def test_a_layer_that_the_checkpoint_does_not_quantise_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("awq", only=lambda name: "layers.3.mlp.up_proj" not in name), "llava")
    with pytest.raises(CheckpointError, match=r"missing \(.*layers\.3\.mlp\.up_proj\.(qweight|qzeros)"):
        make("llava", "awq", folder)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_a_quantised_vision_tower_is_refused_unless_asked_for(kind: str, make_checkpoint: MakeCheckpoint) -> None:
    folder, twin = make_checkpoint(Recipe("awq", quantize_vision=True), kind)
    with pytest.raises(CheckpointError, match=r"missing .* unexpected"):
        make(kind, "awq", folder)
    model = make(kind, "awq", folder, quantize_vision=True)
    assert model.quantization.not_quantized == {"lm_head": 1}
    dense = make(kind, "baseline", twin, dtype="float32")
    assert (
        relative_error(logits(make(kind, "awq", folder, quantize_vision=True, dtype="float32")), logits(dense)) < 1e-4
    )


def test_together_with_token_reduction(quantized: Folders) -> None:
    folder, _ = quantized("awq", "llava")
    model = make("llava", "sparsevlm", folder, quantization="awq", batch_size=2)
    assert model._facts["method"] == "sparsevlm"
    assert model.quantization.quantized_linears == DECODER_LINEARS
    assert any(answers(model))
