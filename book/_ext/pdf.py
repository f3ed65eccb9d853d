"""Prints the built book as one PDF with headless Chromium: `make pdf`, after `make book`.

    python book/_ext/pdf.py [FILE]

The default file is build/the-kat-book.pdf. All pages become one, with their articles one after the
other. Links lead to the same places as before, and live figures are drawn as on their own pages.
"""

import json
import re
import shutil
import sys
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def table_of_contents() -> list[tuple[str, str]]:
    """The entries of _toc.yml in their order: ("caption", words) or ("page", path in HTML)."""
    text = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    entries = re.findall(r"caption: (.+)|(?:root|file): (\S+)", text)
    return [
        ("caption", caption) if caption else ("page", f"{file}.html") for caption, file in entries
    ]


PAGES = [text for kind, text in table_of_contents() if kind == "page"]


def read(path: str) -> str:
    return (HTML / path).read_text(encoding="utf-8")


# ---- one page's article


def slug(path: str) -> str:
    """The name of a page within the one page, which begins the names of its anchors."""
    return Path(path).stem


def article(path: str, pages: list[str]) -> str:
    """One page's article.

    Its anchors and widgets are named after the page, and its links to other pages lead to their
    articles.
    """
    page = read(path)
    name = slug(path)
    body = re.search(r'<article class="bd-article"[^>]*>(.*?)</article>', page, re.S)[1]
    body = rename_anchors(body, name)
    body = redirect_links(body, path, pages)
    body = rename_widgets(body, name)
    if "widget-state+json" not in body:
        # a notebook's widget states follow its article
        body += "".join(rename_widgets(states, name) for states in widget_states(page))
    return f'<section class="printed-page" id="{name}">{body}</section>'


def rename_anchors(body: str, name: str) -> str:
    body = re.sub(r'(<[^<>]*?\s)id="([^"]+)"', rf'\1id="{name}--\2"', body)
    return re.sub(r'(<[^<>]*?\s)(aria-labelledby|for)="([^"]+)"', rf'\1\2="{name}--\3"', body)


def redirect_links(body: str, path: str, pages: list[str]) -> str:
    """Makes links to the book's pages links to their articles; other links stay."""

    def redirected(match: re.Match) -> str:
        link = match[1]
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or link.startswith("//"):
            return match[0]
        target = linked_page(path, parts.path)
        if target not in pages:
            return match[0]
        anchor = f"--{parts.fragment}" if parts.fragment else ""
        return f'href="#{slug(target)}{anchor}"'

    return re.sub(r'href="([^"]+)"', redirected, body)


def linked_page(path: str, link: str) -> str:
    """The page that a relative link on the page `path` leads to; empty outside of the book."""
    if not link:
        return path
    target = ((HTML / path).parent / link).resolve()
    return target.relative_to(HTML).as_posix() if target.is_relative_to(HTML) else ""


def widget_script(kinds: str) -> re.Pattern:
    """The script elements in which a page keeps its widgets: `kinds` is state, view or both."""
    opening = rf'<script type="application/vnd\.jupyter\.widget-(?:{kinds})\+json">'
    return re.compile(rf"({opening})(.*?)(</script>)", re.S)


def widget_states(page: str) -> list[str]:
    return [match[0] for match in widget_script("state").finditer(page)]


def rename_widgets(body: str, name: str) -> str:
    """Names widgets after their page: different notebooks number theirs alike."""

    def renamed(match: re.Match) -> str:
        data = json.loads(match[2])
        if "state" in data:
            data["state"] = {f"{name}-{key}": state for key, state in data["state"].items()}
        else:
            data["model_id"] = f"{name}-{data['model_id']}"
        return match[1] + json.dumps(data).replace("</", "<\\/") + match[3]

    return widget_script("state|view").sub(renamed, body)


# ---- the one page


def one_page(pages: list[str]) -> str:
    """The whole book as one HTML page.

    It has the frame of the book's first page, and has to lie beside it.
    """
    frame = read(pages[0])
    head, rest = frame.split('<article class="bd-article"', 1)
    foot = widget_script("state").sub("", rest[rest.index("</article>") :])
    articles = "".join(article(path, pages) for path in pages)
    return f'{head}<article class="bd-article">{contents(pages)}{articles}{foot}'


def contents(pages: list[str]) -> str:
    """The title of the book, and a list of links to its pages by their parts."""
    titles = {path: title(path) for path in pages}
    book_title = titles[pages[0]]
    titles[pages[0]] = "About this book"
    entries = []
    for kind, text in table_of_contents():
        if kind == "caption":
            entries.append(f"<li class='printed-part'>{text}</li>")
        elif text in titles:
            entries.append(f'<li><a href="#{slug(text)}">{titles[text]}</a></li>')
    return (
        f'<nav class="printed-contents"><p class="printed-title">{book_title}</p>'
        f"<ul>{''.join(entries)}</ul></nav>"
    )


def title(path: str) -> str:
    """The page's heading as plain text."""
    heading = re.search(r"<h1>(.*?)(?:<a class=\"headerlink\".*?)?</h1>", read(path), re.S)[1]
    return re.sub("<.*?>", "", heading)


# ---- printing


# Whether every live figure and every formula has been drawn.
READY = """() => {
    const { promise } = window.MathJax?.startup ?? {};
    if (promise && !window.mathsDone) {
        promise.then(() => { window.mathsDone = true; });
        return false;
    }
    const unmounted = 'script[type$="widget-view+json"]:not(:has(+ [data-live]))';
    return document.readyState === 'complete' && !document.querySelector(unmounted);
}"""

# The light theme; neither the links beside headings nor the theme's own title and contents, which
# are those of one page; and all solutions unfolded.
PREPARE = """() => {
    Object.assign(document.documentElement.dataset, { theme: 'light', mode: 'light' });
    for (const node of document.querySelectorAll('a.headerlink, #jb-print-docs-body')) {
        node.remove();
    }
    for (const fold of document.querySelectorAll('details')) {
        const isSolution = /@title Solution/.test(fold.textContent);
        if (isSolution || fold.matches('.sd-dropdown')) fold.open = true;
    }
    for (const label of document.querySelectorAll('details.hide .expanded')) {
        label.textContent = 'A solution';
    }
}"""

PAGE_NUMBER = (
    '<div style="font-size: 8px; width: 100%; text-align: center">'
    '<span class="pageNumber"></span></div>'
)


def chromium() -> str | None:
    """The path of the browser, if there is one."""
    paths = [shutil.which(name) for name in BROWSERS]
    return next((path for path in paths if path), None)


def print_book(out: Path, browser, pages: list[str] = PAGES) -> None:
    """Prints these pages into the file `out`; `browser` is Playwright's."""
    whole_book = (HTML / pages[0]).parent / "whole-book.html"
    whole_book.write_text(one_page(pages), encoding="utf-8")
    try:
        print_file(whole_book, out, browser)
    finally:
        whole_book.unlink()


def print_file(path: Path, out: Path, browser) -> None:
    viewport = {"width": 800, "height": 1100}
    page = browser.new_page(color_scheme="light", viewport=viewport, offline=True)
    page.set_default_timeout(600_000)
    page.goto(path.as_uri())
    page.wait_for_function(READY)
    page.evaluate(PREPARE)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.pdf(
        path=str(out),
        format="A4",
        scale=0.85,
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=PAGE_NUMBER,
        margin={"top": "16mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
        # for screen readers, and for a viewer's list of bookmarks
        tagged=True,
        outline=True,
    )
    page.close()


def main() -> None:
    from playwright.sync_api import sync_playwright

    if not chromium() or not (HTML / "index.html").exists():
        sys.exit(
            "make pdf needs Chromium (Debian's package `chromium`, or Chrome) "
            "and the built book (make book)"
        )
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "the-kat-book.pdf"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        print_book(out, browser)
        browser.close()
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
