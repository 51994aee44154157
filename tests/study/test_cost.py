"""Theoretical cost of prompts: the published numbers, the formula spelled out, and what hostile logs do to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import isnan
from typing import Any

import pytest
from click.testing import Result

from lmms_eval_stability.cost import (
    NO_COST,
    Cost,
    Geometry,
    TokenTotals,
    describe,
    layer_inputs,
    mean_cost,
    prefill_cost,
)

from .conftest import WriteRun, sample

Compare = Callable[..., Result]
LLAVA_7B = Geometry(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128)
LLAVA_7B_C2 = replace(LLAVA_7B, mlp_matrices=2)
QWEN_7B = Geometry(layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128)

#: Setting -> layers at which tokens are counted, tokens entering them, mean over layers, ratios without and with 60
#: text tokens: of the multiply-adds, and of the cache.
PUBLISHED: dict[str, tuple[list[int], list[int], float, tuple[float, float], tuple[float, float] | None]] = {
    "FastV k=3 r=0.5": ([0, 3], [576, 288], 315, (0.5417, 0.584), (0.547, 0.590)),
    "VisionZip 192": ([0, 0], [576, 192], 192, (0.328, 0.390), (0.333, 0.396)),
    "HiRED 20%": ([0, 0], [576, 115], 115, (0.196, 0.270), (0.200, 0.275)),
    "PyramidDrop": ([0, 8, 16, 24], [576, 288, 144, 72], 270, (0.466, 0.515), (0.469, 0.519)),
    "SparseVLM 192, counted at outputs": ([0, 2, 6, 15], [576, 309, 204, 113], 192.03, (0.329, 0.391), None),
    "SparseVLM 192": ([0, 3, 7, 16], [576, 309, 204, 113], 206.5, (0.355, 0.414), (0.359, 0.419)),
}


def digits(published: float) -> int:
    return len(str(published).partition(".")[2])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ratios_of_llava_1_5(name: str) -> None:
    stages, tokens, mean, flops, cache = PUBLISHED[name]
    assert sum(layer_inputs(32, stages, tokens)) / 32 == pytest.approx(mean, abs=0.02)
    for text, expected in zip((0, 60), flops, strict=True):
        assert prefill_cost(LLAVA_7B, stages, tokens, text).flops_ratio == pytest.approx(
            expected, abs=0.51 * 10 ** -max(3, digits(expected))
        )
    for text, expected in zip((0, 60), cache or (), strict=False):
        assert prefill_cost(LLAVA_7B, stages, tokens, text).kv_ratio == pytest.approx(expected, abs=0.00051)


def test_fastv_as_its_paper_counts() -> None:
    ratios = [prefill_cost(LLAVA_7B_C2, [0, 3], [576, 288], text).flops_ratio for text in (0, 60)]
    assert ratios == pytest.approx([0.5403, 0.5824], abs=0.00005)


@pytest.mark.parametrize(
    ("stages", "tokens", "ratio"),
    [
        ([0, 3], [2928, 1464], 0.5315),
        ([0, 8, 16, 24], [2928, 1464, 732, 366], 0.464),
        ([0, 0], [2928, 640], 0.215),
        ([0, 0], [2928, 576], 0.195),
    ],
)
def test_published_ratios_of_llava_next(stages: list[int], tokens: list[int], ratio: float) -> None:
    found = prefill_cost(LLAVA_7B, stages, tokens, 60).flops_ratio
    assert found == pytest.approx(ratio, abs=0.51 * 10 ** -max(3, digits(ratio)))


def test_cache_of_llava_1_5() -> None:
    assert prefill_cost(LLAVA_7B, [0], [576], 0).kv_bytes == 288 * 2**20
    assert LLAVA_7B.kv_bytes(1) == 16 * 2**10


def test_the_formula_of_the_papers() -> None:
    n, d, m = 576 + 60, 4096, 11008
    assert prefill_cost(LLAVA_7B, [0], [576], 60).flops == 32 * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m)


def test_grouped_keys_cost_less() -> None:
    n, d, m = 1000, 3584, 18944
    projections = 2 * n * d * d + 2 * n * d * 4 * 128  # queries and output; keys and values of 4 heads
    cost = prefill_cost(QWEN_7B, [0], [n], 0)
    assert cost.flops == 28 * (projections + 2 * n**2 * d + 3 * n * d * m)
    assert cost.kv_bytes == 28 * n * 2 * 4 * 128 * 2


def test_layer_inputs() -> None:
    assert layer_inputs(4, [0, 2], [576, 288]) == [576, 576, 288, 288]
    assert layer_inputs(2, [0, 0], [576, 192]) == [192, 192]
    assert layer_inputs(2, [0], [0]) == [0, 0]
    for stages, tokens in (([0, 4], [9, 5]), ([1], [9]), ([0, 2, 1], [9, 5, 3]), ([0], [9, 5]), ([], []), ([0], [-1])):
        with pytest.raises(ValueError, match="visual tokens at layers"):
            layer_inputs(4, stages, tokens)


def measured(stages: Sequence[Any], tokens: Sequence[Any], length: Any) -> dict[str, Any]:
    return {"visual_tokens": list(tokens), "visual_token_layers": list(stages), "input_tokens": length}


def test_totals_of_a_log_are_the_mean_over_its_prompts() -> None:
    prompts = [([0, 3], [576, 288], 60), ([0, 3], [0, 0], 31), ([0, 1, 2], [300, 200, 7], 5), ([0, 0], [576, 64], 60)]
    totals = TokenTotals()
    for stages, tokens, text in [*prompts, prompts[0]]:
        totals.add(measured(stages, tokens, tokens[0] + text))
    each = [prefill_cost(QWEN_7B, *prompt) for prompt in [*prompts, prompts[0]]]
    cost = totals.mean_cost(QWEN_7B)
    assert cost == pytest.approx(mean_cost(each))
    assert cost.flops_ratio == pytest.approx(sum(one.flops for one in each) / sum(one.unpruned_flops for one in each))
    assert totals.prompts == 5


@pytest.mark.parametrize(
    "line",
    [
        {},
        measured([0, 3], [576], 600),
        measured([1, 3], [576, 288], 600),
        measured([3, 0], [576, 288], 600),
        measured([], [], 600),
        measured([0], [576], None),
        measured([0], [576], 500),
        measured([0], [-1], 500),
        measured([0], [2**80], 2**81),
        measured([0], ["576"], 600),
        measured([0], [[576]], 600),
        measured([0], [576.5], 600),
        measured([0], [True], 600),
        {"visual_tokens": 576, "visual_token_layers": 0, "input_tokens": 600},
    ],
)
def test_lines_that_count_no_tokens_are_left_out(line: dict[str, Any]) -> None:
    totals = TokenTotals()
    totals.add(line)
    assert totals == TokenTotals()
    assert isnan(totals.mean_cost(LLAVA_7B).flops)


def test_layers_that_the_model_does_not_have_give_no_cost() -> None:
    totals = TokenTotals()
    totals.add(measured([0, 32], [576, 288], 600))
    assert isnan(totals.mean_cost(LLAVA_7B).flops)
    assert totals.mean_cost(None) is NO_COST


@pytest.mark.parametrize("wrong", [{"layers": "32"}, {"layers": None}, {"hidden": -1}, {"heads": 1.5}])
def test_facts_that_are_no_geometry(wrong: dict[str, Any]) -> None:
    assert Geometry.from_facts({"geometry": asdict(LLAVA_7B)}) == LLAVA_7B
    assert Geometry.from_facts({"geometry": {**asdict(LLAVA_7B), **wrong}}) is None
    assert Geometry.from_facts({"geometry": 7}) is None
    assert Geometry.from_facts({}) is None


def test_the_sentence() -> None:
    cost = prefill_cost(LLAVA_7B, [0, 3], [576, 288], 60)
    assert describe(cost) == "prefill 2.47 TFLOPs (×0.584 of unpruned), KV cache 188 MiB (×0.590)"
    assert describe(Cost(5e4, 2**20, 1e5, 2**20)).startswith("prefill 50 kFLOPs (×0.500")
    assert describe(Cost(2e15, 2**20, 2e15, 2**20)).startswith("prefill 2 PFLOPs (×1.000")
    assert describe(Cost(0, 0, 0, 0)).startswith("prefill 0 FLOPs (×nan")


def logged(answers: str, stages: list[int], tokens: list[int], geometry: dict[str, int] | None) -> list[dict[str, Any]]:
    rows = []
    for i, answer in enumerate(answers.split()):
        count: dict[str, Any] = measured(stages, tokens, tokens[0] + 60)
        if i == 0 and geometry is not None:
            count["run"] = {"geometry": geometry}
        rows.append(sample(i, answer, 1.0, token_counts=[count]))
    return rows


def test_compare_shows_the_cost_of_every_run(write_run: WriteRun, run_compare: Compare) -> None:
    sizes = asdict(LLAVA_7B)
    base = write_run("base", {task: logged("a b c", [0], [576], sizes) for task in ("gqa", "vqav2")})
    tasks = {"gqa": logged("a b d", [0, 3], [576, 288], sizes), "vqav2": logged("a b c", [0, 0], [576, 192], sizes)}
    fastv = write_run("fastv", tasks, model="llava_fastv")
    gqa, vqav2, average = json.loads(run_compare(base, fastv, "--format", "json").stdout)["comparisons"]
    assert gqa["prefill_flops_ratio"] == pytest.approx(0.584, abs=0.0005)
    assert vqav2["kv_bytes_ratio"] == pytest.approx(0.396, abs=0.0005)
    assert gqa["prefill_flops"] == prefill_cost(LLAVA_7B, [0, 3], [576, 288], 60).flops
    assert average["kv_bytes"] == (gqa["kv_bytes"] + vqav2["kv_bytes"]) / 2
    sentence = (
        "theoretical cost of a prompt: prefill 2.47 TFLOPs (×0.584 of unpruned), KV cache 188 MiB (×0.590) (gqa); "
    )
    assert sentence in run_compare(base, fastv).stdout
    assert sentence in run_compare(base, fastv, "--format", "markdown").stdout
    assert "confounders: none" in run_compare(base, fastv).stdout


def test_logs_without_counts_or_sizes_have_no_cost(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"gqa": logged("a b c", [0], [576], None)})
    fastv = write_run("fastv", {"gqa": logged("a b d", [0, 3], [576, 288], None)}, model="llava_fastv")
    (record,) = json.loads(run_compare(base, fastv, "--format", "json").stdout)["comparisons"]
    assert record["prefill_flops"] is record["kv_bytes_ratio"] is None
    assert "theoretical cost" not in run_compare(base, fastv).stdout
