"""From a study to processes: keys, shards, what is missing, and what the plan says of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lmms_eval_stability.study import Plan
from lmms_eval_stability.study import plan as plan_module
from lmms_eval_stability.study.estimate import duration, estimate
from lmms_eval_stability.study.jobs import states, work_left
from lmms_eval_stability.study.overview import print_plan
from lmms_eval_stability.study.store import Finished, Span, chosen, missing

from .conftest import SMALL, Bench


def shard(key: str, first: int, stop: int, total: int = 20, seconds: float = 5.0) -> Finished:
    return Finished(key, Span(first, stop), stop, total, seconds, 1.0, "cell", "host", {})


def overview(plan: Plan, finished: Mapping[str, Sequence[Finished]], workers: int = 1) -> str:
    output = io.StringIO()
    print_plan(Console(file=output), plan, finished, workers)
    return output.getvalue()


@pytest.mark.parametrize(
    ("change", "new_keys"),
    [
        (("k: 3", "k: 2"), {"fastv"}),
        (("pretrained: demo", "pretrained: other"), {"baseline", "baseline_again_1", "fastv"}),
        (("engine:", "lmms_eval: {batch_size: 4}\nengine:"), {"baseline", "baseline_again_1", "fastv"}),
        (
            ("engine:", "lmms_eval: {gen_kwargs: {max_new_tokens: 4}}\nengine:"),
            {"baseline", "baseline_again_1", "fastv"},
        ),
        (("engine:", "limit: 5\nengine:"), {"baseline", "baseline_again_1", "fastv"}),
        (("  fastv:", "  renamed:"), set()),
        (("shard: 8", "shard: 5, workers: 3, retries: 4"), set()),
        (("name: small", "name: other"), set()),
    ],
)
def test_a_key_changes_with_what_can_change_an_answer_and_with_nothing_else(
    change: tuple[str, str], new_keys: set[str], bench: Bench
) -> None:
    before, after = bench.plan(), bench.plan(SMALL.replace(*change))
    changed = {a.run for a, b in zip(before.cells, after.cells, strict=True) if a.key != b.key}
    assert changed == new_keys
    assert len({cell.key for cell in after.cells}) == 3  # a re-run is other work than the run


def test_a_key_holds_the_versions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench.plan().cells[0].key
    for package in plan_module.PACKAGES:
        with monkeypatch.context() as patch:
            patch.setattr(plan_module, "version", lambda name, changed=package: "9" if name == changed else "1")
            one = bench.plan().cells[0].key
            patch.setattr(plan_module, "version", lambda name: "1")
            assert one not in (before, bench.plan().cells[0].key)


def test_lists_and_null_are_spelled_for_the_command_line(bench: Bench) -> None:
    text = SMALL.replace("demo}}", "demo, dtype: float16}}").replace(
        "{method: fastv, model_args: {k: 3, r: 0.5}}",
        "{method: pyramiddrop, model_args: {layers: [1, 2], ratios: [0.5, 0.25], renumber: false, dtype: null}}",
    )
    call = bench.plan(text).cells[-1].call
    assert call.model_args_text == "pretrained=demo,layers=1-2,ratios=0.5-0.25,renumber=False"


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=8)


@given(spans, st.integers(1, 40))
def test_what_is_missing_and_what_is_there_make_up_the_whole(found: list[tuple[int, int]], total: int) -> None:
    done = [shard("k", first, min(first + n, total), total) for first, n in found if first < total]
    left = missing(total, done)
    kept = chosen(done)
    documents = [i for one in kept for i in range(one.span.first, one.stop)]
    documents += [i for span in left for i in range(span.first, span.stop or 0)]
    assert sorted(documents) == list(range(total))


def test_a_cell_is_split_and_only_what_is_missing_is_run(bench: Bench) -> None:
    plan = bench.plan()
    key = plan.cells[0].key
    work = work_left(plan, {key: [shard(key, 8, 16)]})
    first = [(one.span.first, one.span.stop) for one in work if one.cells[0].run == "baseline"]
    assert first == [(0, 8), (16, 20)]
    assert [one.documents for one in work] == [8, 4, 8, 8, 4, 8, 8, 4]
    assert not work_left(plan, {cell.key: [shard(cell.key, 0, 20)] for cell in plan.cells})


def test_another_size_of_shards_goes_on_with_those_that_are_there(bench: Bench) -> None:
    plan = bench.plan(SMALL.replace("shard: 8", "shard: 6"))
    key = plan.cells[0].key
    work = [one for one in work_left(plan, {key: [shard(key, 0, 8)]}) if one.cells[0].run == "baseline"]
    assert [(one.span.first, one.span.stop) for one in work] == [(8, 14), (14, 20)]


@pytest.mark.parametrize(("size", "shared"), [("null", [2]), ("2", [2]), ("1", [1, 1])])
def test_tasks_of_a_run_share_a_process_where_nothing_is_split(size: str, shared: list[int], bench: Bench) -> None:
    text = SMALL.replace("[{task: gqa, samples: 20}]", "[gqa, ai2d]").replace("engine: {shard: 8}", "")
    plan = bench.plan(f"{text}tasks_per_process: {size}\n")
    work = [one for one in work_left(plan, {}) if one.cells[0].run == "fastv"]
    assert [len(one.cells) for one in work] == shared
    assert {one.span for one in work} == {Span(0, None)}
    assert work[0].documents is None
    half = {plan.cells[0].key: [shard(plan.cells[0].key, 0, 20)]}
    assert [cell.task for cell in work_left(plan, half)[0].cells] == ["ai2d"]


def test_equal_cells_are_run_once(bench: Bench) -> None:
    plan = bench.plan(SMALL.replace("engine:", "  twin: {method: fastv, model_args: {r: 0.5, k: 3}}\nengine:"))
    assert len(plan.cells) == 4
    assert len(work_left(plan, {})) == 9
    assert "equal cells run once: 1 share the answers of another" in overview(plan, {})


def test_a_number_of_samples_that_is_wrong_is_named(bench: Bench) -> None:
    plan = bench.plan()
    key = plan.cells[0].key
    state = states(plan, {key: [shard(key, 0, 8, total=19)]})[0]
    assert state.mismatch == "task gqa has 19 documents, but the study says samples: 20"
    assert not state.complete
    assert "error: demo/baseline gqa: task gqa has 19" in overview(plan, {key: [shard(key, 0, 8, total=19)]})


def test_the_plan_says_what_is_there_and_how_long_the_rest_takes(bench: Bench) -> None:
    plan = bench.plan()
    nothing = overview(plan, {})
    assert "3 runs, 3 cells (one task of one run): 0 finished, 3 to do in 9 processes" in nothing
    assert "samples: 60; 0 answered" in nothing
    assert "time left: unknown" in nothing
    key = plan.cells[0].key
    # 4 seconds per 8 documents and one to start
    finished = {key: [shard(key, 0, 8), shard(key, 8, 16)]}
    some = overview(plan, finished)
    assert "demo/baseline          16 of 20, 1 shard" in some
    assert "demo/fastv             llava_fastv        pretrained=demo,k=3,r=0.5" in some
    time = estimate(plan, work_left(plan, finished), finished)
    assert time.seconds == pytest.approx(7 * 1 + 44 * 0.5)
    assert "time left: 29 s with 1 worker" in some
    assert "time left: 14 s with 2 workers" in overview(plan, finished, workers=2)
    done = overview(plan, {cell.key: [shard(cell.key, 0, 20)] for cell in plan.cells})
    assert "3 finished, 0 to do" in done
    assert "done (20)" in done
    assert "time left" not in done
    assert "not part of this plan: 1 finished cell of other" in overview(plan, {"other": [shard("other", 0, 5)]})


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (3, 119, 600, 7200)] == ["3 s", "119 s", "10 min", "2.0 h"]
