"""`configs/frontier.yaml`: every method over budgets, bit widths, and both together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lmms_eval_stability.model_wrappers.registry import METHODS, SCHEMES
from lmms_eval_stability.study.schema import load_study

FRONTIER = Path(__file__).parents[2] / "configs" / "frontier.yaml"


def test_every_method_has_several_budgets_and_schemes_stand_alone_and_beside_them() -> None:
    study = load_study(FRONTIER)
    runs = list(study.methods.values())
    alone = Counter(run.method for run in runs if "quantization" not in run.model_args)
    reductions = {name for name, method in METHODS.items() if method.path.startswith("token_reduction.")}
    # a LLaVA-1.5 has images of one size: nothing to downsample; GPTQ and AWQ have 4 and 3 bits
    assert {name for name, count in alone.items() if count > 1} == reductions - {"downsample"} | {"gptq", "awq"}
    assert set(SCHEMES) <= alone.keys()
    beside = {str(run.model_args["quantization"]) for run in runs if "quantization" in run.model_args}
    assert {"int8", "nf4", "gptq"} <= beside
    assert study.reruns
    assert study.compare.html


def test_three_bits_stand_wherever_four_bits_of_gptq_do() -> None:
    methods = load_study(FRONTIER).methods
    four = [label for label, run in methods.items() if (run.pretrained or {}).get("demo") == "demo-gptq"]
    assert {methods[label].method for label in four} == {"gptq", "fastv", "hired"}
    for label in four:
        three = methods[f"{label}_3bit"]
        assert (three.method, three.model_args) == (methods[label].method, methods[label].model_args)
        assert three.pretrained == {"demo": "demo-gptq-3bit"}


def test_methods_before_the_language_model_keep_equal_numbers_of_tokens() -> None:
    study = load_study(FRONTIER)
    kept: dict[str, set[int]] = {}
    for label, run in study.methods.items():
        budget = {name: value for name, value in run.model_args.items() if isinstance(value, (int, float))}
        if run.method in ("lofi", "random"):
            share = budget["tokens"] / 576
        elif run.method == "visionzip":
            share = (budget["dominant"] + budget["contextual"]) / 576
        elif run.method == "hired":
            share = budget["budget"]
        else:
            continue
        kept.setdefault(label.split("_")[1], set()).add(int(144 * share + 1e-9))
    assert kept == {"320": {80}, "192": {48}, "128": {32}, "64": {16}}
