"""Time of the report's page with 20,000 flips in Chromium, against a table of the same rows by pandas' `to_html`.

    python benchmarks/page_speed.py               # 5,000 documents under 4 runs
    python benchmarks/page_speed.py --documents 12500

Needs what tests/browser needs: selenium, chromium, chromium-driver. Both pages hold task, document, run, question, both
answers and target of every flip and are opened from a file; the rival filters as such tables are filtered, by hiding
the rows whose text lacks a word. Numbers are medians of five: milliseconds until the page is loaded and painted, and
milliseconds from typing a word until the layout is up to date. Fails if the page is not faster in both, or if one of
them takes more than a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from lmms_eval_stability.report.html import PageModel, html_model, write_html
from tests.browser.conftest import Browser, chromium_driver
from tests.study.report.pages import large_study

LIMIT_MS = 1000
WORDS = ("question 49", "answer 96", "zzz", "e")
LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
OURS = """
const search = document.getElementById('search'), start = performance.now();
search.value = arguments[0];
search.dispatchEvent(new Event('input'));
document.body.offsetHeight;
return performance.now() - start;
"""
RIVAL = """
const start = performance.now();
for (const row of document.querySelectorAll('tbody tr')) {
  row.style.display = row.textContent.toLowerCase().includes(arguments[0]) ? '' : 'none';
}
document.body.offsetHeight;
return performance.now() - start;
"""


def rival_table(model: PageModel) -> pd.DataFrame:
    """One line per flip with the texts that our page shows."""
    data = model.browser
    docs, rows = pd.DataFrame(data["docs"]), pd.DataFrame(data["rows"])
    texts = pd.Series(data["texts"])
    joined = docs.iloc[rows["doc"]].reset_index(drop=True)
    columns = {"task": joined["task"].map(dict(enumerate(data["tasks"]))), "document": joined["id"]}
    columns |= {"run": rows["run"].map(dict(enumerate(data["runs"])))}
    columns |= {name: texts.iloc[joined[name]].to_numpy() for name in ("question", "answer", "target")}
    return pd.DataFrame(columns | {"answer of the run": texts.iloc[rows["answer"]].to_numpy()})


def measured(browser: Browser, page: Path, script: str) -> tuple[float, float]:
    """Median milliseconds to load, and to filter."""
    loads, filters = [], []
    for _ in range(5):
        browser.open(page, ready=script == OURS)
        loads.append(float(browser.js(LOADED)))
        filters += [float(browser.js(script, word)) for word in WORDS]
    return median(loads), median(filters)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5_000)
    documents = parser.parse_args().documents
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = large_study(folder / "runs", documents)
        model = html_model(study.comparison, study.pairs)
        write_html(folder / "page.html", model)
        rival_table(model).to_html(folder / "rival.html")
        driver = chromium_driver()
        try:
            browser = Browser(driver)
            found = {
                "report.html": (folder / "page.html", *measured(browser, folder / "page.html", OURS)),
                "pandas to_html": (folder / "rival.html", *measured(browser, folder / "rival.html", RIVAL)),
            }
        finally:
            driver.quit()
        print(f"{len(model.browser['rows']['doc']):,} flips")
        for what, (path, load, search) in found.items():
            print(f"{what:<16} {path.stat().st_size / 1e6:5.1f} MB   load {load:7.0f} ms   filter {search:7.1f} ms")
    (_, load, search), (_, other_load, other_search) = found.values()
    print(f"ratio            load {other_load / load:.1f}, filter {other_search / search:.1f}")
    return int(not (load < min(LIMIT_MS, other_load) and search < min(LIMIT_MS, other_search)))


if __name__ == "__main__":
    sys.exit(main())
