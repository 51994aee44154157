"""The page as a reader meets it: from a file, with a keyboard, in light and dark, with many rows and hostile texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.keys import Keys

from lmms_eval_stability.report.html import PageModel, html_model, write_html
from tests.study.report.pages import HOSTILE, compared, line, write_run

from .conftest import Browser, Pages

STATUS, DETAIL = "#status", "#detail"
ACTIVE = "return document.activeElement.id"
CHOSEN = "return document.querySelector('.row[aria-selected=true]').textContent"


class TestOpening:
    @pytest.mark.parametrize("name", ["small", "pictures", "hostile", "large"])
    def test_without_network_or_complaint(self, browser: Browser, pages: Pages, name: str) -> None:
        page = pages.page(name)
        browser.open(page)
        assert browser.js("return document.documentElement.dataset.ready") == "true"
        asked = browser.requests()
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert sum(url.startswith("file:") for url in asked) == 1
        assert browser.logs("browser") == []

    def test_the_policy_stops_what_is_not_of_the_page(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.js(
            "window.hacked = 0; const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
            "document.body.append(s); const d = document.createElement('div');"
            "d.innerHTML = '<img src=x onerror=\"window.hacked = 2\">'; document.body.append(d);"
            "const i = new Image(); i.src = 'https://example.org/a.png'; document.body.append(i)"
        )
        assert browser.js("return window.hacked") == 0
        messages = " ".join(entry["message"] for entry in browser.logs("browser"))
        assert messages.count("Content Security Policy") >= 3

    def test_no_change_at_all(self, browser: Browser, tmp_path: Path) -> None:
        paths = [write_run(tmp_path / name, {"gqa": [line(0, "a", 1.0)]}, name) for name in ("base", "run")]
        study = compared(*paths)
        write_html(tmp_path / "page.html", html_model(study.comparison, study.pairs))
        browser.open(tmp_path / "page.html")
        assert browser.text(STATUS) == "No answer changed."
        assert browser.logs("browser") == []


class TestHostile:
    def test_texts_stay_texts(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("hostile"))
        for _ in range(2 * len(HOSTILE)):
            browser.js("document.getElementById('list').focus()")
            browser.key("j")
        assert browser.js("return window.hacked") is None
        assert browser.js("return document.scripts.length") == 2
        outside = "return document.querySelectorAll('#browser img, #browser svg, #browser b, #browser script').length"
        assert browser.js(outside) == 0
        assert browser.logs("browser") == []

    def test_they_are_shown_as_they_are(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("hostile"))
        n = len(HOSTILE)
        for i in range(n):
            browser.js(
                "location.hash = arguments[0]", f"#plain/{quote(pages.models['hostile'].browser['runs'][0], '')}/{i}"
            )
            browser.js("window.dispatchEvent(new Event('hashchange'))")
            shown = browser.js("return [...document.querySelectorAll('#detail .long')].map(e => e.textContent)")
            wanted = [HOSTILE[(i + k) % n].replace("\ud800", "?") for k in (0, 1, 2, 3)]
            assert [one for one in wanted if one not in shown] == []

    def test_a_search_marks_words_without_making_markup(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("hostile"))
        browser.set("search", "<script>")
        assert browser.js("return document.querySelectorAll('#list mark').length") > 0
        assert browser.js("return document.querySelector('#list mark').textContent") == "<script>"
        assert browser.js("return window.hacked") is None

    def test_every_link_leads_to_its_sample(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("hostile"))
        for _ in range(3):
            browser.js("document.getElementById('list').focus()")
            browser.key("j")
        link = browser.js("return document.querySelector('#detail .link').getAttribute('href')")
        before = browser.text(DETAIL)
        browser.open(pages.page("hostile"), link)
        assert browser.text(DETAIL) == before


def expected(model: PageModel, state: dict[str, Any]) -> int:
    """How many rows a filter leaves, worked out from the model."""
    data = model.browser
    docs, rows, texts = data["docs"], data["rows"], data["texts"]
    count = 0
    for doc, run, flip, answer, prediction in zip(
        *(rows[name] for name in ("doc", "run", "flip", "answer", "prediction")), strict=True
    ):
        fields = [texts[docs[name][doc]] for name in ("question", "target", "answer", "prediction")]
        fields += [texts[answer], texts[prediction]]
        found = all(
            any(word in field.lower() for field in fields) or word == docs["id"][doc]
            for word in state.get("search", "").lower().split()
        )
        count += (
            found
            and state.get("task", str(docs["task"][doc])) in ("", str(docs["task"][doc]))
            and state.get("run", str(run)) in ("", str(run))
            and state.get("direction", "") in ("", {-1: "negative", 1: "positive", 0: "kept"}[flip])
            and (not state.get("category") or int(state["category"]) in docs["categories"][doc])
        )
    return count


class TestFilters:
    def test_by_hand(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        assert browser.text(STATUS) == "8 answers"
        for name, value, left in (
            ("task", "1", 1), ("task", "", 8), ("run", "0", 5), ("direction", "negative", 3), ("category", "1", 0),
            ("direction", "positive", 1), ("direction", "kept", 1), ("category", "", 1), ("search", "SHEEP", 1),
            ("search", "sheep cat", 0),
        ):  # fmt: skip
            browser.set(name, value)
            number = browser.text(STATUS).split()[0].replace("No", "0")
            assert (name, value, int(number)) == (name, value, left)
        browser.js("document.getElementById('reset').click()")
        assert browser.text(STATUS) == "8 answers"

    @pytest.mark.parametrize("seed", range(3))
    def test_any_combination(self, browser: Browser, pages: Pages, seed: int) -> None:
        draw = random.Random(seed)
        page, model = pages.page("small"), pages.models["small"]
        browser.open(page)
        for _ in range(25):
            state = {
                "task": draw.choice(["", "0", "1"]),
                "run": draw.choice(["", "", "0", "1"]),
                "direction": draw.choice(["", "", "negative", "positive", "kept"]),
                "category": draw.choice(["", "", "0", "1"]),
                "search": draw.choice(["", "", "question", "t2", "cat", "3", "o a", "7"]),
            }
            for name, value in state.items():
                browser.set(name, value)
            count = expected(model, state)
            assert len(browser.listed()) == count, state
            assert browser.text(STATUS).startswith(f"{count} " if count else "No answer fits"), state

    def test_words_between_quotes_stay_together(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        browser.set("search", '"question 77:"')
        assert browser.text(STATUS) == "4 of 20,000 answers"

    def test_sorting_by_margin(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))

        def margins() -> list[float]:
            return [float(text.rpartition("margin ")[2]) for text in browser.listed() if "margin" in text]

        browser.set("sort", "closest")
        assert margins() == [0.25, 0.25, 0.5, 0.5, 1, 2, 3]
        assert "some_task 7" in browser.listed()[-1]
        browser.set("sort", "clearest")
        assert margins() == [3, 2, 1, 0.5, 0.5, 0.25, 0.25]
        assert "some_task 7" in browser.listed()[-1]

    def test_sorting_begins_at_the_top(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        browser.js("document.getElementById('list').focus()")
        browser.key(Keys.END)
        browser.set("sort", "clearest")
        assert browser.js("return document.getElementById('list').scrollTop") == 0
        assert browser.js(CHOSEN) == browser.listed()[0]

    def test_a_filter_keeps_the_chosen_answer_if_it_fits(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        browser.js("document.getElementById('list').focus()")
        browser.key(Keys.END)
        chosen = browser.js(CHOSEN)
        browser.set("direction", "positive")
        assert browser.js(CHOSEN) == chosen
        browser.set("direction", "negative")
        assert browser.js(CHOSEN) == browser.listed()[0] != chosen

    def test_sorting_by_how_many_runs_share_it(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.set("sort", "shared")
        assert ["gqa 0" in text or "gqa 1" in text for text in browser.listed()] == [True] * 4 + [False] * 4

    def test_the_table_leads_to_the_answers_of_a_run(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.js("document.querySelectorAll('button.show')[1].click()")
        assert browser.text(STATUS) == "No answer fits (0 of 8)."  # some_task of the first run
        browser.js("document.querySelectorAll('button.show')[0].click()")
        assert browser.text(STATUS) == "5 of 8 answers"

    def test_the_table_sorts_by_its_columns(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        column = "[...document.querySelectorAll('#summary th[scope=col] button')].find(b => b.textContent === 'NDR')"
        values = "return [...document.querySelectorAll('#summary tbody tr')].map(r => Number(r.cells[8].dataset.value))"
        browser.js(f"{column}.click()")
        ascending = browser.js(values)
        browser.js(f"{column}.click()")
        assert ascending == sorted(ascending)
        assert browser.js(values) == sorted(ascending, reverse=True)
        assert browser.js(f"return {column}.closest('th').getAttribute('aria-sort')") == "descending"


class TestKeyboard:
    def test_from_search_to_list_to_sample_and_back(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.key("/")
        assert browser.js(ACTIVE) == "search"
        browser.key("model")
        browser.key(Keys.ESCAPE)
        assert browser.js("return document.getElementById('search').value") == ""
        assert browser.js(ACTIVE) == "search"
        browser.key(Keys.ESCAPE)
        assert browser.js(ACTIVE) == "list"
        browser.key(Keys.ENTER)
        assert browser.js(ACTIVE) == "detail"
        browser.key(Keys.ESCAPE)
        assert browser.js(ACTIVE) == "list"

    def test_moving(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.js("document.getElementById('list').focus()")
        rows = browser.listed()
        for key, place in (
            (Keys.ARROW_DOWN, 1), ("j", 2), ("k", 1), (Keys.ARROW_UP, 0), (Keys.ARROW_UP, 0), (Keys.END, 7),
            ("j", 7), (Keys.HOME, 0), (Keys.PAGE_DOWN, 7), (Keys.PAGE_UP, 0),
        ):  # fmt: skip
            browser.key(key)
            assert browser.js(CHOSEN) == rows[place], key

    def test_letters_typed_into_the_search_move_nothing(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.key("/")
        browser.key("jk/")
        assert browser.js("return document.getElementById('search').value") == "jk/"

    def test_everything_is_reached_by_tabulator_and_seen_there(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        seen = set()
        for _ in range(80):
            browser.key(Keys.TAB)
            seen.add(browser.js(ACTIVE))
            outline = browser.js(
                "const e = document.activeElement; if (e === document.body) return 'auto';"
                "return getComputedStyle(e).outlineStyle"
            )
            assert outline != "none"
        assert {"theme", "task", "run", "direction", "category", "sort", "search", "reset", "list"} <= seen

    def test_what_a_screen_reader_is_told(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        browser.js("document.getElementById('list').focus()")
        for key in (Keys.END, Keys.HOME, Keys.PAGE_DOWN):
            browser.key(key)
            active = browser.js("return document.getElementById('list').getAttribute('aria-activedescendant')")
            row = browser.js(
                "const e = document.getElementById(arguments[0]);"
                "return [e.getAttribute('role'), e.getAttribute('aria-selected'), e.getAttribute('aria-setsize')]",
                active,
            )
            assert row == ["option", "true", "20000"]
        # scrolled out of view, the active row is still there
        browser.js("document.getElementById('list').scrollTop = 900000")
        browser.js("document.getElementById('list').dispatchEvent(new Event('scroll'))")
        browser.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        assert browser.js("return document.getElementById(arguments[0]) !== null", active)


class TestLinks:
    def test_to_any_sample(self, browser: Browser, pages: Pages) -> None:
        page = pages.page("small")
        run = quote(pages.models["small"].browser["runs"][1], "")
        browser.open(page, f"#gqa/{run}/1")
        assert "gqa 1" in browser.js(CHOSEN)
        assert "emu" in browser.text(DETAIL)
        assert browser.js(ACTIVE) == "list"

    def test_filters_that_hide_it_are_cleared(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.set("search", "sheep")
        run = quote(pages.models["small"].browser["runs"][1], "")
        browser.js("location.hash = arguments[0]; window.dispatchEvent(new Event('hashchange'))", f"#gqa/{run}/0")
        assert browser.text(STATUS) == "8 answers"
        assert "gqa 0" in browser.js(CHOSEN)

    def test_the_address_follows_the_choice(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.js("document.getElementById('list').focus()")
        browser.key("j")
        address = browser.js("return location.hash")
        chosen = browser.js(CHOSEN)
        browser.open(pages.page("small"), address)
        assert browser.js(CHOSEN) == chosen

    def test_to_the_last_of_many(self, browser: Browser, pages: Pages) -> None:
        page = pages.page("large")
        run = quote(pages.models["large"].browser["runs"][3], "")
        browser.open(page, f"#some_task/{run}/4999")
        assert "some_task 4999" in browser.js(CHOSEN)
        visible = (
            "const r = document.querySelector('.row[aria-selected=true]').getBoundingClientRect();"
            "const l = document.getElementById('list').getBoundingClientRect();"
            "return r.top >= l.top - 1 && r.bottom <= l.bottom + 1"
        )
        assert browser.js(visible)

    @pytest.mark.parametrize("fragment", ["#gqa/x/999", "#%zz/x/1", "#a/b/c/d", "#figures", "#", "#gqa"])
    def test_to_what_is_not_there(self, browser: Browser, pages: Pages, fragment: str) -> None:
        browser.open(pages.page("small"), fragment)
        missing = fragment == "#gqa/x/999"
        assert browser.text(STATUS).startswith("The linked answer is not in this page" if missing else "8 answers")
        assert len(browser.listed()) == 8
        assert browser.logs("browser") == []


class TestMany:
    def test_only_what_is_in_view_is_in_the_document(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        assert browser.text(STATUS) == "20,000 answers"
        count = "return document.querySelectorAll('.row').length"
        assert 5 < browser.js(count) < 60
        browser.js("const l = document.getElementById('list'); l.scrollTop = l.scrollHeight / 2")
        browser.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        assert 5 < browser.js(count) < 60
        places = browser.js("return [...document.querySelectorAll('.row')].map(r => Number(r.dataset.place))")
        assert any(9_900 < place < 10_100 for place in places)

    def test_the_end_is_reached(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        browser.js("document.getElementById('list').focus()")
        browser.key(Keys.END)
        assert "some_task 4999" in browser.js(CHOSEN)

    def test_a_search_finds_the_one_document(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("large"))
        browser.set("search", "4321:")
        assert browser.text(STATUS) == "4 of 20,000 answers"


class TestPictures:
    def test_small_ones_beside_the_answers(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("pictures"))
        browser.driver.execute_async_script("setTimeout(arguments[0], 200)")
        widths = browser.js("return [...document.querySelectorAll('.row img')].map(i => i.naturalWidth)")
        assert widths == [160] * 7
        assert browser.js("return document.querySelector('#detail img').naturalWidth") == 160

    def test_the_page_says_that_there_are_none(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        assert "No images were given (--images)." in browser.text(".about")
        assert browser.js("return document.querySelectorAll('#browser img').length") == 0


CONTRAST = """
const luminance = (c) => {
  const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const colour = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const c = colour(getComputedStyle(node).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c.slice(0, 3);
  }
  return [255, 255, 255];
};
const bad = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !node.checkVisibility() || node.closest('script, style, noscript')) continue;
  const [a, b] = [luminance(colour(getComputedStyle(node).color).slice(0, 3)), luminance(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push([node.className || node.tagName, ratio]);
}
return bad;
"""


class TestLook:
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_every_text_can_be_read(self, browser: Browser, pages: Pages, theme: str) -> None:
        browser.media(prefers_color_scheme=theme)
        browser.open(pages.page("small"))
        browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
        browser.set("search", "question")
        assert browser.js(CONTRAST) == []

    def test_the_system_decides_until_the_reader_does(self, browser: Browser, pages: Pages) -> None:
        paper = "return getComputedStyle(document.body).backgroundColor"
        shown = (
            "return [...document.querySelectorAll('figure img')].filter(i => i.checkVisibility()).map(i => i.className)"
        )
        browser.media(prefers_color_scheme="dark")
        browser.open(pages.page("small"))
        browser.js("localStorage.clear()")
        browser.open(pages.page("small"))
        dark = browser.js(paper)
        assert set(browser.js(shown)) == {"only-dark"}
        browser.js("document.getElementById('theme').click()")
        assert browser.text("#theme") == "Theme: light"
        assert browser.js(paper) == "rgb(255, 255, 255)"
        assert set(browser.js(shown)) == {"only-light"}
        browser.open(pages.page("small"))
        assert browser.js(paper) == "rgb(255, 255, 255)"
        browser.media(prefers_color_scheme="light")
        browser.js("document.getElementById('theme').click()")
        assert browser.js(paper) == dark
        browser.js("document.getElementById('theme').click()")
        assert browser.text("#theme") == "Theme: auto"
        assert browser.js(paper) == "rgb(255, 255, 255)"

    def test_intervals_are_drawn_on_one_scale(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        for kind in ("dr", "negative", "positive"):
            starts = browser.js(
                "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().left)",
                f"#summary .bar.{kind}",
            )
            assert len(starts) == 6
            assert max(starts) - min(starts) < 0.5
        for width in (900, 1440):
            browser.size(width, 1000)
            cells = "[...document.querySelectorAll('#summary td, #summary th')]"
            assert browser.js(f"return {cells}.filter(e => e.scrollWidth > e.clientWidth).length") == 0

    def test_figures_are_pictures_that_load(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        widths = browser.js("return [...document.querySelectorAll('figure img.only-light')].map(i => i.naturalWidth)")
        assert len(widths) >= 4
        assert min(widths) > 200

    @pytest.mark.parametrize("width", [380, 760, 1440])
    def test_nothing_is_wider_than_the_window(self, browser: Browser, pages: Pages, width: int) -> None:
        browser.size(max(width, 500), 900)  # Chromium's windows are no narrower
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        try:
            for name in ("small", "hostile"):
                browser.open(pages.page(name))
                assert browser.js("return document.documentElement.scrollWidth") <= width
        finally:
            browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_on_paper(self, browser: Browser, pages: Pages) -> None:
        browser.open(pages.page("small"))
        browser.media(media="print", prefers_color_scheme="dark")
        hidden = "return arguments[0].filter(s => document.querySelector(s).checkVisibility())"
        assert browser.js(hidden, ["#list", "#filters", "#theme", "nav"]) == []
        assert browser.js(hidden, ["#summary table", "figure", "#detail"]) == ["#summary table", "figure", "#detail"]
        assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.js(CONTRAST) == []
