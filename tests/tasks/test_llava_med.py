"""LLaVA-Med: its conversations with a judge, and a checkpoint of its architecture (LLaVA over Mistral)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.llm_judge import ProviderFactory
from lmms_eval.tasks import TaskManager, get_task_dict

from lmms_eval_stability.model_wrappers import models
from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError
from lmms_eval_stability.plugin import task_dir
from lmms_eval_stability.tasks.llava_med_conversation import judge
from lmms_eval_stability.tasks.llava_med_conversation.questions import (
    MissingDataError,
    QuestionFileError,
    Source,
    load_questions,
)
from lmms_eval_stability.tasks.llava_med_conversation.task import process_results
from tests.model_wrappers.documents import chat_requests, documents, give_documents
from tests.tasks.judged_questions import (
    QUESTIONS,
    RELATIVE,
    UNPARSABLE,
    BrokenJudge,
    ScriptedJudge,
    entries,
    openai_server,
    write_data,
)
from tests.tasks.tiny_llava_med import build_tiny_llava_med

TASK = "llava_med_conversation"
YAML = task_dir() / TASK / f"{TASK}.yaml"
COLUMNS = {"conversation", "description", "chest_xray", "mri", "histology", "gross", "ct", "overall"}  # of table 5


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The question file, named by the environment."""
    file = write_data(tmp_path / "llava-med")
    monkeypatch.setenv("LLAVA_MED_QUESTIONS", str(file))
    monkeypatch.delenv("LLAVA_MED_IMAGES", raising=False)
    return file


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedJudge]:
    """A judge that is registered as lmms-eval registers its own."""
    ProviderFactory.register_provider("scripted", ScriptedJudge)
    monkeypatch.setenv("API_TYPE", "scripted")
    ScriptedJudge.asked.clear()
    return ScriptedJudge


def build(name: str, folder: Path) -> Any:
    """Return the task as lmms-eval loads it; without indexing its own tasks, which takes seconds."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return get_task_dict([name], manager, task_type="chat")[name]


def docs_of(file: Path) -> list[dict[str, Any]]:
    return list(load_questions(Source(file, file.parent / "images")))


# The questions


def test_questions_are_read_as_llava_med_publishes_them(data: Path) -> None:
    docs = docs_of(data)
    assert [doc["question_id"] for doc in docs] == ["0", "1", "2", "3", "4", "5"]
    assert [doc["kind"] for doc in docs] == [
        "conversation",
        "conversation",
        "description",
        "conversation",
        "description",
        "conversation",
    ]
    # figure 2 is flagged histology and gross: LLaVA-Med's summary counts it as the first of both
    assert [doc["domain"] for doc in docs] == ["chest_xray", "mri", "histology", "gross", "ct", ""]
    assert docs[2]["question"] == "Describe the stain."
    assert docs[2]["reference"] == "Reference 2."
    assert "Fig. 1: Caption 2." in docs[2]["context"]
    assert "See mention 2 ." in docs[2]["context"]
    assert "start_tok" not in docs[2]["context"]
    assert docs[5]["image"].size == (64, 48)


def changed(number: int, **fields: Any) -> list[Any]:
    lines: list[Any] = entries()
    lines[number] = {key: value for key, value in {**lines[number], **fields}.items() if value is not None}
    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*entries()[:2], "{broken"], "line 3: not JSON"),
        ([*entries()[:2], "[1]"], "line 3: not a JSON object"),
        (changed(1, gpt4_answer=None), "line 2: lacks gpt4_answer"),
        (changed(4, type="haiku"), "line 5: type 'haiku' is none of conversation"),
        (changed(0, domain={"xray": True}), "line 1: domain must be flags of chest_xray"),
        (changed(0, domain="mri"), "line 1: domain must be flags"),
        (changed(3, question_id=1), "line 4: question 1 occurs a second time"),
        ([], "holds no question"),
    ],
)
def test_a_broken_question_file_is_refused_by_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    file = write_data(tmp_path / "data", lines)
    with pytest.raises(QuestionFileError, match=message):
        load_questions(Source(file, file.parent / "images"))


def test_missing_images_are_counted_before_the_run(data: Path) -> None:
    (data.parent / "images" / "fig1.png").unlink()
    with pytest.raises(MissingDataError, match=r"lacks 1 of the images \(fig1.png\), which 2 of 6.*LLAVA_MED_IMAGES"):
        docs_of(data)


def test_without_paths_the_error_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_MED_QUESTIONS", raising=False)
    monkeypatch.delenv("LLAVA_MED_IMAGES", raising=False)
    with pytest.raises(MissingDataError, match=r"set LLAVA_MED_QUESTIONS .* and LLAVA_MED_IMAGES"):
        Source.find(None)
    with pytest.raises(MissingDataError, match=r"no question file .*nowhere\.jsonl; correct LLAVA_MED_QUESTIONS"):
        Source.find({"questions": str(tmp_path / "nowhere.jsonl")})
    file = tmp_path / "questions.jsonl"
    file.touch()
    with pytest.raises(MissingDataError, match=r"no folder of images .*images; set LLAVA_MED_IMAGES"):
        Source.find({"questions": str(file)})
    with pytest.raises(
        MissingDataError, match="does not take dataset_kwargs data_files; it takes questions and images"
    ):
        Source.find({"data_files": "x"})


def test_a_yaml_names_the_paths_before_the_environment(data: Path, tmp_path: Path) -> None:
    elsewhere = write_data(tmp_path / "elsewhere")
    found = Source.find({"questions": str(elsewhere), "images": str(data.parent / "images")})
    assert found == Source(elsewhere, data.parent / "images")


# The judge


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 6", (8.0, 6.0)),
        ("\n 8, 6 \nbecause 3 4", (8.0, 6.0)),
        ("8.5;10", (8.5, 10.0)),
        ("Assistant 1: 8\nAssistant 2: 6", None),  # lmms-eval's parser reads 1 and 8
        ("8/10 6/10", None),
        ("8", None),
        ("8 6 7", None),
        ("0 6", None),
        ("8 11", None),
        ("-8 6", None),
        ("The scores are 8 6", None),
        ("", None),
        ("dummy", None),
    ],
)
def test_only_a_line_of_two_scores_counts(review: str, scores: tuple[float, float] | None) -> None:
    assert judge.parse_scores(review) == scores


def test_every_question_is_judged_or_counted(data: Path, scripted: type[ScriptedJudge]) -> None:
    docs = docs_of(data)
    for doc, (_, _, question, reply), relative in zip(docs, QUESTIONS, RELATIVE, strict=True):
        result = process_results(doc, ["The model's answer."])
        record = result.pop("llava_med_record")
        assert (record["score"], record["review"], record["judge"]) == (relative, reply, "scripted-1")
        assert result.pop("llava_med_unjudged") == (relative is None)
        named = {"overall", doc["kind"], doc["domain"]} - {""}
        assert result == ({} if relative is None else {f"llava_med_{name}": relative for name in named})
        prompt = scripted.asked[-1]
        # the reference comes first: "assistant 1"
        assert prompt.index(question) < prompt.index(doc["reference"]) < prompt.index("The model's answer.")
        assert doc["context"] in prompt
    unparsed = process_results(docs[UNPARSABLE], ["x"])["llava_med_record"]
    assert unparsed["error"] == "no two scores from 1 to 10 in the reply"
    assert unparsed["score"] is unparsed["answer_score"] is None


def test_a_failed_request_is_counted_and_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ProviderFactory.register_provider("broken", BrokenJudge)
    monkeypatch.setenv("API_TYPE", "broken")
    result = process_results(docs_of(data)[0], ["x"])
    assert result["llava_med_unjudged"] == 1
    assert "llava_med_overall" not in result
    assert result["llava_med_record"]["error"] == "request failed: TimeoutError: no answer from the judge"


def test_without_a_judge_answers_are_logged_as_unjudged(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TYPE", "dummy")
    result = process_results(docs_of(data)[0], ["x"])
    assert set(result) == {"llava_med_unjudged", "llava_med_record"}
    assert (result["llava_med_unjudged"], result["llava_med_record"]["judge"]) == (1, "dummy")


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("openai", "API_TYPE=openai.*set OPENAI_API_KEY"),
        ("azure", "API_TYPE=azure.*set AZURE_API_KEY and AZURE_ENDPOINT"),
        ("local", "API_TYPE=local is not available.*LLM_JUDGE_URL"),
        ("oracle", "API_TYPE=oracle cannot be set up: Unknown API type"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch, provider: str, message: str
) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLM_JUDGE_URL", "http://127.0.0.1:9/v1/chat/completions")
    monkeypatch.setenv("API_TYPE", provider)
    with pytest.raises(judge.JudgeUnavailableError, match=message):
        build(TASK, YAML.parent)


def test_a_judge_in_coroutines_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("API_TYPE", "async_openai")
    with pytest.raises(judge.JudgeUnavailableError, match="use API_TYPE=openai"):
        judge.server()


# The task as lmms-eval runs it


def test_lmms_eval_builds_the_task_from_a_users_yaml(
    tmp_path: Path, scripted: type[ScriptedJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_MED_QUESTIONS", raising=False)
    file = write_data(tmp_path / "data")
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "mine.yaml").write_text(f"include: {YAML}\ntask: mine\ndataset_kwargs:\n  questions: {file}\n")
    task = build("mine", own)
    assert len(task.eval_docs) == 6
    (message,) = task.doc_to_messages(task.eval_docs[1])
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"] == "Which plane is it?"
    assert "image" not in task.eval_docs_no_media.features
    assert set(task.aggregation()) == {f"llava_med_{name}" for name in (*COLUMNS, "unjudged")}
    assert next(iter(task.aggregation())) == "llava_med_overall"  # what `compare` takes for the score


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_llava_med(tmp_path_factory.mktemp("tiny") / "llava-med"))


def run_lmms_eval(out: Path, tiny: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_visionzip", "--device", "cpu"]
    command += ["--model_args", f"pretrained={tiny},max_new_tokens=8", "--tasks", TASK]
    command += ["--log_samples", "--output_path", str(out)]
    unset = ("API_TYPE", "MODEL_VERSION", "OPENAI_API_KEY", "LLAVA_MED_QUESTIONS", "LLAVA_MED_IMAGES")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**inherited, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **environment},
    )


def test_a_run_gives_table_5s_columns_and_counts_what_was_not_judged(tiny: str, tmp_path: Path) -> None:
    questions = write_data(tmp_path / "data")
    with openai_server() as address:
        paths = {"LLAVA_MED_QUESTIONS": str(questions), "OPENAI_API_URL": address, "OPENAI_API_KEY": "none"}
        done = run_lmms_eval(tmp_path / "out", tiny, **paths)
    output = done.stdout + done.stderr
    results = list((tmp_path / "out").rglob("*_results.json"))
    assert results, output[-4000:]
    reported = json.loads(results[0].read_text())["results"][TASK]
    expected = {
        "overall": (75 + 50 + 125 + 50 + 150) / 5,
        "conversation": (75 + 50 + 150) / 3,
        "description": (125 + 50) / 2,
        "chest_xray": 75,
        "mri": 50,
        "histology": 125,
        "ct": 50,
        "unjudged": 1,
    }
    for name, value in expected.items():
        assert reported[f"llava_med_{name},none"] == pytest.approx(value), name
    assert "llava_med_gross,none" not in reported  # its only answer was not judged
    assert "1 of 6 answers have no score from the judge" in output
    (log,) = (tmp_path / "out").rglob("*_samples_*.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [line["llava_med_record"]["score"] for line in lines] == list(RELATIVE)
    assert [line["target"] for line in lines] == [f"Reference {number}." for number in range(6)]
    assert all(line["filtered_resps"] for line in lines)
    assert {line["llava_med_record"]["judge"] for line in lines} == {"served-gpt-4o-2024-11-20"}
    assert lines[0]["token_counts"][0]["visual_tokens"] == [16, 5]
    again = shutil.copytree(tmp_path / "out", tmp_path / "again")
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "compare", str(tmp_path / "out"), str(again)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert "--accept unscored" in refused.stderr


def test_without_data_the_task_says_what_to_set_and_does_not_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_MED_QUESTIONS", raising=False)
    # not the RetryError in which lmms-eval's own way to load data ends after five attempts
    with pytest.raises(MissingDataError, match="set LLAVA_MED_QUESTIONS to the file and LLAVA_MED_IMAGES"):
        build(TASK, YAML.parent)


# The architecture

GENERATION = {"max_new_tokens": 6}
Make = Callable[..., Any]


def answers(model: Any, make_requests: Make = chat_requests) -> list[str]:
    docs = [doc for doc in documents(14) if len(doc["images"]) == 1]
    give_documents(model, docs)
    results = model.generate_until(make_requests(docs, GENERATION))
    return [getattr(result, "text", result) for result in results]


def test_it_loads_through_the_llava_family_and_prompts_as_mistral_does(tiny: str) -> None:
    model = models.LlavaBaseline(pretrained=tiny, device="cpu")
    assert (model.config.model_type, model.config.text_config.model_type) == ("llava", "mistral")
    assert type(model.model.model.language_model).__name__ == "MistralModel"
    assert model.config.text_config.sliding_window is None
    messages = [{"role": "user", "content": [{"type": "text", "text": "Which organ is it?"}]}]
    prompt = model.family.build_prompt(model.processor, messages, "")
    assert prompt.text == "[INST] Which organ is it? [/INST]"
    found = answers(model)
    assert len(set(found)) > 1  # it looks at the pictures


def test_the_baseline_answers_what_lmms_evals_own_llava_answers(tiny: str) -> None:
    from lmms_eval.models.chat.llava_hf import LlavaHf

    own = LlavaHf(pretrained=tiny, device="cpu", device_map="cpu", batch_size=1)
    assert answers(models.LlavaBaseline(pretrained=tiny, device="cpu")) == answers(own)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("LlavaFastv", [16, 8]),
        ("LlavaVisionzip", [16, 5]),
        ("LlavaPyramiddrop", None),
        ("LlavaSparsevlm", None),
        ("LlavaHired", None),
        ("LlavaLofi", None),
        ("LlavaRandom", None),
    ],
)
def test_token_reduction_works_on_it_alone_and_in_batches(tiny: str, name: str, left: list[int] | None) -> None:
    docs = [doc for doc in documents(14) if len(doc["images"]) == 1]
    found = []
    for size in (1, 4):
        rank = {"rank": 4} if name == "LlavaLofi" else {}  # its default needs more than the 16 tokens there are
        model = getattr(models, name)(pretrained=tiny, device="cpu", batch_size=size, **rank)
        give_documents(model, docs)
        found.append(model.generate_until(chat_requests(docs, GENERATION)))
    alone, together = found
    counts = alone[0].token_counts.visual_tokens
    assert counts[0] == 16 > counts[-1] > 0
    assert left is None or counts == left
    assert [result.text for result in together] == [result.text for result in alone]
    assert [result.text for result in alone] != answers(models.LlavaBaseline(pretrained=tiny, device="cpu"))


def test_keeping_every_token_is_the_baseline(tiny: str) -> None:
    model = models.LlavaFastv(pretrained=tiny, device="cpu", r=0.0)
    doc = documents(1)[0]
    content = [{"type": "image", "url": doc["images"][0]}, {"type": "text", "text": doc["question"]}]
    prompt = model.family.build_prompt(model.processor, [{"role": "user", "content": content}], "")
    inputs = model.family.encode(model.processor, [prompt])
    plain = model.model(**inputs).logits
    with model.method.attach(model.model, model.family):
        assert plain.equal(model.model(**inputs).logits)


def test_a_sliding_window_is_refused_inside_the_language_model_only(tmp_path: Path) -> None:
    # What a conversion that leaves the window unstated ends up with: MistralConfig's default.
    folder = str(build_tiny_llava_med(tmp_path / "windowed", sliding_window=4096))
    with pytest.raises(UnsupportedModelError, match="sliding-window attention"):
        models.LlavaFastv(pretrained=folder, device="cpu")
    shortened = answers(models.LlavaVisionzip(pretrained=folder, device="cpu"))
    assert shortened != answers(models.LlavaBaseline(pretrained=folder, device="cpu"))
