from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from lmms_eval_stability.overlap import DivergedSet, overlap_table, shared_divergence
from tests.study.statistics.builders import pairs

#: 10 samples, the baseline has 8 right (not documents 3 and 7)
BASE = [1, 1, 1, 0, 1, 1, 1, 0, 1, 1]
FASTV = pairs(BASE, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])  # breaks 0 1 2 4, mends 7
HIRED = pairs(BASE, [0, 0, 1, 1, 1, 1, 1, 0, 1, 1])  # breaks 0 1, mends 3
INT8 = pairs(BASE, BASE)
SETS = {name: DivergedSet.negative(p) for name, p in {"fastv": FASTV, "hired": HIRED, "int8": INT8}.items()}


def row(table: pd.DataFrame, method: str, other: str) -> dict[str, float]:
    return table[(table["method"] == method) & (table["other"] == other)].iloc[0].to_dict()


def test_by_hand() -> None:
    table = overlap_table(SETS)
    assert len(table) == 6
    found = row(table, "fastv", "hired")
    assert [found[name] for name in ("n", "n_method", "n_other", "both")] == [8, 4, 2, 2]
    assert found["containment"] == 0.5
    assert found["jaccard"] == 0.5
    assert found["expected"] == 1.0  # 4 * 2 / 8
    assert found["lift"] == 2.0
    assert row(table, "hired", "fastv")["containment"] == 1.0
    nothing = row(table, "int8", "fastv")
    assert math.isnan(nothing["containment"])
    assert math.isnan(nothing["lift"])
    assert (nothing["jaccard"], nothing["expected"]) == (0.0, 0.0)


def test_under_all_and_under_any() -> None:
    two = shared_divergence({name: SETS[name] for name in ("fastv", "hired")})
    assert (two.methods, two.n, two.left_out) == (2, 8, 0)
    assert (two.every, two.any) == ((0, 1), (0, 1, 2, 4))
    assert two.expected_every == 1.0
    assert two.counts == (4, 2, 2)
    three = shared_divergence(SETS)
    assert (three.every, three.expected_every, three.counts) == ((), 0.0, (4, 2, 2, 0))


def test_of_changed_predictions_all_samples_are_at_risk() -> None:
    changed = {name: DivergedSet.changed(p) for name, p in {"fastv": FASTV, "hired": HIRED}.items()}
    found = row(overlap_table(changed), "fastv", "hired")
    assert [found[name] for name in ("n", "n_method", "n_other", "both", "expected")] == [10, 5, 3, 2, 1.5]


def test_documents_that_one_method_lacks_are_left_out_and_counted() -> None:
    part = pairs([1, 1, 1], [0, 1, 0], docs=[1, 2, 99])
    sets = {"fastv": SETS["fastv"], "part": DivergedSet.negative(part)}
    found = row(overlap_table(sets), "fastv", "part")
    assert [found[name] for name in ("n", "n_method", "n_other", "both")] == [2, 2, 1, 1]
    shared = shared_divergence(sets)
    assert (shared.n, shared.left_out, shared.every) == (2, 9, (1,))


def test_another_baseline_is_refused() -> None:
    other = DivergedSet.negative(pairs([1, 0, 1], [0, 0, 1]))
    with pytest.raises(ValueError, match="fastv and b were not compared with one baseline: doc 1"):
        overlap_table({"fastv": SETS["fastv"], "b": other})
    with pytest.raises(ValueError, match="no method"):
        shared_divergence({})


def test_nothing_at_risk_is_nan() -> None:
    none = {name: DivergedSet.negative(pairs([0, 0], [0, 1])) for name in "ab"}
    found = row(overlap_table(none), "a", "b")
    assert found["n"] == 0
    assert all(math.isnan(found[name]) for name in ("containment", "jaccard", "expected", "lift"))
    assert math.isnan(shared_divergence(none).expected_every)
    apart = {"a": DivergedSet.negative(pairs([1], [0], docs=[1])), "b": DivergedSet.negative(pairs([1], [0], docs=[2]))}
    assert shared_divergence(apart).n == 0
    assert len(overlap_table({"a": none["a"]})) == 0


def test_expected_is_the_mean_of_random_sets() -> None:
    rng = np.random.default_rng(0)
    docs, risk = np.arange(200), np.ones(200, bool)

    def drawn(size: int) -> DivergedSet:
        return DivergedSet(docs, risk, np.isin(docs, rng.choice(200, size, replace=False)))

    rows = [row(overlap_table({"a": drawn(60), "b": drawn(30)}), "a", "b") for _ in range(200)]
    assert rows[0]["expected"] == pytest.approx(hypergeom(200, 60, 30).mean())
    assert np.mean([found["lift"] for found in rows]) == pytest.approx(1, abs=0.05)


FLIPS = st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(FLIPS)
def test_bounds_and_symmetry(rows: list[tuple[bool, bool, bool, bool]]) -> None:
    base, *runs = (list(column) for column in zip(*rows, strict=True))
    sets = {str(i): DivergedSet.negative(pairs(base, run)) for i, run in enumerate(runs)}
    table = overlap_table(sets)
    for found in table.to_dict("records"):
        back = row(table, found["other"], found["method"])
        for name in ("both", "jaccard", "expected", "lift"):
            assert found[name] == pytest.approx(back[name], nan_ok=True)
        assert found["both"] <= min(found["n_method"], found["n_other"]) <= found["n"]
        if found["n_method"]:
            assert found["jaccard"] <= found["containment"] <= 1
    shared = shared_divergence(sets)
    assert set(shared.every) <= set(shared.any)
    assert sum(shared.counts) == shared.n == sum(base)
    assert len(shared.every) == shared.counts[-1] <= table["both"].min()
    assert len(shared.any) == shared.n - shared.counts[0]
