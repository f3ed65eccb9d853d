"""Headless Chromium on the built book, opened from file:// with the network off."""

import shutil
from pathlib import Path

import pdf
import pytest

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
FLAGS = [*pdf.FLAGS, "--disable-background-timer-throttling"]


def skip_without_the_book() -> None:
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")


def executable() -> str:
    """The path of Chromium; skips the test where there is none."""
    for name in pdf.BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("no Chromium: install Debian's package `chromium`")


@pytest.fixture(scope="session")
def browser():
    path = executable()
    skip_without_the_book()
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


def collect_errors(page, faults: list[str]) -> None:
    """Adds to `faults` what the page's console and its code complain about from now on."""

    def on_console(message) -> None:
        if message.type == "error":
            faults.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: faults.append(str(error)))


def collect_requests_to_the_network(page, faults: list[str]) -> None:
    def on_request(request) -> None:
        if request.url.startswith(("http", "ws")):
            faults.append(request.url)

    page.on("request", on_request)


@pytest.fixture
def open_page(browser):
    """A function that opens a page of the book.

    After the test, nothing may have been requested from the network, and nothing may have gone
    wrong.
    """
    contexts = []
    faults: list[str] = []

    def open_(path: str, width: int = 1200, height: int = 900, **options):
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        collect_errors(page, faults)
        collect_requests_to_the_network(page, faults)
        page.goto((HTML / path).as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults
