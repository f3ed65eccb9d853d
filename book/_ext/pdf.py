"""Prints the built book as one PDF with headless Chromium: `make pdf`, after `make book`.

    python book/_ext/pdf.py [FILE]                      default: build/the-kat-book.pdf

All pages become one: their articles under each other, with links and live figures that lead to the same places as before.
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
PAGES = [
    f"{page}.html"
    for page in re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
]


def slug(path: str) -> str:
    return Path(path).stem


def article(path: str, pages: list[str]) -> str:
    """One page's article, its anchors and widgets named after the page, its links to other pages made links to their articles."""
    text = (HTML / path).read_text(encoding="utf-8")
    body = re.search(r'<article class="bd-article"[^>]*>(.*?)</article>', text, re.S)[1]
    name = slug(path)
    body = re.sub(r'(<[^<>]*?\s)id="([^"]+)"', rf'\1id="{name}--\2"', body)
    body = re.sub(r'(<[^<>]*?\s)(aria-labelledby|for)="([^"]+)"', rf'\1\2="{name}--\3"', body)

    def target(match):
        parts = urllib.parse.urlsplit(match[1])
        if parts.scheme or match[1].startswith("//"):
            return match[0]
        other = ((HTML / path).parent / parts.path).resolve() if parts.path else HTML / path
        other = other.relative_to(HTML).as_posix() if other.is_relative_to(HTML) else ""
        if other not in pages:
            return match[0]
        return f'href="#{slug(other)}' + (f'--{parts.fragment}"' if parts.fragment else '"')

    body = re.sub(r'href="([^"]+)"', target, body)

    def renamed(match):
        data = json.loads(match[2])
        if "state" in data:
            data["state"] = {f"{name}-{key}": value for key, value in data["state"].items()}
        else:
            data["model_id"] = f"{name}-{data['model_id']}"
        return match[1] + json.dumps(data).replace("</", "<\\/") + match[3]

    widgets = (
        r'(<script type="application/vnd\.jupyter\.widget-(?:state|view)\+json">)(.*?)(</script>)'
    )
    body = re.sub(widgets, renamed, body, flags=re.S)
    if "widget-state+json" not in body:  # a notebook's states stand behind its article
        body += "".join(
            re.sub(widgets, renamed, m[0], flags=re.S)
            for m in re.finditer(widgets.replace("state|view", "state"), text, re.S)
        )
    return f'<section class="printed-page" id="{name}">{body}</section>'


def one_page(pages: list[str]) -> str:
    """The whole book as one HTML page, in the frame of its first page, beside which it has to lie."""
    frame = (HTML / pages[0]).read_text(encoding="utf-8")
    titles = [
        re.sub(
            "<.*?>",
            "",
            re.search(
                r"<h1>(.*?)(?:<a class=\"headerlink\".*?)?</h1>",
                (HTML / page).read_text(encoding="utf-8"),
                re.S,
            )[1],
        )
        for page in pages
    ]
    titled, contents = dict(zip(pages, ["About this book", *titles[1:]])), ""
    for caption, file in re.findall(
        r"caption: (.+)|(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8")
    ):
        page = f"{file}.html"
        contents += (
            f"<li class='printed-part'>{caption}</li>"
            if caption
            else f'<li><a href="#{slug(page)}">{titled[page]}</a></li>'
            if page in titled
            else ""
        )
    contents = f'<nav class="printed-contents"><p class="printed-title">{titles[0]}</p><ul>{contents}</ul></nav>'
    articles = contents + "".join(article(page, pages) for page in pages)
    head, rest = frame.split('<article class="bd-article"', 1)
    states = r'<script type="application/vnd\.jupyter\.widget-state\+json">.*?</script>'
    return (
        head
        + '<article class="bd-article">'
        + articles
        + re.sub(states, "", rest[rest.index("</article>") :], flags=re.S)
    )


def chromium() -> str | None:
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


READY = """() => document.readyState === 'complete' && !document.querySelector('script[type$="widget-view+json"]:not(:has(+ [data-live]))')
    && !(window.MathJax?.startup?.promise && !window.mathsDone && (MathJax.startup.promise.then(() => window.mathsDone = true), true))"""


def print_book(out: Path, browser, pages: list[str] = PAGES) -> None:
    whole = HTML / Path(pages[0]).parent / "whole-book.html"
    whole.write_text(one_page(pages), encoding="utf-8")
    try:
        page = browser.new_page(
            color_scheme="light", viewport={"width": 800, "height": 1100}, offline=True
        )
        page.set_default_timeout(600_000)
        page.goto(whole.as_uri())
        page.wait_for_function(READY)
        page.evaluate("""() => { Object.assign(document.documentElement.dataset, { theme: 'light', mode: 'light' });
            document.querySelectorAll('a.headerlink, #jb-print-docs-body').forEach((node) => node.remove());       // the theme's title and contents of one page
            for (const fold of document.querySelectorAll('details')) if (/@title Solution/.test(fold.textContent) || fold.matches('.sd-dropdown')) fold.open = true;
            document.querySelectorAll('details.hide .expanded').forEach((node) => node.textContent = 'A solution'); }""")
        out.parent.mkdir(parents=True, exist_ok=True)
        number = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'
        page.pdf(
            path=str(out),
            format="A4",
            scale=0.85,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=number,
            margin={"top": "16mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            tagged=True,
            outline=True,
        )
        page.close()
    finally:
        whole.unlink()


def main() -> None:
    from playwright.sync_api import sync_playwright

    if not chromium() or not (HTML / "index.html").exists():
        sys.exit(
            "make pdf needs Chromium (Debian's package `chromium`, or Chrome) and the built book (make book)"
        )
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "the-kat-book.pdf"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        print_book(out, browser)
        browser.close()
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
