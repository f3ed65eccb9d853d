"""Every page of the built book, as a reader's browser shows it.

In two themes and three widths, without a network.
"""

import gzip
import json
import re
import shutil
import subprocess
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.book

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PAGES = [
    f"{page}.html" for page in re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
]
WIDTHS = (1280, 768, 390)
HEIGHT = 900

# the version of npm's axe-core
AXE = "4.14.1"

# bytes of a page
LIMIT = 1_500_000

# pixels by which text may jump while a page loads: two lines
LARGEST_JUMP = 54


# ---- an open page


# Keeps how far each piece of text has jumped while the page was loading.
RECORD_JUMPS = """
window.jumps = [];
new PerformanceObserver((list) => {
    for (const shift of list.getEntries().flatMap((entry) => entry.sources)) {
        const { previousRect, currentRect, node } = shift;
        if (!previousRect.height || !currentRect.height) continue;
        const distance = Math.abs(currentRect.y - previousRect.y);
        window.jumps.push([distance, node?.textContent?.slice(0, 40)]);
    }
}).observe({ type: 'layout-shift', buffered: true });
"""

# Whether every live figure and every formula has been drawn.
READY = """() => {
    const { promise } = window.MathJax?.startup ?? {};
    if (promise && !window.mathsDone) {
        promise.then(() => { window.mathsDone = true; });
        return false;
    }
    const unmounted = 'script[type$="widget-view+json"]:not(:has(+ [data-live]))';
    return !document.querySelector(unmounted);
}"""


@pytest.fixture(scope="module", params=PAGES, ids=lambda path: Path(path).stem)
def path(request):
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")
    return request.param


@pytest.fixture(scope="module")
def shown(browser, path):
    """The page, opened once for all tests of it.

    `asked` and `faults` are what it has requested and complained about meanwhile.
    """
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": HEIGHT}, offline=True)
    page = context.new_page()
    page.set_default_timeout(240_000)
    record_requests_and_faults(page)
    page.add_init_script(RECORD_JUMPS)
    page.goto((HTML / path).as_uri())
    page.wait_for_function(READY)
    yield page
    context.close()


def record_requests_and_faults(page) -> None:
    page.asked, page.faults = [], []

    def on_console(message) -> None:
        if message.type == "error":
            page.faults.append(message.text)

    page.on("request", lambda request: page.asked.append(request.url))
    page.on("requestfailed", lambda request: page.faults.append(f"{request.url} failed"))
    page.on("console", on_console)
    page.on("pageerror", lambda error: page.faults.append(str(error)))


@pytest.fixture(params=WIDTHS)
def shown_at_width(shown, request):
    """The page in a window of each width."""
    shown.set_viewport_size({"width": request.param, "height": HEIGHT})
    shown.wait_for_timeout(80)
    yield shown
    shown.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})


def set_theme(page, name: str) -> None:
    page.evaluate(
        f"Object.assign(document.documentElement.dataset, {{ theme: '{name}', mode: '{name}' }})"
    )


# ---- loading


def test_nothing_goes_wrong(shown):
    assert not shown.faults


def test_nothing_is_requested_from_the_network(shown):
    assert shown.asked
    assert not [url for url in shown.asked if not url.startswith(("file:", "data:", "blob:"))]


def test_no_jump_while_it_loads(shown):
    jumps = shown.evaluate("window.jumps")
    largest = max((distance for distance, _ in jumps), default=0)
    assert largest <= LARGEST_JUMP, sorted(jumps)[-5:]


def test_the_page_itself_is_light(path):
    assert (HTML / path).stat().st_size <= LIMIT


def test_a_first_visit_loads_little(shown):
    """All files of the page, compressed as servers send them."""
    urls = [urllib.parse.urlsplit(url) for url in shown.asked if url.startswith("file:")]
    files = {Path(urllib.parse.unquote(url.path)) for url in urls}
    # a model's weights come after the page, which can be read without them
    own = [file for file in files if file.is_file() and file.parent.name != "live"]
    weights = {file.name: len(gzip.compress(file.read_bytes())) for file in own}
    assert sum(weights.values()) <= LIMIT, weights


# ---- formulas, figures, folds


def test_every_formula_is_drawn_without_an_error(shown):
    written, drawn, wrong = shown.evaluate("""() => {
        const formulas = [...document.querySelectorAll('.math')];
        const drawn = formulas.filter((node) => node.querySelector('mjx-container, svg, math'));
        const errors = document.querySelectorAll('mjx-merror, [data-mjx-error], .MathJax_Error');
        return [formulas.length, drawn.length, errors.length];
    }""")
    assert drawn == written
    assert not wrong


def test_no_formula_is_left_as_text(shown):
    text = shown.locator("main .bd-article").evaluate("""node => {
        const copy = node.cloneNode(true);
        const code = copy.querySelectorAll('pre, code, .math, script, style, mjx-container');
        for (const part of code) part.remove();
        return copy.textContent;
    }""")
    assert not re.search(r"(?<!\\)\$[a-zA-Z\\|\[][^$\n]{0,60}\$|\\\(|\\frac", text)


def live_figures(page) -> list:
    figures = page.locator('[data-live="ready"] .katlib-live')
    return [figures.nth(i) for i in range(figures.count())]


def test_every_live_figure_is_mounted(shown):
    views = shown.locator('script[type="application/vnd.jupyter.widget-view+json"]').count()
    assert len(live_figures(shown)) == views


def test_something_is_drawn_in_every_live_figure(shown):
    for figure in live_figures(shown):
        widest = figure.evaluate("""node => {
            const shapes = [...node.querySelectorAll('path, rect, line, canvas, .part')];
            return Math.max(0, ...shapes.map((shape) => shape.getBoundingClientRect().width));
        }""")
        assert widest > 100


def test_every_control_of_a_live_figure_has_a_name(shown):
    for figure in live_figures(shown):
        nameless = figure.evaluate("""node => {
            const name = (control) => control.getAttribute('aria-label')
                || control.textContent.trim() || control.labels?.[0]?.textContent.trim();
            return [...node.querySelectorAll('button, select, input, [role="slider"]')]
                .filter((control) => !name(control)).map((control) => control.outerHTML);
        }""")
        assert not nameless


def test_every_control_of_a_live_figure_can_be_reached_by_keyboard(shown):
    """Of a group of radio buttons, the one that is chosen."""
    for figure in live_figures(shown):
        unreachable = figure.evaluate("""node => {
            const controls = '[role="slider"], button:not([role="radio"]), select, input, '
                + '[role="radio"][aria-checked="true"]';
            return [...node.querySelectorAll(controls)]
                .filter((control) => control.tabIndex < 0).map((control) => control.outerHTML);
        }""")
        assert not unreachable


def test_every_picture_is_there(shown):
    broken = shown.evaluate("""() => [...document.images]
        .filter((image) => image.complete && !image.naturalWidth)
        .map((image) => image.src.slice(0, 80))""")
    assert not broken


def test_every_icon_is_there(shown):
    """Font Awesome puts an animated sign where it does not know an icon."""
    wrong = shown.evaluate("""() => {
        const icons = [...document.querySelectorAll('svg.svg-inline--fa')];
        const unknown = icons.filter((icon) => {
            return !icon.querySelector('path[d]') || icon.querySelector('animate');
        });
        const notDrawn = [...document.querySelectorAll('i[class*="fa-"]')];
        return [...unknown, ...notDrawn].map((node) => node.outerHTML);
    }""")
    assert not wrong


def folds(page) -> list:
    """What the prompt of each folded cell says, and the cell's code."""
    return page.evaluate("""() => [...document.querySelectorAll('details.hide')].map((fold) => [
        fold.querySelector('.collapsed').textContent,
        fold.querySelector('pre').textContent,
    ])""")


def test_a_fold_says_that_it_hides_a_solution(shown):
    for prompt, code in folds(shown):
        assert (prompt == "Show the solution") == code.startswith("# @title Solution")


def test_no_fold_speaks_of_cells(shown):
    assert not [prompt for prompt, _ in folds(shown) if "cell source" in prompt]


# ---- widths


# What reaches beyond the window and is not within a part that scrolls by itself. Empty if the page
# does not scroll sideways.
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const scrolls = (node) => node && node !== document.body
        && (getComputedStyle(node).overflowX !== 'visible' || scrolls(node.parentElement));
    const sticksOut = (node) => node.getBoundingClientRect().right > width + 1 && !scrolls(node);
    const nodes = [...document.querySelectorAll('body *')].filter(sticksOut).slice(0, 5);
    return [...nodes.map((node) => node.outerHTML.slice(0, 160)), 'scrolls sideways'];
}"""

# Lines that a reader finds torn: an anchor on a line of its own, a formula and its comma, a short
# piece of code, a number in a table.
TORN = """() => {
    const torn = [];

    function boxOfCharacters(node, from, to) {
        const range = document.createRange();
        range.setStart(node, from);
        range.setEnd(node, to);
        return range.getBoundingClientRect();
    }
    function visible(selector) {
        const nodes = [...document.querySelectorAll(`.bd-article ${selector}`)];
        return nodes.filter((node) => node.checkVisibility());
    }

    for (const heading of visible(':is(h1, h2, h3)')) {
        const words = document.createRange();
        words.setStart(heading, 0);
        words.setEndBefore(heading.querySelector('.headerlink') ?? heading.lastChild);
        const below = heading.getBoundingClientRect().bottom - words.getBoundingClientRect().bottom;
        if (below > 20) torn.push(`an empty line below ${heading.textContent}`);
    }
    for (const formula of visible('span.math')) {
        const here = formula.getBoundingClientRect();
        const before = formula.previousSibling?.data ?? '';
        const after = formula.nextSibling?.data ?? '';
        if (/^[^\\s\\w-]/.test(after)) {
            const sign = boxOfCharacters(formula.nextSibling, 0, 1);
            if (sign.top > here.bottom - 2) {
                torn.push(`${formula.textContent} | ${after.slice(0, 12)}`);
            }
        }
        if (/[(\\[“]$/.test(before)) {
            const sign = boxOfCharacters(formula.previousSibling, before.length - 1, before.length);
            if (sign.bottom < here.top + 2) {
                torn.push(`${before.slice(-12)} | ${formula.textContent}`);
            }
        }
    }
    for (const code of visible(':is(p, li) code')) {
        const isShort = code.textContent.length <= 20;
        if (isShort && code.getClientRects().length > 1) torn.push(code.textContent);
    }
    for (const cell of visible('.katlib-table td')) {
        const isNumber = /^[−+]?[\\d.]+( ± [\\d.]+)?$/.test(cell.textContent);
        if (isNumber && boxOfCharacters(cell, 0, 1).height > 30) torn.push(cell.textContent);
    }
    return torn;
}"""

# What is out of sight: in a wide window a printed line or a table that is wider than its column; a
# caption that goes on beyond the window; a field that shows a part of its number.
HIDDEN = """() => {
    const hidden = [];
    if (innerWidth >= 1200) {
        const printed = '.bd-article :is(.cell_output pre, dl.py pre)';
        for (const node of document.querySelectorAll(printed)) {
            if (node.scrollWidth > node.clientWidth + 1) hidden.push(node.textContent);
        }
        for (const table of document.querySelectorAll('.bd-article .katlib-table')) {
            const room = table.parentElement.clientWidth;
            if (table.scrollWidth > room + 1) hidden.push(table.textContent);
        }
    }
    const captions = '.bd-article :is(.caption-text, figcaption)';
    for (const caption of document.querySelectorAll(captions)) {
        if (caption.getBoundingClientRect().right > innerWidth) hidden.push(caption.textContent);
    }
    for (const field of document.querySelectorAll('.katlib-live input[type="number"]')) {
        if (field.scrollWidth > field.clientWidth) hidden.push(field.value);
    }
    return hidden.map((text) => text.slice(0, 160));
}"""


def test_no_width_scrolls_sideways(shown_at_width):
    assert not shown_at_width.evaluate(TOO_WIDE)


def test_no_line_is_torn(shown_at_width):
    assert not shown_at_width.evaluate(TORN)


def test_nothing_is_out_of_sight(shown_at_width):
    assert not shown_at_width.evaluate(HIDDEN)


NARROW_PAGE = """
<article class="bd-article" style="width: 100px; font: 16px monospace">
<h2>ten signs .<a class="headerlink" style="display: block">#</a></h2>
<p>aaaaa <span class="math" style="display: inline-block; width: 40px">x</span>, and
<code>a b</code></p>
<p>aaaaaaa <code>b c d</code></p>
<table class="katlib-table" style="width: 20px"><tr><td>1.5 ± 0.2</td></tr></table>
</article>"""


def test_torn_lines_would_be_found(browser):
    page = browser.new_page(viewport={"width": 300, "height": 600})
    page.set_content(NARROW_PAGE)
    found = page.evaluate(TORN)
    page.close()
    assert len(found) == 4, found
    assert found[1:] == ["x | , and\n", "b c d", "1.5 ± 0.2"]


# ---- accessibility


# Colours that fade from one theme to the other would be measured half-way.
STILL = """() => {
    const style = document.createElement('style');
    style.textContent = '* { transition: none !important; }';
    document.head.append(style);
}"""


@pytest.fixture(scope="session")
def axe():
    """The text of axe-core, from build/node, where npm puts it at the first call."""
    folder = ROOT / "build" / "node"
    package = folder / "node_modules" / "axe-core"
    if not (package / "axe.min.js").exists() or installed_version(package) != AXE:
        install_axe(folder)
    return (package / "axe.min.js").read_text()


def installed_version(package: Path) -> str:
    return json.loads((package / "package.json").read_text())["version"]


def install_axe(folder: Path) -> None:
    """Skips the test where that is not possible."""
    if not shutil.which("npm"):
        pytest.skip("no npm, which brings axe-core")
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
    command = ["npm", "install", "--prefix", str(folder), *options, f"axe-core@{AXE}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot install axe-core {AXE}: {done.stderr.strip()[:200]}")


def violations(page, axe: str, options: dict) -> list[str]:
    """What axe finds serious or critical, each with a few of its elements."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    run = "options => axe.run(document, { resultTypes: ['violations'], ...options })"
    found = page.evaluate(run, options)["violations"]
    return [described(v) for v in found if v["impact"] in ("serious", "critical")]


def described(violation: dict) -> str:
    elements = [
        f"    {node['html'][:200]}\n    {node['failureSummary'][:300]}"
        for node in violation["nodes"][:4]
    ]
    return "\n".join([f"{violation['id']}: {violation['help']}", *elements])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_violation(shown, axe, width, theme):
    shown.set_viewport_size({"width": width, "height": HEIGHT})
    shown.evaluate(STILL)
    set_theme(shown, theme)
    # the theme and ours mark what scrolls a moment after the width has changed
    shown.wait_for_timeout(500)
    found = violations(shown, axe, {"rules": {"region": {"enabled": False}}})
    assert not found, "\n".join(found)


# Boxes that scroll sideways, and of these those that the Tab key leaves out or that have no name.
SCROLLING = """() => {
    const boxes = [...document.querySelectorAll('.bd-article :is(figure, pre, div)')];
    return boxes.filter((box) => box.scrollWidth > box.clientWidth + 1
        && ['auto', 'scroll'].includes(getComputedStyle(box).overflowX));
}"""
OUT_OF_REACH = f"""() => ({SCROLLING})()
    .filter((box) => box.tabIndex < 0 || !(box.ariaLabel || box.querySelector('figcaption')))
    .map((box) => box.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_keyboard_reaches_everything_that_scrolls_and_each_has_a_name(shown, width):
    shown.set_viewport_size({"width": width, "height": HEIGHT})
    shown.wait_for_timeout(500)
    assert not shown.evaluate(OUT_OF_REACH)


def test_no_two_boxes_that_scroll_have_the_same_name(shown):
    shown.set_viewport_size({"width": 390, "height": HEIGHT})
    shown.wait_for_timeout(500)
    names = shown.evaluate(f"({SCROLLING})().map((box) => box.ariaLabel).filter(Boolean)")
    assert len(names) == len(set(names))


def test_what_no_longer_scrolls_is_no_stop_of_the_keyboard(shown):
    shown.set_viewport_size({"width": 390, "height": HEIGHT})
    shown.wait_for_timeout(500)
    shown.set_viewport_size({"width": 1280, "height": HEIGHT})
    shown.wait_for_timeout(500)
    marked = shown.evaluate("document.querySelectorAll('[data-scrolls]').length")
    assert marked == shown.evaluate(
        f"({SCROLLING})().filter((box) => 'scrolls' in box.dataset).length"
    )


def test_axe_would_find_it(browser, axe):
    page = browser.new_page()
    page.set_content(
        "<html lang='en'><title>x</title><main><h1>x</h1><img src='data:,'>"
        "<p style='color: #ccc; background: #fff'>pale</p>"
        "<div style='width: 90px; overflow: auto; white-space: nowrap'>"
        "<p>a line that is much wider than its box and goes on and on</p></div></main>"
    )
    found = [violation.split(":")[0] for violation in violations(page, axe, {})]
    page.close()
    assert found == ["color-contrast", "image-alt", "scrollable-region-focusable"]


# ---- links and search


class Anchors(HTMLParser):
    """The places of a page that can be linked to, and its links."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.update(values[key] for key in ("id", "name") if values.get(key))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def anchors():
    """The anchors of all pages of the built book."""
    files = [file for file in HTML.rglob("*.html") if "_static" not in file.parts]
    return {file: Anchors(file.read_text()) for file in files}


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


@pytest.fixture(scope="module")
def search_page(browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.set_default_timeout(240_000)
    page.goto((HTML / "search.html").as_uri())
    page.wait_for_function("typeof Search !== 'undefined' && Search.hasIndex()")
    yield page
    context.close()


def title_of(path: str) -> str:
    notebook = json.loads((ROOT / path).with_suffix(".ipynb").read_text())
    return "".join(notebook["cells"][0]["source"]).splitlines()[0]


@pytest.mark.parametrize("chapter", [page for page in PAGES if page.startswith("notebooks/")])
def test_search_finds_a_chapter_by_the_words_of_its_title(search_page, chapter):
    """By the two longest."""
    words = sorted(re.findall(r"[^\W\d_]{3,}", title_of(chapter)), key=len)[-2:]
    search = "word => Search._performSearch(...Search._parseQuery(word)).map(([page]) => page)"
    for word in words:
        assert chapter.removesuffix(".html") in search_page.evaluate(search, word), word
