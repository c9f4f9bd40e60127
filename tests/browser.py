"""A real Chromium for tests of pages, and axe-core, which finds what people with disabilities cannot use."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).resolve().parent.parent / ".axe" / "axe.min.js"
SCHEMES, WIDTHS = ("light", "dark"), (1400, 380)  # pixels
SEVERE = ("serious", "critical")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium, or Chrome")
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: make axe")


@contextmanager
def browsing(**options: Any) -> Iterator[Any]:
    """A page of a new browser; ``options`` as Playwright's ``new_page`` takes them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(**options)
        browser.close()


def faults(page: Any) -> list[str]:
    """What axe-core calls serious or critical on a page as it stands, a line each."""
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{violation['id']} ({violation['impact']}): {node['html'][:160]} {node['failureSummary'][:300]}"
        for violation in found["violations"]
        if violation["impact"] in SEVERE
        for node in violation["nodes"]
    ]


def is_scrolled_sideways(page: Any) -> bool:
    """Whether a page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
