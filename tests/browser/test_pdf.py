"""`make pdf`: the book as one page, and that page on paper."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import pdf


@pytest.fixture(scope="module", autouse=True)
def built():
    if not (pdf.HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")


def test_all_pages_are_in_one_and_every_link_within_it_leads_somewhere():
    text = pdf.one_page(pdf.PAGES)
    ids = re.findall(r'<[^<>]*?\sid="([^"]+)"', text)
    assert all(pdf.slug(page) in ids for page in pdf.PAGES)
    articles = text[text.index('<article class="bd-article"') : text.rindex("</article>")]
    inner = re.findall(r'\sid="([^"]+)"', articles)
    assert len(inner) == len(set(inner))  # no two pages share an anchor
    assert {link for link in re.findall(r'href="#([^"]+)"', articles)} <= set(ids)
    assert not re.findall(r'href="(?!https?:|#|mailto:)[^"]*\.html', articles)
    views = re.findall(r'"model_id": "([^"]+)"', articles)
    assert (
        views
        and len(views) == len(set(views))
        and all(f'"{view}": {{' in articles for view in views)
    )


def test_two_pages_are_printed_with_an_outline(browser, tmp_path):
    out = tmp_path / "part.pdf"
    pdf.print_book(out, browser, ["book/intro.html", "notebooks/05_safe_denominators.html"])
    data = out.read_bytes()
    assert (
        data.startswith(b"%PDF-") and b"/Outlines" in data and b"/StructTreeRoot" in data
    )  # bookmarks, and tags for screen readers
    assert len(re.findall(rb"/Type\s*/Page\b", data)) > 6
    assert not (pdf.HTML / "book" / "whole-book.html").exists()


def test_what_is_unfolded_is_there_at_once_and_long_tables_go_on_over_the_page(open_page):
    page = open_page("notebooks/16_limits.html")
    page.emulate_media(media="print")
    seen = page.evaluate("""() => { const folds = [...document.querySelectorAll('details.hide')];
        folds.forEach((fold) => { fold.open = true; });
        return folds.map((fold) => getComputedStyle(fold.querySelector('.cell_input')).opacity); }""")
    assert len(seen) >= 2 and set(seen) == {"1"}
    page.wait_for_function("document.querySelector('.katlib-table')")
    around = page.evaluate("""() => { const found = []; for (let node = document.querySelector('.katlib-table'); !node.matches('article'); node = node.parentElement)
        found.push(getComputedStyle(node)); return found.map((style) => [style.overflowX, style.breakInside, style.containerType]); }""")
    assert {tuple(style) for style in around} == {("visible", "auto", "normal")}
