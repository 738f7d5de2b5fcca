"""A headless Chromium for tests of pages, through Playwright: where it is found, and how a page is opened.

``MILO_RESTORE_CHROMIUM`` names an executable, and ``MILO_RESTORE_CHROMIUM_LIBRARIES`` a folder of the shared libraries
that it may need; `.ci/run` sets both. Otherwise a chromium or google-chrome on the PATH is taken, or the one that
``playwright install chromium`` has downloaded.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

VARIABLE = "MILO_RESTORE_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str:
    """The executable; the test that asks is skipped where there is none."""
    if named := os.environ.get(VARIABLE):
        return named  # if it does not start, the test fails
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        path = driver.chromium.executable_path
    if not Path(path).is_file():
        pytest.skip(f"no Chromium: set {VARIABLE}, or run 'playwright install chromium'")
    return path


@contextmanager
def chromium():
    """A browser, from Playwright; it is closed in the end."""
    sync_playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright
    executable = find_chromium()
    environment = dict(os.environ)
    if libraries := os.environ.get(f"{VARIABLE}_LIBRARIES"):
        environment["LD_LIBRARY_PATH"] = libraries
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--headless=shell"], env=environment
        )
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page from a file, with everything that went wrong on it.

    Attributes:
        page: Playwright's.
        problems: console errors and warnings, uncaught errors, and requests of anything but the file itself.
    """

    def __init__(self, browser, file: Path, *, width=1280, height=900, dark=False, touch=False):
        self.problems: list[str] = []
        self.page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=touch
        )
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.route("**/*", self._route)
        self.url = file.resolve().as_uri()
        self.page.goto(self.url)

    def _route(self, route):
        if route.request.url in (self.url,) or route.request.url.startswith("data:"):
            route.continue_()
        else:
            self.problems.append(f"request of {route.request.url}")
            route.abort()
