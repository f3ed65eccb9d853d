"""Mends the pages of the built book.

The theme writes most of a page, and some of it has to be changed: what a screen reader says, what a
fold says that it hides, where a line may not break, and how much a first visit loads. Live figures
get katlib's present code, whatever code drew them when their notebook was last run.
"""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# pieces of code up to this many characters stay on one line
SHORT_CODE = 22


class Change(NamedTuple):
    """A pattern in a page's HTML, and what replaces it, as for `re.sub`."""

    pattern: str
    replacement: str | Callable[[re.Match], str]


# ---- what a screen reader says


ACCESSIBILITY = [
    # The visible text of a button has to be part of its name (WCAG 2.5.3). Without a label of its
    # own, the text is the name.
    Change(
        r'(<button class="btn search-button-field [^>]*?) title="Search" aria-label="Search"', r"\1"
    ),
    Change(r'(<i class="theme-switch [^>]*?)\s+title="[^"]*"', r"\1"),
    Change(r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # A list may contain nothing but list entries. The bibliography contains more, so it is not
    # called a list.
    Change(r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    Change(r'(<div class="citation" id="[^"]*") role="doc-biblioentry"', r"\1"),
]


# ---- fonts


# The theme's version for Python 3.10 asks for fonts ahead of need, in a way that a page opened from
# a file may not.
FONTS = [Change(r'<link rel="preload" as="font" [^>]*>\n?', "")]


# ---- signatures and folds


def signature_lines(match: re.Match) -> str:
    """A signature's arguments, each on a line of its own.

    The theme writes them as a list of definitions without terms, which is not valid HTML.
    """
    entries = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{entries}</span>'


# the beginning of a folded cell's code, or something within it, and what its prompts call it
FOLD_NAMES = {
    "# @title Solution": "the solution",
    "# Installs katlib": "the set-up",
    "plot.figure(": "the drawing's code",
    "table(": "the table's code",
    "": "the code",
}


def named_fold(match: re.Match) -> str:
    """A folded cell whose two prompts say what is in it."""
    fold = match[0]
    code = re.sub("<.*?>", "", fold[fold.index("</summary>") :])
    name = next(name for mark, name in FOLD_NAMES.items() if mark in code)
    return fold.replace("code cell source</p>", f"{name}</p>")


STRUCTURE = [
    Change(
        r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*|<dd>(?:(?!</dd>|<dt).)*</dd>\s*)+)</dl>',
        signature_lines,
    ),
    Change(r'<details class="admonition hide above-input">.*?</details>', named_fold),
]


# ---- where a line may not break


def unbroken(html: str) -> str:
    return f'<span class="unbroken">{html}</span>'


def unbroken_formula(match: re.Match) -> str:
    """A formula on one line with the punctuation around it, if there is any."""
    before, after = match[1], match[3]
    return unbroken(match[0]) if before or after else match[0]


def unbroken_code(match: re.Match) -> str:
    """A piece of code on one line, if it is short."""
    text = re.sub("<.*?>", "", match[0])
    return unbroken(match[0]) if 1 < len(text) <= SHORT_CODE else match[0]


def breakable_at_dots(match: re.Match) -> str:
    return match[0].replace(".", ".<wbr>")


LINE_BREAKS = [
    # a formula and the sign before or after it
    Change(
        r'([(\[“"]*)'
        r'(<span class="math notranslate nohighlight">[^<]*</span>)'
        r"([^\s<]{1,3}(?=[\s<]))?",
        unbroken_formula,
    ),
    # short code, in which a browser would break at spaces and hyphens
    Change(
        r'<code class="(?:xref py py-\w+ )?docutils literal notranslate">'
        r'(?:<span class="pre">[^<]*</span>\s*)+</code>',
        unbroken_code,
    ),
    # long names, in which a browser would not break at all
    Change(r'(?<=<span class="pre">)[\w.]{23,}(?=</span></code>)', breakable_at_dots),
    # a table's caption, which may be narrower than the table
    Change(
        r'(<table[^>]*class="katlib-table"[^>]*><caption>)(.*?)(</caption>)',
        r'\1<span class="caption-text">\2</span>\3',
    ),
    # a table's cells with a number, an interval or a short name
    Change(
        r"<td>([\d\s.,±×x()%+−-]+(?: to [\d\s.,+−-]+\)?)?|[^<]{1,13})</td>",
        r'<td class="unbroken">\1</td>',
    ),
]


# ---- the present code of live figures


def with_present_code(states: str) -> str:
    """Widget states whose module and style are those that their classes have now."""
    data = json.loads(states)
    for model in data["state"].values():
        state = model.get("state", {})
        module, _, name = state.get("_anywidget_id", "").rpartition(".")
        if module.startswith("katlib."):
            widget_class = getattr(importlib.import_module(module), name)
            state["_esm"] = str(widget_class._esm)
            state["_css"] = str(widget_class._css)
    # a "</script>" within the code would end the element
    return json.dumps(data).replace("</", "<\\/")


def replace_states(match: re.Match) -> str:
    return match[1] + with_present_code(match[2]) + match[3]


LIVE_FIGURES = [
    Change(
        r'(<script type="application/vnd.jupyter.widget-state\+json">)(.*?)(</script>)',
        replace_states,
    )
]


# in this order: some changes see what those before them have written
CHANGES = [*ACCESSIBILITY, *FONTS, *STRUCTURE, *LINE_BREAKS, *LIVE_FIGURES]


def mended(page: str) -> str:
    """A page's HTML with all changes."""
    for change in CHANGES:
        page = re.sub(change.pattern, change.replacement, page, flags=re.S)
    return page


# ---- icons


# An icon in Font Awesome's script: its name, which is quoted where it has a hyphen, then its size,
# its aliases, its code point and its outlines.
ICON = re.compile(
    r'(?:"([a-z0-9-]+)"|([a-z0-9]+))'
    r":\[\d+,\d+,\[([^\]]*)\],"
    r'"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)
ICON_CLASS = re.compile(r"\bfa-([a-z0-9-]+)")


def without_unused_icons(script: str, used: set[str]) -> str:
    """Font Awesome's script with only those icons whose name or alias is in `used`.

    It has some 2,000 icons, 1.5 MB, of which the pages use twenty.
    """

    def keep_if_used(match: re.Match) -> str:
        name = match[1] or match[2]
        aliases = re.findall(r'"([a-z0-9-]+)"', match[3])
        return match[0] if used.intersection([name, *aliases]) else ""

    return ICON.sub(keep_if_used, script)


def icon_scripts(out: Path) -> list[Path]:
    """Font Awesome's scripts, where the newer and where the older theme puts them."""
    return [
        *out.glob("_static/scripts/fontawesome.js"),
        *out.glob("_static/vendor/fontawesome/*/js/all.min.js"),
    ]


def icons_of_scripts(out: Path) -> set[str]:
    """The icons that the theme's other scripts put into a page."""
    used: set[str] = set()
    for path in (out / "_static").rglob("*.js"):
        if path not in icon_scripts(out) and "mathjax" not in path.parts:
            used.update(ICON_CLASS.findall(path.read_text(encoding="utf-8")))
    return used


# ---- the whole book


def mend_pages(out: Path) -> set[str]:
    """Mends all pages; returns the icons that they use."""
    used: set[str] = set()
    for path in out.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        mended_page = mended(page)
        if mended_page != page:
            path.write_text(mended_page, encoding="utf-8")
        used.update(ICON_CLASS.findall(mended_page))
    return used


def finish(app, exception):
    """Called by Sphinx when all pages have been written."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    used = mend_pages(out) | icons_of_scripts(out)
    for path in icon_scripts(out):
        script = path.read_text(encoding="utf-8")
        path.write_text(without_unused_icons(script, used), encoding="utf-8")


def setup(app):
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
