"""Perturbed twins of tasks, loaded by lmms-eval's own task manager: what changes, what stays, what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from lmms_eval.tasks import TaskManager
from PIL import Image, ImageChops, ImageStat

import lmms_eval_stability.plugin as plugin
from lmms_eval_stability.tasks.perturbations.cache import FOLDER_VARIABLE
from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError, UnknownPerturbationError
from lmms_eval_stability.tasks.perturbations.image import perturb_image
from lmms_eval_stability.tasks.perturbations.plan import PerturbationConfigError
from lmms_eval_stability.tasks.perturbations.text import perturb_text
from tests.model_wrappers.documents import draw

plugin.wrap_task_manager(sys.modules["lmms_eval.tasks"])

IMAGE = "{modality: image, set: paper-96, seed: 0}"
WORD_SHUFFLE = "{method: shuffle_order, severity: 1}"

BASE = """
task: base_task
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function tests.tasks.base_functions.doc_to_visual
doc_to_text: !function tests.tasks.base_functions.doc_to_text
doc_to_target: answer
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{max_new_tokens: 8}}
tag: some_tag
lmms_eval_specific_kwargs:
  default: {{post_prompt: " Answer with a dog or a cat."}}
  llava_hf: {{post_prompt: " (for llava_hf)"}}
"""


def png(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_data(folder: Path, order: list[int] | None = None) -> Path:
    rows = [
        {
            "question_id": f"q{n}",
            "image_id": f"i{n // 2}",
            "question": f"How many big red dogs number {n} are there on the left of the table? <image 1>",
            "options": f"dogs {n}",
            "answer": "two",
            "image": png(draw(n // 2)),
        }
        for n in (order or range(12))
    ]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question_id", "image_id", "question", "options", "answer")}
        | {"image": datasets.Image()}
    )
    file = folder / "data.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    return file


class Twins:
    """A folder with a base task and perturbed twins of it."""

    def __init__(self, folder: Path, order: list[int] | None = None) -> None:
        self.folder = folder
        self.count = 0
        (folder / "base.yaml").write_text(BASE.format(data=write_data(folder, order)))

    def load(self, perturbation: str, *, kind: str = "chat", model: str | None = None, more: str = "") -> Any:
        self.count += 1
        name = f"twin_{self.count}"
        (self.folder / f"{name}.yaml").write_text(
            f"task: {name}\nbase_task: base_task\nperturbation: {perturbation}\n{more}"
        )
        return self.manager(model).load_task_or_group([name], kind)[name]

    def base(self, kind: str = "chat", model: str | None = None) -> Any:
        return self.manager(model).load_task_or_group(["base_task"], kind)["base_task"]

    def manager(self, model: str | None = None) -> TaskManager:
        return TaskManager(include_path=str(self.folder), include_defaults=False, model_name=model)


@pytest.fixture
def twins(tmp_path: Path) -> Twins:
    return Twins(tmp_path)


def shown(task: Any, doc: dict[str, Any]) -> tuple[list[bytes], str]:
    """Return what a chat model sees of a document: pixels of its images, and its words."""
    content = [part for turn in task.doc_to_messages(doc) for part in turn["content"]]
    images = [part["url"].convert("RGB").tobytes() for part in content if part["type"] == "image"]
    return images, "".join(part["text"] for part in content if part["type"] == "text")


@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_images_are_perturbed_and_nothing_else(twins: Twins, kind: str) -> None:
    base, twin = twins.base(kind), twins.load(IMAGE, kind=kind)
    records = []
    for doc in twin.eval_docs:
        assert twin.doc_to_text(doc) == base.doc_to_text(doc)
        (before,), (after,) = base.doc_to_visual(doc), twin.doc_to_visual(doc)
        record = twin.process_results(doc, ["two"])["perturbation"]
        again = perturb_image(before, record["method"], record["severity"], seed=record["seed"])
        assert after.size == before.size
        assert after.tobytes() == again.tobytes()
        assert record["changed"] == (after.tobytes() != before.tobytes())
        records.append(record)
    assert len({(record["method"], record["severity"]) for record in records}) > 6
    assert len({record["seed"] for record in records}) == 12
    assert sum(record["changed"] for record in records) >= 11


@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_only_the_question_is_perturbed(twins: Twins, kind: str) -> None:
    twin = twins.load(WORD_SHUFFLE, kind=kind)
    for n, doc in enumerate(twin.eval_docs):
        text = twin.doc_to_text(doc)
        question = f"How many big red dogs number {n} are there on the left of the table? "
        record = twin.process_results(doc, ["two"])["perturbation"]
        assert record["changed"]
        assert text.endswith(f"<image 1> Options: dogs {n}. Answer with a dog or a cat.")
        perturbed = text.split("<image 1>")[0]
        assert perturbed == perturb_text(question, "shuffle_order", 1, seed=record["seed"])
        assert sorted(perturbed.split()) == sorted(question.split())
        assert [image.tobytes() for image in twin.doc_to_visual(doc)] == [doc["image"].convert("RGB").tobytes()]


def test_the_base_tasks_arguments_metrics_and_scores_stay(twins: Twins) -> None:
    base, twin = twins.base(model="llava_fastv"), twins.load(WORD_SHUFFLE, model="llava_fastv")
    doc = twin.eval_docs[0]
    assert twin.doc_to_text(doc).endswith("(for llava_hf)")
    assert twin.config.generation_kwargs == base.config.generation_kwargs
    assert twin.higher_is_better() == base.higher_is_better()
    assert twin.aggregation().keys() == base.aggregation().keys()
    for answer in ("two", "three"):
        scores = twin.process_results(doc, [answer])
        scores.pop("perturbation")
        assert scores == base.process_results(doc, [answer])
    assert twin.config.task == "twin_1"
    assert twin.config.tag is None
    described = twin.config.metadata[-1]
    assert described["base_task"] == "base_task"
    assert described["perturbation"]["method"] == "shuffle_order"


def test_a_twin_may_override_the_base_task(twins: Twins) -> None:
    twin = twins.load(IMAGE, more="generation_kwargs: {max_new_tokens: 3}\n")
    assert twin.config.generation_kwargs["max_new_tokens"] == 3


def test_messages_of_the_tasks_own_are_perturbed(twins: Twins) -> None:
    """As MMMU's: interleaved by the task itself, from the document and not from doc_to_text."""
    own = "doc_to_messages: !function tests.tasks.base_functions.doc_to_messages\n"
    (twins.folder / "base.yaml").write_text((twins.folder / "base.yaml").read_text() + own)
    base, image, text = twins.base(), twins.load(IMAGE), twins.load(WORD_SHUFFLE)
    for doc in base.eval_docs:
        clean, noisy, shuffled = shown(base, doc), shown(image, doc), shown(text, doc)
        assert noisy[1] == clean[1]
        assert len(noisy[0]) == len(clean[0]) == 1
        changed = image.process_results(doc, ["two"])["perturbation"]["changed"]
        assert (noisy[0] != clean[0]) == changed
        assert shuffled[0] == clean[0]
        assert shuffled[1] != clean[1]
        assert sorted(shuffled[1].split()) == sorted(clean[1].split())


@pytest.mark.parametrize("perturbation", [IMAGE, "{set: offline-72}"])
def test_order_and_selection_do_not_matter(tmp_path: Path, perturbation: str) -> None:
    seen = []
    for name, order in (("a", list(range(12))), ("b", [7, 3, 11, 0])):
        (tmp_path / name).mkdir()
        task = Twins(tmp_path / name, order).load(perturbation)
        seen.append({doc["question_id"]: shown(task, doc) for doc in task.eval_docs})
    assert {key: seen[0][key] for key in seen[1]} == seen[1]


def test_noise_can_be_shared_by_the_questions_of_an_image(twins: Twins) -> None:
    twin = twins.load("{modality: image, set: paper-96, per_image: true}")
    docs = list(twin.eval_docs)
    for first, second in zip(docs[::2], docs[1::2], strict=True):
        assert shown(twin, first)[0] == shown(twin, second)[0]
    assert len({shown(twin, doc)[0][0] for doc in docs}) == 6


def test_stored_images_are_those_that_would_be_computed(
    twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = {doc["question_id"]: shown(twins.load(IMAGE), doc) for doc in twins.base().eval_docs}
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    for _ in range(2):
        task = twins.load(IMAGE)
        assert {doc["question_id"]: shown(task, doc) for doc in task.eval_docs} == computed
    files = list((tmp_path / "cache").rglob("*"))
    assert sum(file.suffix == ".png" for file in files) == 12
    assert not [file for file in files if file.suffix == ".part"]
    # they are really read
    for file in files:
        if file.suffix == ".png":
            Image.new("RGB", (8, 8)).save(file)
    task = twins.load(IMAGE)
    assert all(shown(task, doc)[0] == [bytes(8 * 8 * 3)] for doc in task.eval_docs)


def test_answers_from_a_cache_have_a_plan_but_no_digest(twins: Twins) -> None:
    twin = twins.load(IMAGE)
    doc = twin.eval_docs_no_media[3]
    record = twin.process_results(doc, ["two"])["perturbation"]
    assert (record["changed"], record["output_sha"]) == (None, None)
    twin.doc_to_messages(twin.eval_docs[3])
    done = twin.process_results(doc, ["two"])["perturbation"]
    assert (done["method"], done["severity"], done["seed"]) == (record["method"], record["severity"], record["seed"])
    assert done["output_sha"]


def test_a_group_runs_clean_and_perturbed_tasks(twins: Twins) -> None:
    twins.load(IMAGE)
    (twins.folder / "group.yaml").write_text("group: all_of_it\ntask: [base_task, twin_1]\n")
    loaded = twins.manager().load_task_or_group(["all_of_it"], "chat")
    (tasks,) = loaded.values()
    assert set(tasks) == {"base_task", "twin_1"}
    assert hasattr(tasks["twin_1"], "plan")
    assert not hasattr(tasks["base_task"], "plan")


@pytest.mark.parametrize(
    ("perturbation", "reason"),
    [
        ("nonsense", "write a mapping"),
        ("{modality: image}", "either a set, or a method"),
        ("{set: paper-96, method: fog, severity: 1}", "either a set, or a method"),
        ("{set: paper-96, severity: 1}", "leave severity out"),
        ("{set: paper-96, sead: 1}", "unknown sead"),
        ("{set: paper-96, seed: x}", "seed must be a whole number"),
        ("{set: paper-96, modality: sound}", "modality must be one of"),
        ("{set: paper-96, draw: sometimes}", "draw must be one of"),
        ("{set: offline-72, per_image: true}", "per_image is for images"),
        ("{set: offline-72, frost_textures: x}", "frost_textures is for images"),
        ("{set: paper-96, id_field: nope}", "no column nope .* there are question_id, image_id"),
        ("{set: paper-96, per_image: true, image_id_field: nope}", "no column nope"),
        ("{set: offline-72, question_field: nope}", "no text in column 'nope'"),
        ("{set: offline-72, question_field: answer}", "does not contain column 'answer'"),
    ],
)
def test_refused_by_name(twins: Twins, perturbation: str, reason: str) -> None:
    with pytest.raises(PerturbationConfigError, match=rf"task twin_1: .*{reason}"):
        twins.load(perturbation)


@pytest.mark.parametrize(
    ("perturbation", "reason"),
    [
        ("{set: paper-97, modality: image}", "no set of perturbations 'paper-97'"),
        ("{set: paper-96, modality: text}", "perturbs the image, not the text"),
        ("{modality: image, method: mist, severity: 1}", "no image perturbation 'mist'"),
        ("{method: fog, severity: 6}", "severities 1 to 5, not 6"),
        ("{method: fog}", "severities 1 to 5, not None"),
    ],
)
def test_unknown_levels_are_refused_by_name(twins: Twins, perturbation: str, reason: str) -> None:
    with pytest.raises(UnknownPerturbationError, match=f"task twin_1: .*{reason}"):
        twins.load(perturbation)


def test_base_tasks_that_cannot_be_are_refused(twins: Twins) -> None:
    twins.load(IMAGE)
    for base, reason in (("twin_1", "itself perturbed"), ("nothing", "not one task"), ("some_tag", "not one task")):
        (twins.folder / "bad.yaml").write_text(f"task: bad\nbase_task: {base}\nperturbation: {IMAGE}\n")
        with pytest.raises(PerturbationConfigError, match=f"task bad: .*{reason}"):
            twins.manager().load_task_or_group(["bad"], "chat")


def test_levels_without_their_model_are_an_error_or_left_out_for_everyone(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lmms_eval_stability.tasks.perturbations.text as text
    from lmms_eval_stability.tasks.perturbations.sets import levels_of

    offline = levels_of("offline-72", "text")
    monkeypatch.setattr(text, "available_levels", lambda *args, **kwargs: offline)
    with pytest.raises(MissingResourceError, match=r"task twin_1: 15 of 87 text levels.*missing: skip"):
        twins.load("{set: paper-87}")
    twin = twins.load("{set: paper-87, missing: skip}")
    assert twin.plan.levels == offline
    described = twin.config.metadata[-1]["perturbation"]
    assert described["levels"] == 72
    assert len(described["left_out"]) == 15


def test_photographs_that_are_not_there_are_named_before_the_run(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMMS_EVAL_STABILITY_FROST_TEXTURES", str(tmp_path))
    with pytest.raises(MissingResourceError, match=r"task twin_1: 5 of 96 image levels.*missing: skip"):
        twins.load("{set: paper-96, official_quirks: true}")
    twin = twins.load("{set: paper-96, official_quirks: true, missing: skip}")
    assert "frost" not in {level.method for level in twin.plan.levels}
    assert len(twin.plan.levels) == 91
    drawn = twins.load("{method: frost, severity: 3}")  # frost of its own needs none
    with pytest.raises(MissingResourceError, match=r"1 of 1 image levels"):
        twins.load(f"{{method: frost, severity: 3, frost_textures: {tmp_path / 'nothing'}}}")
    for number in range(1, 7):
        file = tmp_path / f"frost{number}.{'png' if number < 4 else 'jpg'}"
        Image.new("RGB", (90, 90), (200, 0, 0)).save(file)
    red = twins.load(f"{{method: frost, severity: 3, frost_textures: {tmp_path}}}")
    doc = red.eval_docs[0]
    difference = ImageChops.subtract(red.doc_to_visual(doc)[0], drawn.doc_to_visual(doc)[0])
    assert ImageStat.Stat(difference).mean[0] > 20
    assert red.config.metadata[-1]["perturbation"]["frost_textures"] is True


def test_examples_in_the_prompt_are_refused(twins: Twins) -> None:
    twin = twins.load(IMAGE)
    twin.set_config("num_fewshot", 2)
    with pytest.raises(PerturbationConfigError, match="num_fewshot"):
        twin.construct_requests(0, "context", metadata={"split": "test"})
