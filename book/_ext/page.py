"""Mends the pages after they are written: what a screen reader is told, what a fold says that it hides, where a line may not break, how much a
first visit has to load, and that live figures are drawn by katlib's present code, whichever drew them when their notebook was last run."""

import importlib
import json
import re
from pathlib import Path

# What the theme writes, and what it becomes.
MENDED = [
    # The visible text of a button has to be in its name (WCAG 2.5.3): the text is the name.
    (r'(<button class="btn search-button-field [^>]*?) title="Search" aria-label="Search"', r"\1"),
    (r'(<i class="theme-switch [^>]*?)\s+title="[^"]*"', r"\1"),
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # A list may hold entries of lists alone; the bibliography holds more, so it is not called one.
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r'(<div class="citation" id="[^"]*") role="doc-biblioentry"', r"\1"),
    # Fonts that the theme of Python 3.10 asks for ahead of need, in a way that a page opened from a file may not.
    (r'<link rel="preload" as="font" [^>]*>\n?', ""),
    # A signature's arguments, each on a line of its own: a list of definitions without terms.
    (
        r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*|<dd>(?:(?!</dd>|<dt).)*</dd>\s*)+)</dl>',
        lambda m: lines_of_signature(m[1]),
    ),
    (r'<details class="admonition hide above-input">.*?</details>', lambda m: told_fold(m[0])),
    # A formula and the sign before or behind it stay on one line, which a browser would not know; so does a short piece of code.
    (
        r'([(\[“"]*)(<span class="math notranslate nohighlight">[^<]*</span>)([^\s<]{1,3}(?=[\s<]))?',
        lambda m: unbroken(m[0]) if m[1] or m[3] else m[0],
    ),
    (
        r'<code class="(?:xref py py-\w+ )?docutils literal notranslate">(?:<span class="pre">[^<]*</span>\s*)+</code>',
        lambda m: unbroken(m[0]) if 1 < len(re.sub("<.*?>", "", m[0])) <= 22 else m[0],
    ),
    (r'(?<=<span class="pre">)[\w.]{23,}(?=</span></code>)', lambda m: m[0].replace(".", ".<wbr>")),
    # A table's caption may be narrower than the table; a number, an interval or a name in it is not torn in two.
    (
        r'(<table[^>]*class="katlib-table"[^>]*><caption>)(.*?)(</caption>)',
        r'\1<span class="caption-text">\2</span>\3',
    ),
    (
        r"<td>([\d\s.,±×x()%+−-]+(?: to [\d\s.,+−-]+\)?)?|[^<]{1,13})</td>",
        r'<td class="unbroken">\1</td>',
    ),
]
FOLDS = {
    "# @title Solution": "the solution",
    "# Installs katlib": "the set-up",
    "plot.figure(": "the drawing's code",
    "table(": "the table's code",
    "": "the code",
}
ICON = re.compile(
    r'(?:"([a-z0-9-]+)"|([a-z0-9]+)):\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)


def lines_of_signature(entries: str) -> str:
    return (
        '<span class="sig-lines">'
        + re.sub(r"<(/?)dd>", r"<\1span>", entries).replace("<span>", '<span class="sig-line">')
        + "</span>"
    )


def told_fold(fold: str) -> str:
    """A folded cell whose two prompts say what is in it."""
    code = re.sub("<.*?>", "", fold[fold.index("</summary>") :])
    return fold.replace(
        "code cell source</p>", f"{next(what for mark, what in FOLDS.items() if mark in code)}</p>"
    )


def unbroken(text: str) -> str:
    return f'<span class="unbroken">{text}</span>'


def mended(page: str) -> str:
    for pattern, replacement in MENDED:
        page = re.sub(pattern, replacement, page, flags=re.S)
    return re.sub(
        r'(<script type="application/vnd.jupyter.widget-state\+json">)(.*?)(</script>)',
        lambda m: m[1] + with_present_code(m[2]) + m[3],
        page,
        flags=re.S,
    )


def with_present_code(states: str) -> str:
    """Widget states whose module and style are those of the class that made them, as it is now."""
    data = json.loads(states)
    for model in data["state"].values():
        module, _, name = model["state"].get("_anywidget_id", "").rpartition(".")
        if module.startswith("katlib."):
            kind = getattr(importlib.import_module(module), name)
            model["state"].update(_esm=str(kind._esm), _css=str(kind._css))
    return json.dumps(data).replace("</", "<\\/")


def without_unused_icons(script: str, used: set[str]) -> str:
    """Font Awesome's script holds some 2,000 icons, 1.5 MB, and the pages use twenty: those whose name or alias is in `used` stay."""

    def keep(match):
        names = {match[1] or match[2], *re.findall(r'"([a-z0-9-]+)"', match[3])}
        return match[0] if names & used else ""

    return ICON.sub(keep, script)


def finish(app, exception):
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    used: set[str] = set()
    for path in out.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        new = mended(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
        used.update(re.findall(r"\bfa-([a-z0-9-]+)", new))
    icons = [
        *out.glob("_static/scripts/fontawesome.js"),
        *out.glob("_static/vendor/fontawesome/*/js/all.min.js"),
    ]  # newer theme, older theme
    for path in (out / "_static").rglob("*.js"):
        if path not in icons and "mathjax" not in path.parts:
            used.update(re.findall(r"\bfa-([a-z0-9-]+)", path.read_text(encoding="utf-8")))
    for path in icons:
        path.write_text(
            without_unused_icons(path.read_text(encoding="utf-8"), used), encoding="utf-8"
        )


def setup(app):
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
