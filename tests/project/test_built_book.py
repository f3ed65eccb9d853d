"""The built pages load nothing from elsewhere; their links, figures and citations are whole."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [f"book/{name}" for name in ("intro", "live_kat", "notation", "references")] + [
    f"notebooks/{path.stem}" for path in NOTEBOOKS
]
LOADED_BY_LINK = ("stylesheet", "preload", "preconnect", "icon", "modulepreload")

pytestmark = pytest.mark.book


class Page(HTMLParser):
    """What a page loads, what it links to, and its images."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.loads: list[str] = []
        self.links: list[str] = []
        self.images: list[dict] = []
        self.icons: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag in ("script", "img", "iframe", "source") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link" and a.get("rel") in LOADED_BY_LINK:
            self.loads.append(a["href"])
            if "icon" in a["rel"]:
                self.icons.append(a["href"])
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag == "img":
            self.images.append(a)


def read(page: str) -> Page:
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")
    return Page(HTML / f"{page}.html")


@pytest.fixture(params=PAGES)
def page(request):
    return read(request.param)


def test_a_page_loads_nothing_from_elsewhere(page):
    assert page.loads
    elsewhere = [source for source in page.loads if re.match(r"(https?:)?//", source)]
    assert not elsewhere


def test_everything_that_a_page_loads_is_there(page):
    files = [
        source.split("?")[0].split("#")[0]
        for source in page.loads
        if not source.startswith("data:")
    ]
    assert files
    assert not [file for file in files if not (page.path.parent / file).exists()]


def test_mathjax_comes_with_the_book():
    assert any("mathjax" in source for name in PAGES for source in read(name).loads)


def test_links_within_the_book_lead_somewhere(page):
    within = [link for link in page.links if not re.match(r"[a-z]+:|#|//", link)]
    targets = [link.partition("#")[0] for link in within]
    assert not [target for target in targets if not (page.path.parent / target).exists()]


def test_every_figure_of_the_book_has_a_text_alternative():
    figures = [
        image
        for name in PAGES
        for image in read(name).images
        if image.get("src", "").startswith("data:image/svg")
    ]
    assert len(figures) >= 4
    assert not [image for image in figures if len(image.get("alt") or "") <= 20]


def test_the_mark_is_on_every_page(page):
    logos = [image["src"] for image in page.images if "logo__image" in image.get("class", "")]
    assert logos
    assert page.icons
    assert all(source.split("?")[0].endswith("/mark.svg") for source in logos + page.icons)


def test_the_start_page_leads_to_every_notebook():
    links = read("book/intro").links
    assert {f"../notebooks/{path.stem}.html" for path in NOTEBOOKS} <= set(links)


def test_citations_are_resolved(page):
    assert "[?]" not in page.text
    assert "{cite" not in page.text
