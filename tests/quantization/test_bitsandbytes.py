"""int8 and nf4: the arithmetic, what is left in 16 bit, and together with token reduction."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmms_eval_stability.model_wrappers.errors import InvalidArgumentError, UnknownArgumentError
from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest
from lmms_eval_stability.model_wrappers.quantization.errors import (
    BackendError,
    InvalidSchemeArgumentError,
    QuantizedModulesError,
    SchemeMismatchError,
)
from tests.quantization.checkpoints import edit_config, parts_outside_decoder
from tests.quantization.running import DECODER_LINEARS, answers, logits, make, relative_error, worst_layer
from tests.tiny_models import KINDS

Folder = Callable[[str], Path]


def int8_reference(threshold: float) -> Callable[[str, nn.Module], Callable[[Tensor], Tensor]]:
    """LLM.int8() written out (Dettmers et al. 2022, equation 8): what the layer must compute.

    As in bitsandbytes, a token's scale leaves out its outliers, but not the rest of the columns they stand in.
    """

    def layer(_: str, module: Any) -> Callable[[Tensor], Tensor]:
        codes = (module.weight.CB if module.state.CB is None else module.state.CB).float()
        scales = (module.weight.SCB if module.state.SCB is None else module.state.SCB).float()  # one per output

        def multiply(x: Tensor) -> Tensor:
            rows = x.float().reshape(-1, x.shape[-1])
            large = (rows.abs() >= threshold) & (threshold > 0)
            outlier = large.any(0)
            token = rows.masked_fill(large, 0).abs().amax(1, keepdim=True).clamp(min=1e-8)
            inner = (rows * 127 / token).round().masked_fill(outlier, 0)
            product = inner @ codes.T * (token * scales / 127**2)
            product += rows[:, outlier] @ (codes[:, outlier] * scales[:, None] / 127).T
            if module.bias is not None:
                product += module.bias.float()
            return product.reshape(*x.shape[:-1], -1)

        return multiply

    return layer


def nf4_reference(_: str, module: Any) -> Callable[[Tensor], Tensor]:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    return lambda x: nn.functional.linear(x.float(), weight, None if module.bias is None else module.bias.float())


@pytest.mark.parametrize("kind", KINDS)
def test_int8_computes_what_the_paper_says(kind: str, half: Folder) -> None:
    for threshold in (6.0, 1.0, 0.0):  # few outlier columns, all, none
        model = make(kind, "int8", half(kind), threshold=threshold)
        assert model.model.dtype == torch.float16  # the checkpoint's
        assert worst_layer(model, int8_reference(threshold)) < 2e-3
        every_column_in_16_bit = 1e-8  # what W8A16 would be
        assert (worst_layer(model, int8_reference(every_column_in_16_bit)) > 2e-3) == (threshold != 1.0)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nf4_equals_its_dequantised_twin(kind: str, double_quant: bool, half: Folder) -> None:
    model = make(kind, "nf4", half(kind), double_quant=double_quant)
    assert worst_layer(model, nf4_reference) < 2e-3
    assert model.quantization.parameters["double_quant"] == double_quant
    assert bool(model.model.model.language_model.layers[0].mlp.up_proj.weight.quant_state.nested) == double_quant
    layer = model.model.model.language_model.layers[0].mlp.up_proj
    assert layer.compute_dtype == torch.float16  # bitsandbytes' default is float32
    assert layer.weight.quant_type == "nf4"


@pytest.mark.parametrize("method", ["int8", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_language_model_is_quantised_and_the_facts_say_so(kind: str, method: str, half: Folder) -> None:
    model = make(kind, method, half(kind), batch_size=2)
    facts = json.loads(json.dumps(model._facts))["quantization"]
    assert (facts["scheme"], facts["quantized_linears"], facts["dtype"]) == (method, DECODER_LINEARS, "float16")
    assert set(facts["not_quantized"]) == {*parts_outside_decoder(kind), "lm_head"}
    assert type(model.model.lm_head) is nn.Linear
    vision = model.family.vision_tower(model.model)
    left = {type(module) for module in vision.modules() if isinstance(module, nn.Linear)}
    assert all(cls.__module__.startswith("torch.") for cls in left)
    assert facts["versions"].keys() == {"bitsandbytes"}
    assert ("W8A8 with 16-bit outlier columns" in facts["true_name"]) == (method == "int8")
    assert model._facts["method_args"].items() <= facts["parameters"].items()
    texts = answers(model)
    assert len(texts) == 4
    assert any(texts)
    assert answers(model) == texts  # greedy, so a second run says the same


def test_quantising_changes_the_model_a_little(half: Folder) -> None:
    baseline = logits(make("llava", "baseline", half("llava")))
    int8 = relative_error(logits(make("llava", "int8", half("llava"))), baseline)
    nf4 = relative_error(logits(make("llava", "nf4", half("llava"))), baseline)
    assert 1e-3 < int8 < nf4 < 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_base_dtype_is_the_one_asked_for(dtype: str, half: Folder) -> None:
    for method in ("int8", "nf4"):
        model = make("qwen2_5_vl", method, half("qwen2_5_vl"), dtype=dtype)
        assert model._facts["quantization"]["dtype"] == model._facts["dtype"] == dtype
        assert model.model.model.visual.blocks[0].attn.qkv.weight.dtype == getattr(torch, dtype)
        assert any(answers(model, count=1))


def test_outlier_columns_are_those_of_the_whole_batch(half: Folder) -> None:
    model = make("llava", "int8", half("llava"))
    layer = model.model.model.language_model.layers[0].mlp.up_proj
    x = torch.randn(1, 64, dtype=torch.float16, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    neighbour = x.clone()
    neighbour[0, 5] = 600
    with torch.no_grad():
        alone, together = layer(x), layer(torch.cat([x, neighbour]))
        without = make("llava", "int8", half("llava"), threshold=0).model.model.language_model.layers[0].mlp.up_proj
        crushed = without(neighbour)
    assert not torch.equal(alone[0], together[0])  # what docs/methods/int8.md warns of
    dense = make("llava", "baseline", half("llava")).model.model.language_model.layers[0].mlp.up_proj
    with torch.no_grad():
        expected = dense(neighbour) - 600 * dense.weight[:, 5]  # what the outlier must not drown
        assert relative_error(together[1] - 600 * dense.weight[:, 5], expected[0]) < 0.6
        assert relative_error(crushed[0] - 600 * dense.weight[:, 5], expected[0]) > 0.9


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_quantize_vision_quantises_everything_but_the_output_layer(method: str, half: Folder) -> None:
    for kind in ("llava", "qwen2_vl"):
        facts = make(kind, method, half(kind), quantize_vision=True)._facts["quantization"]
        assert facts["not_quantized"] == {"lm_head": 1}
        assert facts["quantized_linears"] > DECODER_LINEARS


def test_names_that_transformers_ignores_would_be_noticed(half: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The skip list that worked with transformers 4 skips nothing now; so does a list without the output layer."""
    short = ("vision_tower", "multi_modal_projector", "visual", "lm_head")
    monkeypatch.setattr(LoadRequest, "in_16_bit", property(lambda self: short))
    with pytest.raises(QuantizedModulesError, match=r"20 linear layers of the vision tower .*quantize_vision"):
        make("llava", "int8", half("llava"))
    vision_only = ("model.vision_tower", "model.multi_modal_projector")
    monkeypatch.setattr(LoadRequest, "in_16_bit", property(lambda self: vision_only))
    with pytest.raises(QuantizedModulesError, match=r"output layer \(lm_head\)"):
        make("llava", "int8", half("llava"))
    monkeypatch.setattr(LoadRequest, "in_16_bit", property(lambda self: ("model", "lm_head")))
    with pytest.raises(QuantizedModulesError, match="no linear layer of the language model"):
        make("llava", "int8", half("llava"))


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_a_model_saved_quantised_loads_and_answers_the_same(method: str, half: Folder, tmp_path: Path) -> None:
    model = make("qwen2_vl", method, half("qwen2_vl"))
    model.model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    again = make("qwen2_vl", method, tmp_path)
    assert answers(again) == answers(model)
    assert again._facts["quantization"]["format"] == "bitsandbytes"
    with pytest.raises(SchemeMismatchError, match=f"quantised by {method} .*add quantization={method}"):
        make("qwen2_vl", "baseline", tmp_path)
    assert make("qwen2_vl", "fastv", tmp_path, quantization=method).quantization.scheme == method
    other = {"threshold": 5.0} if method == "int8" else {"double_quant": True}
    with pytest.raises(SchemeMismatchError, match=r"write (threshold=6\.0|double_quant=False)"):
        make("qwen2_vl", method, tmp_path, **other)


def test_the_skip_list_of_a_saved_model_is_read_as_it_was_meant(
    half: Folder, tmp_path: Path, logged: list[str]
) -> None:
    model = make("qwen2_vl", "int8", half("qwen2_vl"))
    model.model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    edit_config(
        tmp_path, lambda config: config["quantization_config"].update(llm_int8_skip_modules=["visual", "lm_head"])
    )
    assert answers(make("qwen2_vl", "int8", tmp_path)) == answers(model)
    assert any("llm_int8_skip_modules: visual -> model.visual" in line for line in logged)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("fastv", {"k": 2, "r": 0.5}),
        ("pyramiddrop", {}),
        ("sparsevlm", {}),
        ("visionzip", {"dominant": 160, "contextual": 32}),
        ("hired", {}),
        ("lofi", {"rank": 8}),
        ("random", {}),
        ("random_inside", {}),
    ],
)
def test_token_reduction_and_quantisation_together(method: str, arguments: dict[str, Any], half: Folder) -> None:
    for scheme in ("int8", "nf4"):
        model = make("llava", method, half("llava"), quantization=scheme, batch_size=2, **arguments)
        assert model._facts["quantization"]["quantized_linears"] == DECODER_LINEARS
        assert any(answers(model))  # an error of its own if nothing was pruned


def test_parameters_of_both_are_given_by_name(half: Folder) -> None:
    model = make("llava", "fastv", half("llava"), quantization="int8", threshold=4, k=2, r=0.25)
    assert (model.method.k, model.method.r) == (2, 0.25)
    assert model._facts["method_args"] == {"k": 2, "r": 0.25}
    assert model._facts["quantization"]["parameters"] == {"threshold": 4}
    untouched = make("llava", "fastv", half("llava"), quantization="int8", r=0)
    assert torch.equal(logits(untouched), logits(make("llava", "int8", half("llava"))))


def test_arguments_that_contradict_each_other_are_refused(half: Folder) -> None:
    folder = half("llava")
    with pytest.raises(InvalidSchemeArgumentError, match="quantization=int9: choose one of int8, nf4, gptq, awq"):
        make("llava", "fastv", folder, quantization="int9")
    with pytest.raises(InvalidSchemeArgumentError, match="llava_int8 is quantised by int8, but quantization=nf4"):
        make("llava", "int8", folder, quantization="nf4")
    with pytest.raises(UnknownArgumentError, match=r"does not take threshold; .*double_quant"):
        make("llava", "nf4", folder, threshold=5.0)
    with pytest.raises(UnknownArgumentError, match="does not take threshold"):
        make("llava", "baseline", folder, threshold=5.0)
    for threshold in (-1, "six", True, float("nan")):
        with pytest.raises(InvalidSchemeArgumentError, match="threshold"):
            make("llava", "int8", folder, threshold=threshold)
    with pytest.raises(InvalidSchemeArgumentError, match="double_quant"):
        make("llava", "nf4", folder, double_quant="no")
    with pytest.raises(InvalidArgumentError, match="quantize_vision=no"):
        make("llava", "int8", folder, quantize_vision="no")
    with pytest.raises(InvalidArgumentError, match="quantize_vision=True needs a scheme"):
        make("llava", "baseline", folder, quantize_vision=True)


def test_a_device_that_bitsandbytes_does_not_know_is_refused(half: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(BackendError, match="does not run on cpu; it runs on cuda"):
        make("llava", "int8", half("llava"))


def test_lmms_eval_runs_token_reduction_and_quantisation_together(tmp_path: Path) -> None:
    arguments = "pretrained=demo,k=3,r=0.5,quantization=int8,threshold=6.0,batch_size=4"
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_fastv", "--model_args", arguments]
    command += ["--tasks", "shapes_vqa", "--limit", "12", "--log_samples", "--output_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    (log,) = tmp_path.glob("*/*_samples_shapes_vqa.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12, done.stderr[-3000:]
    counts = [line["token_counts"][0] for line in lines]
    (facts,) = [count["run"] for count in counts if count.get("run")]
    assert (facts["method"], facts["method_args"]) == ("fastv", {"k": 3, "r": 0.5})
    assert facts["quantization"]["parameters"] == {"threshold": 6.0}
    left = {"model.vision_tower", "model.multi_modal_projector", "lm_head"}
    assert set(facts["quantization"]["not_quantized"]) == left
    assert {tuple(count["visual_tokens"]) for count in counts} == {(144, 72)}
    assert sum(line["exact_match"] for line in lines) >= 6  # a trained model survives it
