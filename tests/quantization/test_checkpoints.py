"""Checkpoints that are already quantised: what they say of themselves, and what is refused before anything is loaded.

These need neither gptqmodel nor optimum; the tests that do are in ``gptqmodel_format``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file

from lmms_eval_stability.model_wrappers.errors import CheckpointError
from lmms_eval_stability.model_wrappers.quantization import packages
from lmms_eval_stability.model_wrappers.quantization.errors import (
    BackendError,
    LayoutError,
    MissingPackageError,
    QuantizedModulesError,
    SchemeMismatchError,
)
from lmms_eval_stability.model_wrappers.quantization.module_names import (
    compressed_tensors_matches,
    prefix_matches,
    respelled,
    transformers_matches,
)
from lmms_eval_stability.model_wrappers.registry import METHODS, SCHEMES
from lmms_eval_stability.model_wrappers.wrapper import AcceleratedVLM
from tests.quantization.checkpoints import Recipe, edit_config, parts_outside_decoder
from tests.quantization.running import DECODER_LINEARS, answers, logits, make
from tests.tiny_models import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Folders = Callable[[str, str], tuple[Path, Path]]
MakeCheckpoint = Callable[[Recipe, str], tuple[Path, Path]]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_tensors_checkpoint_equals_its_dense_twin(kind: str, algorithm: str, quantized: Folders) -> None:
    folder, twin = quantized(f"compressed_{algorithm}", kind)
    model, dense = make(kind, algorithm, folder, batch_size=2), make(kind, "baseline", twin, batch_size=2)
    assert torch.equal(logits(model), logits(dense))
    assert answers(model) == answers(dense)
    facts = json.loads(json.dumps(model._facts))["quantization"]
    symmetry = "symmetric" if algorithm == "gptq" else "asymmetric"
    assert facts["true_name"] == f"{algorithm.upper()} W4A16, groups of 32, {symmetry}"
    assert (facts["format"], facts["scheme_from"]) == ("compressed-tensors", "recipe.yaml")
    assert facts["quantized_linears"] == DECODER_LINEARS
    assert set(facts["not_quantized"]) == {*parts_outside_decoder(kind), "lm_head"}
    assert facts["dtype"] == model._facts["dtype"] == "float16"
    assert facts["versions"].keys() == {"compressed-tensors"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compressed_tensors_checkpoint_loads_in_another_dtype(dtype: str, quantized: Folders) -> None:
    model = make("qwen2_5_vl", "gptq", quantized("compressed_gptq", "qwen2_5_vl")[0], dtype=dtype)
    assert model._facts["quantization"]["dtype"] == dtype
    assert any(answers(model, count=1))


@pytest.mark.parametrize(
    ("kind", "ignore", "line"),
    [
        ("qwen2_5_vl", ["re:visual.*", "lm_head"], "ignore: re:visual.* -> re:model.visual.*"),
        (
            "qwen2_vl",
            ["visual.blocks.0.attn.qkv", "lm_head"],
            "visual.blocks.0.attn.qkv -> model.visual.blocks.0.attn.qkv",
        ),
        ("llava", [r"re:vision_tower\..*", "re:multi_modal_projector.*"], r"-> re:model.vision_tower\..*"),
        ("llava", ["language_model.lm_head"], "ignore: language_model.lm_head -> lm_head"),
    ],
)
def test_ignore_as_published_is_read_as_it_was_meant(
    kind: str, ignore: list[str], line: str, make_checkpoint: MakeCheckpoint, logged: list[str]
) -> None:
    folder, twin = make_checkpoint(Recipe("compressed_gptq", {"ignore": ignore}), kind)
    model = make(kind, "gptq", folder)
    assert torch.equal(logits(model), logits(make(kind, "baseline", twin)))
    assert any(line in text for text in logged), logged
    assert any(line in text for text in model._facts["quantization"]["corrections"])


def test_transformers_alone_goes_wrong_on_these(make_checkpoint: MakeCheckpoint) -> None:
    """The reason for the two tests above; when this one fails, the corrections may go."""
    from transformers import AutoModelForImageTextToText

    folder, _ = make_checkpoint(Recipe("compressed_gptq", {"ignore": ["re:visual.*", "lm_head"]}), "qwen2_5_vl")
    _, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert any("visual" in name for name in report["missing_keys"])


def test_the_algorithm_is_read_from_the_recipe(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("compressed_gptq"), "qwen2_vl")
    with pytest.raises(SchemeMismatchError, match=r"qwen2_vl_awq loads awq, but .* quantised by gptq"):
        make("qwen2_vl", "awq", folder)
    (folder / "recipe.yaml").write_text("default_stage:\n  default_modifiers:\n    QuantizationModifier: {}\n")
    with pytest.raises(SchemeMismatchError, match=r"recipe\.yaml .* names neither GPTQModifier nor AWQModifier"):
        make("qwen2_vl", "gptq", folder)
    (folder / "recipe.yaml").unlink()
    for scheme in ("gptq", "awq"):
        facts = make("qwen2_vl", scheme, folder)._facts["quantization"]
        assert (facts["scheme"], facts["scheme_from"]) == (scheme, "the model name; there is no recipe.yaml")


def test_the_algorithm_is_read_from_what_the_quantize_command_writes(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("compressed_gptq", named_recipe=False), "qwen2_vl")
    (folder / "quantization_recipe.json").write_text('{"method": "gptq", "bits": 4}')
    assert make("qwen2_vl", "gptq", folder).quantization.scheme_from == "quantization_recipe.json"
    with pytest.raises(SchemeMismatchError, match=r"already quantised by gptq \(compressed-tensors\)"):
        make("qwen2_vl", "awq", folder)


def test_only_weights_of_3_4_and_8_bits_in_the_compressed_tensors_format(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("compressed_gptq"), "llava")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    int8 = {"num_bits": 8, "type": "int"}
    for changes, message in (
        ({"input_activations": int8}, "4-bit int weights and 8-bit activations"),
        ({"weights": {**group["weights"], "num_bits": 5}}, "5-bit int weights and 16-bit.*W3A16, W4A16, W8A16"),
        ({"weights": {"num_bits": 8, "type": "float"}, "input_activations": int8}, "8-bit float weights"),
    ):
        groups = {"group_0": {**group, **changes}}
        edit_config(folder, lambda c, groups=groups: c["quantization_config"].update(config_groups=groups))
        with pytest.raises(SchemeMismatchError, match=message):
            make("llava", "gptq", folder)
    naive = {"group_0": {**group, "format": "int-quantized", "weights": {**group["weights"], "num_bits": 8}}}
    edit_config(folder, lambda c: c["quantization_config"].update(config_groups=naive))
    with pytest.raises(LayoutError, match="in the format 'int-quantized'; only pack-quantized is served"):
        make("llava", "gptq", folder)
    two = {"group_0": group, "group_1": {**group, "weights": {**group["weights"], "group_size": 64}}}
    edit_config(folder, lambda c: c["quantization_config"].update(config_groups=two))
    with pytest.raises(SchemeMismatchError, match="2 different config_groups"):
        make("llava", "gptq", folder)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_a_quantised_vision_tower_is_refused_unless_asked_for(kind: str, make_checkpoint: MakeCheckpoint) -> None:
    folder, twin = make_checkpoint(Recipe("compressed_gptq", quantize_vision=True), kind)
    with pytest.raises(QuantizedModulesError, match=r"vision tower or projector .* quantize_vision=True"):
        make(kind, "gptq", folder)
    model = make(kind, "gptq", folder, quantize_vision=True)
    assert model.quantization.not_quantized == {"lm_head": 1}
    assert torch.equal(logits(model), logits(make(kind, "baseline", twin)))


def test_quantize_vision_needs_a_quantised_vision_tower(quantized: Folders) -> None:
    with pytest.raises(QuantizedModulesError, match="has no quantised linear layer in its vision tower"):
        make("llava", "gptq", quantized("compressed_gptq", "llava")[0], quantize_vision=True)


def test_a_part_of_the_decoder_may_stay_in_16_bit(make_checkpoint: MakeCheckpoint) -> None:
    recipe = Recipe("compressed_gptq", only=lambda name: "down_proj" not in name)
    model = make("qwen2_vl", "gptq", make_checkpoint(recipe, "qwen2_vl")[0])
    assert model.quantization.quantized_linears == DECODER_LINEARS - 8
    assert model.quantization.not_quantized["model.language_model.layers.3.mlp.down_proj"] == 1


def test_missing_and_unexpected_weights_are_refused_by_name(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(Recipe("compressed_gptq"), "llava")
    weights = load_file(folder / "model.safetensors")
    for stem in [name.removesuffix("_packed") for name in weights if "layers.3.mlp.up_proj.weight_packed" in name]:
        for suffix in ("_packed", "_scale", "_shape"):
            weights.pop(stem + suffix)
    weights["model.language_model.layers.2.mlp.up_proj.weight_g_idx"] = torch.zeros(64, dtype=torch.int32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r" missing \(.*3\.mlp\.up_proj\.weight.*; 1 unexp.*\(.*g_idx\)"):
        make("llava", "gptq", folder)


@pytest.mark.parametrize("layout", ["gptq", "awq", "compressed_gptq"])
def test_a_quantised_checkpoint_does_not_pass_for_a_baseline(layout: str, quantized: Folders) -> None:
    folder, _ = quantized(layout, "llava")
    scheme = layout.removeprefix("compressed_")
    for method in ("baseline", "fastv"):
        with pytest.raises(
            SchemeMismatchError, match=rf"quantised by {scheme}.*--model \.\.\._{scheme}, or add quantiz"
        ):
            make("llava", method, folder)
    other = "int8" if scheme == "awq" else "awq"
    with pytest.raises(SchemeMismatchError, match=f"llava_{other} loads {other}, but .* already quantised by {scheme}"):
        make("llava", other, folder)


@pytest.mark.parametrize("scheme", ["gptq", "awq"])
def test_a_16_bit_checkpoint_is_refused_where_a_quantised_one_is_needed(
    scheme: str, half: Callable[[str], Path]
) -> None:
    with pytest.raises(SchemeMismatchError, match=f"needs a checkpoint quantised by {scheme.upper()}.*quantize"):
        make("llava", scheme, half("llava"))


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_files_of_auto_gptq_and_autoawq_are_no_quantisation_config(
    file: str, half: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(half("llava"), tmp_path / "copy"))
    (folder / file).write_text('{"bits": 4, "group_size": 128}')
    with pytest.raises(LayoutError, match=rf"in {file}, as auto-gptq and autoawq wrote it.*config\.json"):
        make("llava", "gptq", folder)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("gptq", {"checkpoint_format": "marlin"}, "GPTQ weights in the layout 'marlin'.*reads gptq, gptq_v2"),
        ("gptq", {"is_marlin_format": True}, "'marlin'"),
        ("awq", {"version": "exllama"}, "AWQ weights in the layout 'exllama'.*reads gemm"),
    ],
)
def test_layouts_that_transformers_cannot_read_are_refused(
    layout: str, changes: dict[str, Any], message: str, make_checkpoint: MakeCheckpoint
) -> None:
    folder, _ = make_checkpoint(Recipe(layout, changes), "qwen2_vl")
    with pytest.raises(LayoutError, match=message):
        make("qwen2_vl", layout, folder)


def test_checkpoints_of_the_original_llava_code_are_refused(quantized: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized("awq", "llava")[0], tmp_path / "copy"))
    edit_config(folder, lambda config: config.update(architectures=["LlavaLlamaForCausalLM"]))
    with pytest.raises(LayoutError, match=r"original LLaVA code \(LlavaLlamaForCausalLM\).*llava-hf"):
        make("llava", "awq", folder)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "auto-round", "bits": 4}, "quantised by 'auto-round', which no model of this package loads"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "of type fp4; nf4"),
    ],
)
def test_other_schemes_are_refused_by_name(
    stated: dict[str, Any], message: str, half: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(half("llava"), tmp_path / "copy"))
    edit_config(folder, lambda config: config.update(quantization_config=stated))
    for method in ("baseline", "nf4"):
        with pytest.raises(SchemeMismatchError, match=message):
            make("llava", method, folder)


def test_the_compressed_tensors_format_has_no_kernels(quantized: Folders) -> None:
    with pytest.raises(BackendError, match=r"backend=torch_awq is a kernel .*leave backend out"):
        make("llava", "awq", quantized("compressed_awq", "llava")[0], backend="torch_awq")


@pytest.mark.parametrize(
    ("method", "layout", "package", "extra"),
    [
        ("int8", None, "bitsandbytes", "[int8]"),
        ("nf4", None, "bitsandbytes", "[int8]"),
        ("gptq", "gptq", "optimum", "[gptq]"),
        ("gptq", "gptq", "gptqmodel", "BUILD_CUDA_EXT=0 pip install --no-build-isolation 'lmms-eval-stability[gptq]'"),
        ("awq", "awq", "triton", "[awq]"),
        ("gptq", "compressed_gptq", "compressed-tensors", "[compressed]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    method: str,
    layout: str | None,
    package: str,
    extra: str,
    half: Callable[[str], Path],
    quantized: Folders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = half("llava") if layout is None else quantized(layout, "llava")[0]
    wanted = {Requirement(line).name: Requirement(line) for lines in packages.EXTRAS.values() for line in lines}

    def version(name: str) -> str:
        if name == package:
            raise packages.PackageNotFoundError(name)
        return next(iter(sorted(str(s.version) for s in wanted[name].specifier if s.operator == ">=")), "1.0")

    monkeypatch.setattr(packages, "version", version)
    with pytest.raises(MissingPackageError) as caught:
        make("llava", method, folder)
    assert f"{package} is not installed" in str(caught.value)
    assert extra in str(caught.value)


def test_a_package_outside_its_range_is_named(half: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda name: "0.43.1")
    with pytest.raises(MissingPackageError, match=r"bitsandbytes 0\.43\.1 is installed, <0\.51,>=0\.50 is needed"):
        make("llava", "int8", half("llava"))


def test_the_packages_are_those_of_pyproject() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = config["project"]["optional-dependencies"]
    assert {name: tuple(extras[name]) for name in packages.EXTRAS} == packages.EXTRAS


def test_parameters_of_schemes_do_not_collide_with_other_arguments() -> None:
    own = set(AcceleratedVLM.__init__.__code__.co_varnames)
    for scheme in SCHEMES:
        assert not set(METHODS[scheme].parameters) & own
        for name, method in METHODS.items():
            if name not in SCHEMES:
                assert not set(METHODS[scheme].parameters) & set(method.parameters), (scheme, name)


@pytest.mark.parametrize(
    ("entry", "matches", "expected"),
    [
        ("visual", transformers_matches, "model.visual"),
        ("model.visual", transformers_matches, "model.visual"),
        (".*visual", transformers_matches, ".*visual"),
        ("lm_head", transformers_matches, "lm_head"),
        ("nowhere", transformers_matches, "nowhere"),
        ("model.layers", prefix_matches, "model.language_model.layers"),
        ("language_model.model.layers", prefix_matches, "model.language_model.layers"),
        ("model.language_model.layers", prefix_matches, "model.language_model.layers"),
        ("Linear", compressed_tensors_matches, "Linear"),
        ("re:.*visual.*", compressed_tensors_matches, "re:.*visual.*"),
        (r"re:model\.layers\.0\..*", compressed_tensors_matches, r"re:model.language_model.layers\.0\..*"),
        ("visual.blocks.0.attn.qkv", compressed_tensors_matches, "model.visual.blocks.0.attn.qkv"),
    ],
)
def test_names_are_respelled_only_where_they_mean_nothing(entry: str, matches: Any, expected: str) -> None:
    linears = ("model.visual.blocks.0.attn.qkv", "model.language_model.layers.0.mlp.up_proj", "lm_head")
    assert respelled(entry, linears, matches) == expected
