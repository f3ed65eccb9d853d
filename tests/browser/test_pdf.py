"""`make pdf`: the book as one page, and that page on paper."""

import re

import pdf
import pytest

pytestmark = pytest.mark.book

ANCHOR = r'\sid="([^"]+)"'


@pytest.fixture(scope="module", autouse=True)
def built():
    if not (pdf.HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")


# ---- the book as one page


@pytest.fixture(scope="module")
def whole_book(built):
    return pdf.one_page(pdf.PAGES)


@pytest.fixture(scope="module")
def articles(whole_book):
    """The part of the one page that comes from the pages."""
    start = whole_book.index('<article class="bd-article"')
    return whole_book[start : whole_book.rindex("</article>")]


def test_all_pages_are_in_one(whole_book):
    anchors = re.findall(rf"<[^<>]*?{ANCHOR}", whole_book)
    assert all(pdf.slug(page) in anchors for page in pdf.PAGES)


def test_no_two_pages_share_an_anchor(articles):
    anchors = re.findall(ANCHOR, articles)
    assert len(anchors) == len(set(anchors))


def test_every_link_within_the_book_leads_somewhere(whole_book, articles):
    anchors = re.findall(rf"<[^<>]*?{ANCHOR}", whole_book)
    assert set(re.findall(r'href="#([^"]+)"', articles)) <= set(anchors)


def test_no_link_leads_to_a_page_of_its_own(articles):
    assert not re.findall(r'href="(?!https?:|#|mailto:)[^"]*\.html', articles)


def test_every_live_figure_has_a_state_of_its_own(articles):
    views = re.findall(r'"model_id": "([^"]+)"', articles)
    assert views
    assert len(views) == len(set(views))
    assert all(f'"{view}": {{' in articles for view in views)


def test_a_link_to_another_page_leads_to_its_article():
    body = '<a href="../notebooks/05_safe_denominators.html#poles">poles</a>'
    pages = ["book/intro.html", "notebooks/05_safe_denominators.html"]
    redirected = pdf.redirect_links(body, "book/intro.html", pages)
    assert redirected == '<a href="#05_safe_denominators--poles">poles</a>'


@pytest.mark.parametrize(
    "link", ["https://example.org/a.html", "//example.org/a.html", "../_static/x.pdf", "other.html"]
)
def test_a_link_out_of_the_book_stays(link):
    body = f'<a href="{link}">there</a>'
    assert pdf.redirect_links(body, "book/intro.html", ["book/intro.html"]) == body


# ---- on paper


@pytest.fixture(scope="module")
def two_pages(browser, tmp_path_factory):
    """Two pages of the book as a PDF."""
    out = tmp_path_factory.mktemp("pdf") / "part.pdf"
    pages = ["book/intro.html", "notebooks/05_safe_denominators.html"]
    pdf.print_book(out, browser, pages)
    return out.read_bytes()


@pytest.mark.slow
def test_a_pdf_is_printed(two_pages):
    assert two_pages.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", two_pages)) > 6


@pytest.mark.slow
def test_the_pdf_has_bookmarks(two_pages):
    assert b"/Outlines" in two_pages


@pytest.mark.slow
def test_the_pdf_has_tags_for_screen_readers(two_pages):
    assert b"/StructTreeRoot" in two_pages


@pytest.mark.slow
def test_nothing_is_left_beside_the_books_pages(two_pages):
    assert not (pdf.HTML / "book" / "whole-book.html").exists()


@pytest.fixture
def printed_page(open_page):
    page = open_page("notebooks/16_limits.html")
    page.emulate_media(media="print")
    return page


def test_what_is_unfolded_is_seen_at_once(printed_page):
    opacities = printed_page.evaluate("""() => {
        const folds = [...document.querySelectorAll('details.hide')];
        for (const fold of folds) fold.open = true;
        return folds.map((fold) => getComputedStyle(fold.querySelector('.cell_input')).opacity);
    }""")
    assert len(opacities) >= 2
    assert set(opacities) == {"1"}


def test_long_tables_go_on_over_the_page(printed_page):
    printed_page.wait_for_function("document.querySelector('.katlib-table')")
    styles = printed_page.evaluate("""() => {
        const styles = [];
        let node = document.querySelector('.katlib-table');
        for (; !node.matches('article'); node = node.parentElement) {
            const style = getComputedStyle(node);
            styles.push([style.overflowX, style.breakInside, style.containerType]);
        }
        return styles;
    }""")
    assert {tuple(style) for style in styles} == {("visible", "auto", "normal")}
