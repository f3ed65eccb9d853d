"""Headless Chromium on the built book, opened from file:// with the network off."""

import shutil
from pathlib import Path

import pytest

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-background-timer-throttling",
]


@pytest.fixture(scope="session")
def browser():
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not chromium:
        pytest.skip("no Chromium: install Debian's package `chromium`")
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """A function that opens a page of the book; afterwards nothing may have been asked of the network, and nothing may have gone wrong."""
    contexts, faults = [], []

    def open_(path: str, width: int = 1200, height: int = 900, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console",
            lambda message: faults.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                faults.append(request.url) if request.url.startswith(("http", "ws")) else None
            ),
        )
        page.goto((HTML / path).as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults
