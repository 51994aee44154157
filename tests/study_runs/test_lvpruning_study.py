"""`configs/lvpruning.yaml`: the controls drop as many tokens as the shipped pruner, at its layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmms_eval_stability.model_wrappers.token_reduction import LVPruning
from lmms_eval_stability.model_wrappers.token_reduction.inside_llm import InsideLLM
from lmms_eval_stability.model_wrappers.token_reduction.show import make_method
from lmms_eval_stability.study import load_study, plan_study

STUDY = load_study(Path(__file__).parents[2] / "configs" / "lvpruning.yaml")
TOKENS, DEPTH = 144, 8  # of the embedded model


def stages(label: str) -> list[tuple[int, int]]:
    """(layer, visual tokens left) of every stage."""
    run = STUDY.methods[label]
    method = make_method(run.method, run.model_args)
    assert isinstance(method, InsideLLM)
    return [(stage.layer, method.keep_count(i, TOKENS, TOKENS)) for i, stage in enumerate(method.stages(DEPTH))]


def test_it_is_a_plan_over_all_questions() -> None:
    plan = plan_study(STUDY)
    assert {cell.samples for cell in plan.cells} == {2000}
    assert len(plan.cells) == len(STUDY.methods) + 2
    assert STUDY.reruns


@pytest.mark.parametrize("label", ["random_inside", "random_inside_seed1", "spread", "pyramiddrop"])
def test_controls_keep_what_the_pruner_keeps(label: str) -> None:
    assert stages(label) == stages("lvpruning") == [(2, 72), (3, 36), (4, 14)]


def test_random_tokens_before_the_decoder_are_as_many_in_the_mean_layer() -> None:
    left, counts = dict(stages("lvpruning")), [TOKENS]
    for layer in range(1, DEPTH):
        counts.append(left.get(layer, counts[-1]))
    assert 0 <= TOKENS * STUDY.methods["random"].model_args["tokens"] / 576 - sum(counts) / DEPTH < 1


def test_fastv_has_as_few_tokens_by_the_middle_layer() -> None:
    assert LVPruning().card.design.layers[-1] == DEPTH / 2
    assert stages("fastv") == stages("random_inside_fastv") == [stages("lvpruning")[-1]]
