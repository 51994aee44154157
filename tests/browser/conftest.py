"""Pages opened from a file in headless Chromium. Needs selenium, chromium and chromium-driver; nothing is skipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from lmms_eval_stability.report.html import PageModel, html_model, write_html
from tests.study.report.pages import Study, hostile_study, large_study, small_study


class Browser:
    """A window of Chromium, and what it logged and asked for."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, fragment: str = "", ready: bool = True) -> None:
        """Load a page anew, and wait until its script is through; without `ready`, until it is loaded."""
        self.driver.get("about:blank")
        self.logs("browser")
        self.logs("performance")
        self.driver.get(page.resolve().as_uri() + fragment)
        # `get` may return at the load event of the blank page before
        done = "return location.protocol === 'file:' && document.readyState === 'complete'"
        done += " && document.documentElement.dataset.ready === 'true'" if ready else ""
        WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: self.js(done))

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def logs(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(kind)
        return found

    def requests(self) -> list[str]:
        """Addresses of everything that was asked for since the page was opened, data URLs cut short."""
        messages = (json.loads(entry["message"])["message"] for entry in self.logs("performance"))
        return [
            one["params"]["request"]["url"][:60] for one in messages if one["method"] == "Network.requestWillBeSent"
        ]

    def media(self, **features: str) -> None:
        """Emulate what the system prefers; `media="print"` is a printer."""
        kind = features.pop("media", "")
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": listed})

    def size(self, width: int, height: int) -> None:
        self.driver.set_window_size(width, height)

    def key(self, key: str) -> None:
        """Press a key wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def text(self, selector: str) -> str:
        """The text of an element as it is in the document."""
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def set(self, name: str, value: str) -> None:
        """Choose in a filter, or type into the search, as a user does."""
        self.js(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}))",
            name,
            value,
        )

    def listed(self) -> list[str]:
        """The texts of the rows in view, from top to bottom."""
        found: list[str] = self.js(
            "return [...document.querySelectorAll('.row')].sort((a, b) => a.dataset.place - b.dataset.place)"
            ".map(row => row.textContent)"
        )
        return found


def chromium_driver() -> webdriver.Chrome:
    """A headless Chromium that logs what it asks for."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert binary, "no Chromium: apt-get install chromium chromium-driver"
    assert driver, "no chromedriver: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1440,1000"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    window = chromium_driver()
    yield Browser(window)
    window.quit()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """Chromium as it is at the start."""
    chromium.media(prefers_color_scheme="light")
    chromium.size(1440, 1000)
    return chromium


class Pages:
    """The pages of the tests, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, PageModel] = {}

    def page(self, name: str) -> Path:
        path = self.folder / f"{name}.html"
        if name not in self.models:
            study, options = self._study(name)
            self.models[name] = html_model(study.comparison, study.pairs, **options)
            write_html(path, self.models[name])
        return path

    def _study(self, name: str) -> tuple[Study, dict[str, Any]]:
        folder = self.folder / f"{name}-runs"
        if name == "pictures":
            return small_study(folder), {"images": Striped()}
        return {"small": small_study, "hostile": hostile_study, "large": large_study}[name](folder), {}


class Striped:
    """A picture for every document of gqa."""

    name = "test"

    def image(self, task: str, doc_id: int) -> Image.Image | None:
        return Image.new("RGB", (400, 300), (20 * doc_id, 90, 160)) if task == "gqa" else None


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("pages"))
