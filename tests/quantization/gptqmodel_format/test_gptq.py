"""GPTQ checkpoints in gptqmodel's format (needs gptqmodel and optimum: scripts/install_quantization.sh)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmms_eval_stability.model_wrappers.errors import CheckpointError
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError, LayoutError, QuantizedModulesError
from tests.quantization.checkpoints import Recipe, packed, parts_outside_decoder
from tests.quantization.running import (
    DECODER_LINEARS,
    answers,
    decoder_linears,
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
    folder, twin = quantized("gptq", kind)
    model, dense = make(kind, "gptq", folder, batch_size=2), make(kind, "baseline", twin)
    assert model.model.dtype == torch.float16
    assert worst_layer(model, twin_of(dense)) < 2e-3
    # Through all layers the difference grows as any rounding does: it stays below what float16 alone costs the twin.
    rounding = relative_error(logits(dense), logits(make(kind, "baseline", twin, dtype="float32")))
    assert relative_error(logits(model), logits(dense)) < rounding
    assert any(answers(model))
    facts = json.loads(json.dumps(model._facts))["quantization"]
    assert facts["true_name"] == "GPTQ W4A16, groups of 32, symmetric"
    assert facts["parameters"] == {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    assert (facts["format"], facts["backend"]) == ("gptqmodel", "gptqmodel TorchFusedQuantLinear")
    assert facts["quantized_linears"] == DECODER_LINEARS
    assert set(facts["not_quantized"]) == {*parts_outside_decoder(kind), "lm_head"}
    assert facts["versions"].keys() == {"gptqmodel", "optimum"}
    assert type(model.model.lm_head) is nn.Linear


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_dtype_is_the_one_asked_for(dtype: str, quantized: Folders) -> None:
    model = make("qwen2_5_vl", "gptq", quantized("gptq", "qwen2_5_vl")[0], dtype=dtype)
    assert model._facts["quantization"]["dtype"] == dtype
    assert any(answers(model, count=1))


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("llava", "language_model.model.layers"),
        ("llava_next", "language_model.model.layers"),
        ("qwen2_vl", "model.layers"),
    ],
)
def test_the_block_as_published_is_read_as_it_was_meant(
    kind: str, block: str, make_checkpoint: MakeCheckpoint, quantized: Folders, logged: list[str]
) -> None:
    folder, _ = make_checkpoint(Recipe("gptq", {"block_name_to_quantize": block}), kind)
    model = make(kind, "gptq", folder)
    assert torch.equal(logits(model), logits(make(kind, "gptq", quantized("gptq", kind)[0])))
    line = f"block_name_to_quantize: {block} -> model.language_model.layers"
    assert model.quantization.corrections == (line,)
    assert any(line in text for text in logged)


def test_transformers_alone_loads_random_weights_for_that_block(make_checkpoint: MakeCheckpoint) -> None:
    """The reason for the test above; when this one fails, the correction may go."""
    from transformers import AutoModelForImageTextToText

    folder, _ = make_checkpoint(Recipe("gptq", {"block_name_to_quantize": "language_model.model.layers"}), "llava")
    _, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert len(report["missing_keys"]) == DECODER_LINEARS


def test_no_block_at_all_means_the_decoder(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("gptq", {"block_name_to_quantize": None}), "qwen2_vl")
    assert make("qwen2_vl", "gptq", folder).quantization.quantized_linears == DECODER_LINEARS


def test_a_block_that_does_not_exist_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("gptq", {"block_name_to_quantize": "transformer.h"}), "llava")
    with pytest.raises(CheckpointError, match=r"56 missing \(.*quantised for other modules than its config\.json says"):
        make("llava", "gptq", folder)


def test_a_layer_that_the_checkpoint_does_not_quantise_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("gptq", only=lambda name: "layers.3.mlp.up_proj" not in name), "llava")
    with pytest.raises(CheckpointError, match=r"missing \(.*layers\.3\.mlp\.up_proj\.(g_idx|qweight|qzeros)"):
        make("llava", "gptq", folder)


def test_modules_left_out_by_the_config_stay_in_16_bit(make_checkpoint: MakeCheckpoint) -> None:
    attention = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
    recipe = Recipe("gptq", {"modules_in_block_to_quantize": attention}, only=lambda name: "self_attn" in name)
    folder, _ = make_checkpoint(recipe, "llava")
    quantization = make("llava", "gptq", folder).quantization
    assert quantization.quantized_linears == 32
    assert quantization.not_quantized["model.language_model.layers.0.mlp.up_proj"] == 1


def test_a_quantised_vision_tower_is_refused(make_checkpoint: MakeCheckpoint, quantized: Folders) -> None:
    folder, _ = make_checkpoint(Recipe("gptq", quantize_vision=True), "llava")
    with pytest.raises(CheckpointError, match=r"missing \(model\.(multi_modal_projector|vision_tower)"):
        make("llava", "gptq", folder)
    with pytest.raises(QuantizedModulesError, match="has no quantised linear layer in its vision tower"):
        make("llava", "gptq", quantized("gptq", "llava")[0], quantize_vision=True)


@pytest.mark.parametrize("backend", ["marlin", "exllama_v2", "no_such_kernel"])
def test_a_kernel_that_does_not_run_here_is_refused(backend: str, quantized: Folders) -> None:
    with pytest.raises(BackendError, match=rf"backend={backend} cannot run .* on cpu: .*backend=torch"):
        make("llava", "gptq", quantized("gptq", "llava")[0], backend=backend)


def test_the_kernel_can_be_chosen(quantized: Folders) -> None:
    folder, twin = quantized("gptq", "llava")
    model = make("llava", "gptq", folder, backend="torch")
    assert model.quantization.backend == "gptqmodel TorchQuantLinear"
    assert {type(module).__name__ for module in model.model.modules() if "QuantLinear" in type(module).__name__} == {
        "TorchQuantLinear"
    }
    # One layer will do: this kernel is compiled anew for each.
    name = "model.language_model.layers.0.mlp.up_proj"
    dense = make("llava", "baseline", twin).model.get_submodule(name)
    x = torch.randn(7, dense.in_features, dtype=torch.float16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(model.model.get_submodule(name)(x), dense(x)) < 2e-3


def test_together_with_token_reduction(quantized: Folders) -> None:
    folder, _ = quantized("gptq", "llava")
    model = make("llava", "pyramiddrop", folder, quantization="gptq", batch_size=2)
    assert model._facts["method"] == "pyramiddrop"
    assert model.quantization.quantized_linears == DECODER_LINEARS
    assert any(answers(model))


def with_zero_points(folder: Path, stored: Callable[[Tensor], Tensor]) -> Path:
    """Replace the zero points of a 3-bit checkpoint by those that ``stored`` makes of packed fours."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("qzeros"):
            fours = torch.full((tensor.shape[0], tensor.shape[1] // 3 * 32), 4.0)
            weights[name] = stored(packed(fours, 3)).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def less_what_gptqmodel_adds(fours: Tensor) -> Tensor:
    """The zero points that gptqmodel 5.7 itself stores in the layout "gptq"."""
    constants = (0x24924924, 0x92492492 - 2**32, 0x49249249)
    return fours - torch.tensor(constants, dtype=torch.int32).repeat(fours.shape[1] // 3)


@pytest.mark.parametrize(
    ("bits", "layout", "stored"),
    [(8, "gptq", None), (3, "gptq_v2", lambda fours: fours), (3, "gptq", less_what_gptqmodel_adds)],
)
def test_other_bit_widths(
    bits: int, layout: str, stored: Callable[[Tensor], Tensor] | None, make_checkpoint: MakeCheckpoint
) -> None:
    folder, twin = make_checkpoint(Recipe("gptq", {"checkpoint_format": layout}, bits=bits), "llava")
    model = make("llava", "gptq", folder if stored is None else with_zero_points(folder, stored))
    assert model.quantization.true_name == f"GPTQ W{bits}A16, groups of 32, symmetric"
    assert model.quantization.backend == "gptqmodel TorchQuantLinear"
    dense = make("llava", "baseline", twin)
    # Nothing is compiled, which takes half a minute for each layer.
    with torch.compiler.set_stance("force_eager"):
        for name in decoder_linears(model.model):
            weight = model.model.get_submodule(name).dequantize_weight()
            assert torch.equal(weight.T, dense.model.get_submodule(name).weight), name
        assert worst_layer(model, twin_of(dense)) < 2e-3


def test_three_bits_with_zero_points_that_gptqmodel_misreads_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    """Zero points less one, as auto-gptq stored them; gptqmodel 5.7 makes 7, 3, 4 and 5 of the threes."""
    folder, _ = make_checkpoint(Recipe("gptq", bits=3), "llava")
    with pytest.raises(LayoutError, match=r"layers\.0\..* reads zero points other than 4.*--bits 3"):
        make("llava", "gptq", folder)


def test_what_is_not_served_of_three_bits_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("gptq", {"sym": False}, bits=3), "llava")
    with pytest.raises(LayoutError, match=r"asymmetric 3-bit GPTQ weights.*gptq_v2"):
        make("llava", "gptq", folder)
    with pytest.raises(BackendError, match=r"backend=torch_fused is not served for the 3 bits.*backend=torch"):
        make("llava", "gptq", folder, backend="torch_fused")
