"""Pages in a real browser, without a network: Debian's Chromium, driven by Playwright."""

import os
import shutil
from pathlib import Path

import pytest

CONTRASTS = Path(__file__).with_name("contrasts.js")
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on this machine: apt-get install chromium")
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def new_page(browser):
    """`new_page(color_scheme="dark", viewport={...})`: an empty page.

    At the test's end no page may have written to the console, thrown, or asked for anything but files,
    data and this machine's own servers, but for console messages with one of the `expected` words.
    """
    contexts, problems, allowed = [], [], []

    def make(expected: tuple[str, ...] = (), **options):
        allowed.extend(expected)
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))

        def route(route):
            url = route.request.url
            if url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")):
                route.continue_()
            else:
                problems.append(f"asked for {url}")
                route.abort()

        context.route("**/*", route)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not [p for p in problems if not any(word in p for word in allowed)]


@pytest.fixture
def low_contrasts():
    """`low_contrasts(page)`: visible texts with too little contrast."""
    return lambda page: page.evaluate(CONTRASTS.read_text())


@pytest.fixture
def is_wider_than_window():
    """`is_wider_than_window(page)`: whether the page as a whole scrolls sideways."""
    return lambda page: page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
