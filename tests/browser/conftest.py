"""Headless Chromium on the built book, opened from file:// with the network off."""

import shutil
from pathlib import Path

import live
import pdf
import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
LIVE = ROOT / "book" / "_static" / "live.js"
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
def chromium():
    """Headless Chromium, with or without a built book."""
    path = executable()
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def browser(chromium):
    skip_without_the_book()
    return chromium


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
def new_page(chromium):
    """A function that opens an empty page in a window of its own.

    After the test, nothing may have been requested from the network, and nothing may have gone
    wrong.
    """
    contexts = []
    faults: list[str] = []

    def new(width: int, height: int = 900, **options):
        viewport = {"width": width, "height": height}
        context = chromium.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        collect_errors(page, faults)
        collect_requests_to_the_network(page, faults)
        return page

    yield new
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def show_figure(new_page):
    """A function that opens a page of one live figure, which its widget need not be built into."""

    def show_(widget, width: int = 720, height: int = 900, theme: str = "light", **options):
        page = new_page(width, height, **options)
        script = LIVE.read_text(encoding="utf-8")
        page.set_content(
            f'<html lang="en" data-theme="{theme}"><head><meta name="viewport" '
            f'content="width=device-width"></head><body>{live.html(widget, "a")}'
            f"<script>{script}</script></body></html>"
        )
        page.locator('div[data-live="ready"]').wait_for()
        page.wait_for_timeout(100)
        return page.locator(".katlib-live")

    return show_


@pytest.fixture
def open_page(browser, new_page):
    """A function that opens a page of the book."""

    def open_(path: str, width: int = 1200, height: int = 900, **options):
        page = new_page(width, height, **options)
        page.set_default_timeout(120_000)
        page.goto((HTML / path).as_uri())
        return page

    return open_
