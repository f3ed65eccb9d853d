"""Every page of the built book, as a reader's browser shows it: two themes, three widths, without a network."""

import gzip
import json
import re
import shutil
import subprocess
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PAGES = [
    f"{page}.html" for page in re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
]
WIDTHS = (1280, 768, 390)
AXE = "4.14.1"  # of npm's axe-core
LIMIT = 1_500_000  # bytes of a page


@pytest.fixture(scope="module", params=PAGES, ids=lambda path: Path(path).stem)
def path(request):
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")
    return request.param


@pytest.fixture(scope="module")
def shown(browser, path):
    """The page, opened once for all tests of it, and what it asked for and complained about meanwhile."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(240_000)
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("requestfailed", lambda request: page.faults.append(f"{request.url} failed"))
    page.on(
        "console",
        lambda message: page.faults.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.add_init_script("""window.jumps = [];
        new PerformanceObserver((list) => { for (const e of list.getEntries()) for (const s of e.sources)
            if (s.previousRect.height && s.currentRect.height) window.jumps.push([Math.abs(s.currentRect.y - s.previousRect.y), s.node?.textContent?.slice(0, 40)]); }).observe({ type: "layout-shift", buffered: true });""")
    page.goto((HTML / path).as_uri())
    page.wait_for_function("""() => !document.querySelector('script[type$="widget-view+json"]:not(:has(+ [data-live]))')
        && !(window.MathJax?.startup?.promise && !window.mathsDone && (MathJax.startup.promise.then(() => window.mathsDone = true), true))""")
    yield page
    context.close()


def theme(page, name):
    page.evaluate(
        f"Object.assign(document.documentElement.dataset, {{ theme: '{name}', mode: '{name}' }})"
    )


def test_nothing_is_asked_of_the_network_and_nothing_goes_wrong(shown):
    assert not shown.faults
    assert shown.asked and not [
        url for url in shown.asked if not url.startswith(("file:", "data:", "blob:"))
    ]


def test_maths_is_rendered(shown):
    written, drawn, wrong = shown.evaluate("""() => [document.querySelectorAll('.math').length,
        [...document.querySelectorAll('.math')].filter((m) => m.querySelector('mjx-container, svg, math')).length,
        document.querySelectorAll('mjx-merror, [data-mjx-error], .MathJax_Error').length]""")
    assert drawn == written and not wrong
    assert not re.search(
        r"(?<!\\)\$[a-zA-Z\\|\[][^$\n]{0,60}\$|\\\(|\\frac",
        shown.locator("main .bd-article").evaluate(
            "node => { node = node.cloneNode(true); node.querySelectorAll('pre, code, .math, script, style, mjx-container').forEach((n) => n.remove()); return node.textContent; }"
        ),
    )


def test_live_figures_are_alive(shown):
    views = shown.locator('script[type="application/vnd.jupyter.widget-view+json"]').count()
    ready = shown.locator('[data-live="ready"] .katlib-live')
    assert ready.count() == views
    for i in range(views):
        box = ready.nth(i)
        widest = "node => Math.max(0, ...[...node.querySelectorAll('path, rect, line, canvas')].map((n) => n.getBoundingClientRect().width))"
        assert box.evaluate(widest) > 100  # something is drawn
        names = box.evaluate("""node => [...node.querySelectorAll('button, select, input, [role="slider"]')]
            .filter((c) => !(c.getAttribute('aria-label') || c.textContent.trim() || c.labels?.[0]?.textContent.trim())).map((c) => c.outerHTML)""")
        assert not names  # every control has a name
        unreachable = box.evaluate(
            """node => [...node.querySelectorAll('[role="slider"], button:not([role="radio"]), select, input, [role="radio"][aria-checked="true"]')].filter((c) => c.tabIndex < 0).map((c) => c.outerHTML)"""
        )
        assert not unreachable  # and can be reached by keyboard


def test_icons_and_figures_are_there(shown):
    broken = shown.evaluate(
        """() => [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src.slice(0, 80))"""
    )
    assert not broken
    wrong = shown.evaluate("""() => [...document.querySelectorAll('svg.svg-inline--fa')].filter((s) => !s.querySelector('path[d]') || s.querySelector('animate')).map((s) => s.outerHTML)
        .concat([...document.querySelectorAll('i[class*="fa-"]')].map((i) => i.outerHTML))""")
    assert not wrong


def test_no_jump_while_it_loads(shown):
    jumps = shown.evaluate("window.jumps")
    assert max((jump[0] for jump in jumps), default=0) <= 54, sorted(jumps)[
        -5:
    ]  # two lines of text, in pixels


def too_wide(page) -> list:
    """What reaches beyond the window and is not within a part that scrolls by itself; empty if the page does not scroll sideways."""
    return page.evaluate("""() => { const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        const scrolls = (node) => node && node !== document.body && (getComputedStyle(node).overflowX !== 'visible' || scrolls(node.parentElement));
        return [...document.querySelectorAll('body *')].filter((n) => n.getBoundingClientRect().right > width + 1 && !scrolls(n)).slice(0, 5)
            .map((n) => n.outerHTML.slice(0, 160)).concat(['scrolls sideways']); }""")


def test_no_width_scrolls_sideways(shown):
    try:
        for width in WIDTHS:
            shown.set_viewport_size({"width": width, "height": 900})
            shown.wait_for_timeout(80)
            assert not too_wide(shown), width
    finally:
        shown.set_viewport_size({"width": WIDTHS[0], "height": 900})


# Lines that a reader finds torn: an anchor on a line of its own, a formula and its comma, a short piece of code, a number in a table.
TORN = """() => { const box = (node, from, to) => { const r = document.createRange(); r.setStart(node, from); r.setEnd(node, to); return r.getBoundingClientRect(); };
    const seen = (selector) => [...document.querySelectorAll(`.bd-article ${selector}`)].filter((n) => n.checkVisibility());
    const torn = [];
    for (const heading of seen(':is(h1, h2, h3)')) {
        const words = document.createRange(); words.setStart(heading, 0); words.setEndBefore(heading.querySelector('.headerlink') ?? heading.lastChild);
        if (heading.getBoundingClientRect().bottom - words.getBoundingClientRect().bottom > 20) torn.push(`an empty line below ${heading.textContent}`);
    }
    for (const formula of seen('span.math')) {
        const here = formula.getBoundingClientRect(), [before, after] = [formula.previousSibling, formula.nextSibling];
        if (/^[^\\s\\w-]/.test(after?.data ?? '') && box(after, 0, 1).top > here.bottom - 2) torn.push(`${formula.textContent} | ${after.data.slice(0, 12)}`);
        if (/[(\\[“]$/.test(before?.data ?? '') && box(before, before.length - 1, before.length).bottom < here.top + 2) torn.push(`${before.data.slice(-12)} | ${formula.textContent}`);
    }
    for (const code of seen(':is(p, li) code')) if (code.textContent.length <= 20 && code.getClientRects().length > 1) torn.push(code.textContent);
    for (const cell of seen('.katlib-table td')) if (/^[−+]?[\\d.]+( ± [\\d.]+)?$/.test(cell.textContent) && box(cell, 0, 1).height > 30) torn.push(cell.textContent);
    return torn; }"""
# What is out of sight: a printed line or a table wider than its column, a caption that goes on beyond the window, a field that shows a part of its number.
HIDDEN = """() => { const wide = innerWidth >= 1200, hidden = [];
    for (const printed of document.querySelectorAll('.bd-article :is(.cell_output pre, dl.py pre)')) if (wide && printed.scrollWidth > printed.clientWidth + 1) hidden.push(printed.textContent);
    for (const table of document.querySelectorAll('.bd-article .katlib-table')) if (wide && table.scrollWidth > table.parentElement.clientWidth + 1) hidden.push(table.textContent);
    for (const caption of document.querySelectorAll('.bd-article :is(.caption-text, figcaption)')) if (caption.getBoundingClientRect().right > innerWidth) hidden.push(caption.textContent);
    for (const field of document.querySelectorAll('.katlib-live input[type="number"]')) if (field.scrollWidth > field.clientWidth) hidden.push(field.value);
    return hidden.map((text) => text.slice(0, 160)); }"""


def test_no_line_is_torn_and_nothing_is_out_of_sight(shown):
    try:
        for width in WIDTHS:
            shown.set_viewport_size({"width": width, "height": 900})
            shown.wait_for_timeout(80)
            assert not shown.evaluate(TORN), width
            assert not shown.evaluate(HIDDEN), width
    finally:
        shown.set_viewport_size({"width": WIDTHS[0], "height": 900})


def test_torn_lines_would_be_found(browser):
    page = browser.new_page(viewport={"width": 300, "height": 600})
    page.set_content("""<article class="bd-article" style="width: 100px; font: 16px monospace"><h2>ten signs .<a class="headerlink" style="display: block">#</a></h2>
        <p>aaaaa <span class="math" style="display: inline-block; width: 40px">x</span>, and <code>a b</code></p><p>aaaaaaa <code>b c d</code></p>
        <table class="katlib-table" style="width: 20px"><tr><td>1.5 ± 0.2</td></tr></table></article>""")
    found = page.evaluate(TORN)
    page.close()
    assert len(found) == 4 and found[1] == "x | , and " and found[2:] == ["b c d", "1.5 ± 0.2"], (
        found
    )


def test_a_fold_says_what_it_hides(shown):
    folds = shown.evaluate(
        "() => [...document.querySelectorAll('details.hide')].map((fold) => [fold.querySelector('.collapsed').textContent, fold.querySelector('pre').textContent])"
    )
    assert not [
        said
        for said, code in folds
        if (said == "Show the solution") != code.startswith("# @title Solution")
        or "cell source" in said
    ]


def test_the_page_is_light(path, shown):
    assert (HTML / path).stat().st_size <= LIMIT
    files = {
        Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
        for url in shown.asked
        if url.startswith("file:")
    }
    weights = {file.name: len(gzip.compress(file.read_bytes())) for file in files if file.is_file()}
    assert sum(weights.values()) <= LIMIT, weights  # what a first visit loads, as servers send it


@pytest.fixture(scope="session")
def axe():
    """The text of axe-core, from build/node, installed there through npm at the first call."""
    script = ROOT / "build" / "node" / "node_modules" / "axe-core" / "axe.min.js"
    if (
        not script.exists()
        or json.loads((script.parent / "package.json").read_text())["version"] != AXE
    ):
        if not shutil.which("npm"):
            pytest.skip("no npm, which brings axe-core")
        script.parents[2].mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                "npm",
                "install",
                "--prefix",
                str(script.parents[2]),
                "--no-save",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                f"axe-core@{AXE}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            pytest.skip(f"npm cannot install axe-core {AXE}: {done.stderr.strip()[:200]}")
    return script.read_text()


# Formulas (which are MathJax's own matter) and all but the first piece of code of each colour make nine tenths of the elements: without them, axe is quick.
THINNED = """() => { document.head.append(Object.assign(document.createElement('style'), { textContent: '* { transition: none !important; }' }));
    const seen = new Set();
    document.querySelectorAll('mjx-container').forEach((node) => node.replaceWith('x'));
    for (const span of document.querySelectorAll('pre span')) {
        const kind = [span, span.parentElement, span.closest('.cell_input, .cell_output, .highlight')].map((n) => n?.className).join('<');
        if (span.children.length || !seen.has(kind)) seen.add(kind); else span.replaceWith(span.textContent);
    } }"""


def violations(page, axe, options) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    found = page.evaluate(
        "options => axe.run(document, { resultTypes: ['violations'], ...options })", options
    )["violations"]
    return [
        f"{v['id']}: {v['help']}\n"
        + "\n".join(
            f"    {node['html'][:200]}\n    {node['failureSummary'][:300]}"
            for node in v["nodes"][:4]
        )
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def test_axe_finds_no_serious_violation(shown, axe):
    shown.evaluate(THINNED)
    theme(shown, "light")
    found = violations(shown, axe, {"rules": {"region": {"enabled": False}}})
    theme(shown, "dark")
    found += [
        f"dark, {violation}"
        for violation in violations(shown, axe, {"runOnly": ["color-contrast"]})
    ]  # all that a theme can change
    assert not found, "\n".join(found)


def test_axe_would_find_it(browser, axe):
    page = browser.new_page()
    page.set_content(
        "<html lang='en'><title>x</title><main><h1>x</h1><img src='data:,'><p style='color: #ccc; background: #fff'>pale</p></main>"
    )
    assert [violation.split(":")[0] for violation in violations(page, axe, {})] == [
        "color-contrast",
        "image-alt",
    ]
    page.close()


class Anchors(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids.update(filter(None, (a.get("id"), a.get("name"))))
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])


@pytest.fixture(scope="module")
def anchors():
    return {
        file: Anchors(file.read_text())
        for file in HTML.rglob("*.html")
        if "_static" not in file.parts
    }


def test_internal_links_lead_to_a_place_that_exists(path, anchors):
    here = HTML / path
    for link in anchors[here].links:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or link.startswith("//") or link == "#":
            continue
        target = (here.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else here
        assert target.exists(), link
        if parts.fragment and target in anchors:
            assert urllib.parse.unquote(parts.fragment) in anchors[target].ids, link


def test_search_finds_every_chapter_by_the_words_of_its_title(browser, anchors):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.set_default_timeout(240_000)
    page.goto((HTML / "search.html").as_uri())
    page.wait_for_function("typeof Search !== 'undefined' && Search.hasIndex()")
    lost = []
    for path in PAGES:
        if path.startswith("notebooks/"):
            notebook = json.loads((ROOT / path).with_suffix(".ipynb").read_text())
            title = "".join(notebook["cells"][0]["source"]).splitlines()[0]
            for word in sorted(re.findall(r"[^\W\d_]{3,}", title), key=len)[-2:]:  # the two longest
                found = page.evaluate(
                    "word => Search._performSearch(...Search._parseQuery(word)).map((result) => result[0])",
                    word,
                )
                if path.removesuffix(".html") not in found:
                    lost.append((word, path))
    context.close()
    assert not lost
