"""Tasks that score answers, as lmms-eval builds and reads them for a chat model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from lmms_eval import evaluator
from lmms_eval.api.task import ConfigurableMessagesTask

from lmms_eval_stability.model_wrappers import errors
from lmms_eval_stability.model_wrappers.measurements import Measurements
from lmms_eval_stability.model_wrappers.models import LlavaFastv
from lmms_eval_stability.model_wrappers.scoring import Likelihood
from tests.model_wrappers.documents import draw

pytestmark = pytest.mark.any_transformers

TinyFolder = Callable[[str], str]
CHOICES = ["yes", "no", "a dog"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "test.parquet"
    rows = {
        "image": [draw(i) for i in range(3)],
        "question": ["Is it red?", "Is there a dog?", "What is it?"],
        "label": [0, 1, 2],
        "answer": ["yes", "no", "a dog"],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(file)
    return str(file)


@pytest.fixture
def model(tiny_folder: TinyFolder) -> Any:
    return LlavaFastv(pretrained=tiny_folder("llava"), device="cpu", batch_size=2)


def task(data: str, model: Any, output_type: str, **config: Any) -> Any:
    """Return a task with its requests built, its documents known to the model."""
    settings = {
        "task": "scored",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "output_type": output_type,
        "doc_to_visual": lambda doc: [doc["image"].convert("RGB")],
        "doc_to_text": "question",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **config,
    }
    built = ConfigurableMessagesTask(config=settings)
    built.build_all_requests(rank=0, world_size=1)
    model.task_dict = {"scored": built.dataset}
    return built


def answered(built: Any, results: list[Any]) -> list[dict[str, Any]]:
    """Return each document's metrics, as the evaluator has the task make them from the model's results."""
    for request, result in zip(built.instances, results, strict=True):
        text, counts = evaluator.unwrap_generation_output(result)
        request.resps.append(text)
        request.token_counts.append(counts)
    built.apply_filters()
    metrics = []
    for doc_id, doc in enumerate(built.eval_docs_no_media):
        mine = sorted((r for r in built.instances if r.doc_id == doc_id), key=lambda request: request.idx)
        metrics.append(built.process_results(doc, [request.filtered_resps["none"] for request in mine]))
    return metrics


def test_multiple_choice_takes_the_choice_with_the_least_loss(data: str, model: Any) -> None:
    built = task(data, model, "multiple_choice", doc_to_choice=CHOICES, doc_to_target="label")
    assert [request.request_type for request in built.instances] == ["loglikelihood"] * 9
    results = model.loglikelihood(built.instances)
    metrics = answered(built, results)
    for doc_id, metric in enumerate(metrics):
        losses = [result.loss for result in results[3 * doc_id : 3 * doc_id + 3]]
        assert metric == {"acc": float(losses.index(min(losses)) == doc_id)}
    counts = built.instances[4].token_counts[0].to_dict()
    assert counts["visual_tokens"] == [16, 8]
    assert counts["answer_logprob"] == pytest.approx(-results[4].loss * counts["answer_tokens"], abs=1e-5)


def test_the_prompt_is_that_of_generation_whatever_the_task_shows(data: str, model: Any) -> None:
    def turns(doc: dict[str, Any]) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": "Look:"}, {"type": "image", "url": doc["image"].convert("RGB")}]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]

    for shown in ({}, {"doc_to_messages": turns}):
        seen: list[list[str]] = []
        for output_type in ("generate_until", "multiple_choice"):
            own = {"doc_to_choice": ["yes"], "doc_to_target": "label"} if output_type == "multiple_choice" else {}
            target = {"doc_to_target": "answer", "generation_kwargs": {"max_new_tokens": 1}, **own}
            built = task(data, model, output_type, **target, **shown)
            seen.append([])
            encode = model.family.encode_text

            def noting(processor: Any, prompts: Any, *images: Any, texts: Any = seen[-1], to: Any = encode) -> Any:
                texts.extend(prompt.text for prompt in prompts)
                return to(processor, prompts, *images)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(model.family, "encode_text", noting)
                getattr(model, built.instances[0].request_type)(built.instances)
        assert len(seen[0]) == 3
        assert sorted(seen[0]) == sorted(seen[1])
        assert all(("Look:" in text) == bool(shown) for text in seen[1])


def test_choices_may_be_the_questions(data: str, model: Any) -> None:
    """A task whose doc_to_text names the right choice puts the choices into the prompt."""
    built = task(
        data,
        model,
        "multiple_choice",
        doc_to_choice=["Is it red? Yes.", "Is it red? No.", "Is it a dog?"],
        doc_to_text=lambda doc: doc["label"],
        doc_to_target=lambda _: "right",
    )
    results = model.loglikelihood(built.instances)
    assert len({round(result.loss, 4) for result in results[:3]}) == 3
    assert answered(built, results)[0] in ({"acc": 0.0}, {"acc": 1.0})


def test_a_loglikelihood_task_scores_its_target(data: str, model: Any) -> None:
    """lmms-eval's own metrics cannot read these results (it unpacks a list of one); a task's own function can."""

    def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        ((loss, is_greedy),) = results
        return {"acc": float(is_greedy), "loss_of": (doc["answer"], loss)}

    built = task(data, model, "loglikelihood", doc_to_target="answer", process_results=process_results)
    results = model.loglikelihood(built.instances)
    expected = [{"acc": float(r.is_greedy), "loss_of": (a, r.loss)} for a, r in zip(CHOICES, results, strict=True)]
    assert answered(built, results) == expected


def test_mutual_information_is_refused(data: str, model: Any) -> None:
    metrics = [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}]
    with pytest.raises(errors.UnsupportedInputError, match="task scored asks for acc_mutual_info"):
        task(data, model, "multiple_choice", doc_to_choice=CHOICES, doc_to_target="label", metric_list=metrics)


def test_what_lmms_eval_does_with_other_results_is_as_before(model: Any) -> None:
    unwrap = evaluator.unwrap_generation_output
    measured = Measurements(answer_tokens=2)
    pair, counts = unwrap(Likelihood(0.5, True, measured))
    assert (pair, type(pair), counts) == ((0.5, True), tuple, measured)
    assert unwrap([0.25, False]) == ((0.25, False), None)
    lost, counts = unwrap([math.inf, False])
    assert lost == (math.inf, False)
    assert "cache of responses" in counts.error
    assert unwrap("text") == ("text", None)
    assert unwrap(["one", "two"]) == (["one", "two"], None)
    assert unwrap(3) == ("3", None)


def test_other_output_types_are_built_as_before(data: str, model: Any, tmp_path: Path) -> None:
    built = task(data, model, "generate_until", doc_to_target="answer", generation_kwargs={"max_new_tokens": 3})
    assert [request.arguments[2]["max_new_tokens"] for request in built.instances] == [3] * 3
    assert [request.arguments[1].__name__ for request in built.instances] == ["doc_to_messages"] * 3
    with pytest.raises(AssertionError, match="generation only"):
        task(data, model, "generate_visual_cot", doc_to_target="answer")
