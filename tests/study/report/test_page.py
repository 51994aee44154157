from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lmms_eval_stability.errors import OutputError
from lmms_eval_stability.report.html import PageModel, html_model, render, write_html
from lmms_eval_stability.report.html.browser import LONGEST, choose, wanted_documents
from lmms_eval_stability.report.html.page import json_for_script

from .pages import HOSTILE, Study, compared, hostile_study, large_study, line, small_study, write_run

ASSETS = Path(__file__).parents[3] / "lmms_eval_stability" / "report" / "html"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script and style element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": [], "th": [], "td": [], "p": []}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self.texts[tag].append("")
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.texts["script"][0])
        return found

    @property
    def policy(self) -> str:
        return next(a["content"] or "" for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")


def page_of(study: Study, **options: Any) -> Page:
    return Page(render(html_model(study.comparison, study.pairs, **options)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def model(small: Study) -> PageModel:
    return html_model(small.comparison, small.pairs)


def rows_of(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(task, doc, run, flip, question, baseline answer, run's answer, target, margin) of every row."""
    docs, rows, texts = data["docs"], data["rows"], data["texts"]
    found = []
    for doc, run, flip, answer in zip(rows["doc"], rows["run"], rows["flip"], rows["answer"], strict=True):
        words = (texts[docs[name][doc]] for name in ("question", "answer"))
        found.append(
            (data["tasks"][docs["task"][doc]], docs["id"][doc], data["names"][run], flip, *words, texts[answer],
             texts[docs["target"][doc]], docs["margin"][doc])
        )  # fmt: skip
    return found


def test_what_the_browser_holds_by_hand(model: PageModel) -> None:
    def row(doc: int, run: str, flip: int, before: str, after: str, margin: float) -> tuple[Any, ...]:
        question = f"question {doc}\nAnswer the question using a single word or phrase."
        return ("gqa", str(doc), run, flip, question, before, after, f"t{doc}", margin)

    assert rows_of(dict(model.browser)) == [
        row(0, "model_one", -1, "red", "cat", 0.5),
        row(1, "model_one", -1, "blue", "dog", 0.25),
        row(2, "model_one", -1, "two", "cow", 3),
        row(3, "model_one", 1, "no", "good", 1),
        row(4, "model_one", 0, "maybe", "sheep", 2),
        row(0, "model_two", -1, "red", "cat", 0.5),
        row(1, "model_two", -1, "blue", "emu", 0.25),
        ("some_task", "7", "model_two", -1, row(7, "", 0, "", "", 0)[4], "left", "right", "t7", None),
    ]
    assert model.browser["categories"] == [["perturbation", "blur"], ["perturbation", "fog"]]
    assert model.browser["docs"]["categories"] == [[0], [0], [0], [1], [1], []]
    assert model.shown.startswith("All 7 answers whose verdict changed, and all 1 ")
    assert model.pictures == "No images were given (--images)."


def test_the_answer_is_the_one_that_was_given_beside_the_one_that_is_compared(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", {"gqa": [line(0, "Yes.", 1.0)]}, "base")
    run = write_run(tmp_path / "run", {"gqa": [line(0, "NO!", 0.0)]}, "run")
    data = page_of(compared(base, run)).data
    texts, docs, rows = data["texts"], data["docs"], data["rows"]
    assert [texts[docs[name][0]] for name in ("answer", "prediction")] == ["Yes.", "yes"]
    assert [texts[rows[name][0]] for name in ("answer", "prediction")] == ["NO!", "no"]
    assert (docs["score"], rows["score"]) == ([1], [0])


def test_the_table_says_what_the_comparison_says(small: Study, model: PageModel) -> None:
    page = Page(render(model))
    rows = [row for run in small.comparison.runs for row in run.shown_rows]
    values = [a["data-value"] for tag, a in page.tags if tag == "td" and "data-value" in a]
    shown = [float(value) if value else None for value in values]
    columns = len(shown) // len(rows)
    assert columns == 8
    for i, row in enumerate(rows):
        record = row.record()
        names = ("n", "score_baseline", "score_run", "drop", "dr", "ndr", "pdr", "mcnemar_p")
        assert shown[columns * i : columns * (i + 1)] == [record[name] for name in names]
    assert [a["title"] for tag, a in page.tags if tag == "th" and "title" in a] == [row.run for row in rows]


def test_excess_dr_has_a_column_when_there_is_a_rerun(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, {"gqa": [line(0, "a", 1.0)]}, "m") for name in ("base", "again")]
    run = write_run(tmp_path / "run", {"gqa": [line(0, "b", 0.0)]}, "other")
    page = page_of(compared(paths[0], run, rerun=paths[1]))
    assert "excess DR" in "".join(page.texts["th"]) + str(page.tags)
    values = [a["data-value"] for tag, a in page.tags if tag == "td" and "data-value" in a]
    assert values[-1] == "1.0"


def test_nothing_comes_from_outside(model: PageModel) -> None:
    page = Page(render(model))
    for tag, attributes in page.tags:
        assert not set(attributes) & {"style", "srcset", "action", "background", "poster", "srcdoc"}, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(model: PageModel) -> None:
    page = Page(render(model))
    ((style,), (data, script)) = page.texts["style"], page.texts["script"]

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert page.policy.split("; ") == [
        "default-src 'none'",
        f"style-src {digest(style)}",
        f"script-src {digest(script)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert json.loads(data)["runs"]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    study = hostile_study(tmp_path)
    harmless = page_of(small_study(tmp_path / "small"))
    page = page_of(study)
    # the same elements as a page without them, other than the numbers of runs, tasks and figures
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    assert Counter(tag for tag, _ in page.tags)["script"] == 2
    assert len([a for tag, a in page.tags if tag == "img"]) == 2  # one figure, light and dark
    texts = page.data["texts"]
    for text in HOSTILE:
        assert text.replace("\ud800", "?") in texts
    assert page.data["tasks"] == ["<img src=x onerror=window.hacked=1>", "plain"]
    assert page.texts["title"] == ["Divergence from <b>base (a=<script>window.hacked=1<)"]


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_element_is_json_and_nothing_else(text: str) -> None:
    written = json_for_script({text: [text]})
    assert not re.search("[<>&\u2028\u2029]", written)
    clean = text.replace("\ud800", "?")
    assert json.loads(written) == {clean: [clean]}
    with pytest.raises(ValueError, match="JSON compliant"):
        json_for_script([float("nan")])


def test_a_place_holder_in_the_data_is_not_filled_in(tmp_path: Path) -> None:
    rows = [line(0, "{{script}}", 1.0, input="{{data}} {{style}}")]
    base = write_run(tmp_path / "base", {"gqa": rows}, "base")
    run = write_run(tmp_path / "run", {"gqa": [line(0, "b", 0.0, input="{{data}} {{style}}")]}, "{{policy}}")
    data = page_of(compared(base, run)).data
    assert "{{data}} {{style}}" in data["texts"]
    assert "{{script}}" in data["texts"]


def test_the_script_never_makes_markup_of_text() -> None:
    script = (ASSETS / "logic.js").read_text() + (ASSETS / "app.js").read_text()
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser")
    assert [word for word in forbidden if word in script] == []
    assert not re.search(r"</(script|style)|<!--", script + (ASSETS / "style.css").read_text(), re.IGNORECASE)


def test_the_same_runs_give_the_same_page(small: Study, model: PageModel) -> None:
    assert render(html_model(small.comparison, small.pairs)) == render(model)


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", {"gqa": [line(0, "x" * (LONGEST + 1), 1.0)]}, "base")
    run = write_run(tmp_path / "run", {"gqa": [line(0, "y" * LONGEST, 0.0)]}, "run")
    texts = page_of(compared(base, run)).data["texts"]
    assert "y" * LONGEST in texts
    assert f"{'x' * LONGEST} … (cut: {LONGEST + 1} characters in all)" in texts


def test_document_numbers_beyond_those_of_javascript_are_exact(tmp_path: Path) -> None:
    number = 2**62 + 1
    base = write_run(tmp_path / "base", {"gqa": [line(number, "a", 1.0)]}, "base")
    run = write_run(tmp_path / "run", {"gqa": [line(number, "b", 0.0)]}, "run")
    assert page_of(compared(base, run)).data["docs"]["id"] == [str(number)]


def test_no_change_at_all_is_a_page_too(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, {"gqa": [line(0, "a", 1.0)]}, name) for name in ("base", "run")]
    page = page_of(compared(*paths))
    assert page.data["rows"]["doc"] == []
    assert "All 0 answers" in "".join(page.texts["p"])


class TestTooMany:
    def test_changes_without_a_flip_go_first(self, small: Study) -> None:
        choice = choose(small.pairs.parts, 7)
        assert (choice.flips, choice.changed, choice.shown_flips, choice.shown_changed) == (7, 1, 7, 0)

    def test_then_documents_with_all_their_flips(self, small: Study) -> None:
        choice = choose(small.pairs.parts, 4)
        shown = wanted_documents(small.pairs.parts, choice)
        every = wanted_documents(small.pairs.parts, choose(small.pairs.parts, 7))
        assert 0 < sum(shown.values()) == choice.shown_flips <= 4
        assert all(every[key] == count for key, count in shown.items())

    def test_the_page_says_so(self, small: Study) -> None:
        model = html_model(small.comparison, small.pairs, most_rows=4)
        assert re.match(r"[1-4] of 7 answers whose verdict changed \(those of documents drawn", model.shown)
        assert "0 of 1 that changed without" in model.shown
        assert "pairs.csv has all" in model.shown


def test_twenty_thousand_flips_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    study = large_study(tmp_path)
    model = html_model(study.comparison, study.pairs)
    path = tmp_path / "report.html"
    write_html(path, model)
    assert len(model.browser["rows"]["doc"]) == 20_000
    assert path.stat().st_size < 3_000_000
    assert model.shown.startswith("All 20,000 answers")


class TestWriting:
    def test_an_older_page_stays_when_the_new_one_cannot_be_written(self, tmp_path: Path, model: PageModel) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(OutputError, match="cannot be written"):
            write_html(tmp_path / "folder", model)
        with pytest.raises(OutputError, match="No such file"):
            write_html(tmp_path / "missing" / "report.html", model)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_nothing_else_is_left(self, tmp_path: Path, model: PageModel) -> None:
        write_html(tmp_path / "report.html", model)
        write_html(tmp_path / "report.html", model)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(model)


class TestFigureData:
    def test_kept_tokens_and_speed_by_hand(self, model: PageModel) -> None:
        # four layers: 100, 100, 50, 50 tokens of 100, and 100, 100, 20, 20; 30 ms against 20 and 10
        assert model.data is not None
        costs = model.data.costs.set_index("run")
        # the other task logs neither, and a mean over tasks needs both
        assert costs[["tokens", "speedup"]].isna().all().all()

    def test_of_one_task(self, tmp_path: Path) -> None:
        study = small_study(tmp_path)
        paths = [tmp_path / name for name in ("base", "one", "two")]
        one_task = compared(*paths, tasks=["gqa"])
        data = html_model(one_task.comparison, one_task.pairs).data
        assert data is not None
        assert data.costs["tokens"].tolist() == pytest.approx([0.75, 0.6])
        assert data.costs["speedup"].tolist() == pytest.approx([1.5, 3.0])
        assert data.costs["ndr"].tolist() == pytest.approx([3 / 6, 2 / 6])
        assert study.pairs.tasks == ["gqa", "some_task"]

    def test_overlap_and_membership_of_each_task(self, model: PageModel) -> None:
        assert model.data is not None
        expected = {"gqa": [4, 3, 2, 2], "some_task": [1, 0, 1, 0]}
        assert list(model.data.overlap) == list(expected)
        for task, numbers in expected.items():
            table = model.data.overlap[task].set_index(["method", "other"])
            assert table.loc[("model_one", "model_two"), ["n", "n_method", "n_other", "both"]].tolist() == numbers
        counts = {
            task: Counter(map(tuple, table.to_numpy(dtype=bool).tolist()))
            for task, table in model.data.membership.items()
        }
        assert counts == {
            "gqa": {(True, True): 2, (True, False): 1, (False, False): 3},
            "some_task": {(False, True): 1},
        }
        assert model.data.left_out == 0

    def test_a_task_of_one_run_has_no_overlap(self, tmp_path: Path) -> None:
        small_study(tmp_path)
        (lacking,) = (tmp_path / "two").rglob("*_samples_some_task.jsonl")
        lacking.unlink()
        found = compared(*(tmp_path / name for name in ("base", "one", "two")), accept=["task"])
        data = html_model(found.comparison, found.pairs).data
        assert data is not None
        assert list(data.overlap) == list(data.membership) == ["gqa"]

    def test_margins_of_samples_that_have_one(self, model: PageModel) -> None:
        assert model.data is not None
        table = model.data.margins["model_one"]
        assert table["n"].sum() == 6
        assert (table["n"] * table["rate"]).sum() == pytest.approx(4)


def test_a_page_has_no_section_on_reliability_unless_asked(model: PageModel) -> None:
    page = render(model)
    assert 'id="reliability"' not in page
    assert "#reliability" not in page
    assert "{{" not in page[: page.index("<script")]
