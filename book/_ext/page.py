"""Mends the pages after they are written: what a screen reader is told, how much a first visit has to load, and that live figures are drawn
by katlib's present code, whichever drew them when their notebook was last run."""

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
    (r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*|<dd>(?:(?!</dd>|<dt).)*</dd>\s*)+)</dl>', lambda m: lines_of_signature(m[1])),
]
ICON = re.compile(r'(?:"([a-z0-9-]+)"|([a-z0-9]+)):\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')


def lines_of_signature(entries: str) -> str:
    return '<span class="sig-lines">' + re.sub(r"<(/?)dd>", r"<\1span>", entries).replace("<span>", '<span class="sig-line">') + "</span>"


def mended(page: str) -> str:
    for pattern, replacement in MENDED:
        page = re.sub(pattern, replacement, page, flags=re.S)
    return re.sub(r'(<script type="application/vnd.jupyter.widget-state\+json">)(.*?)(</script>)', lambda m: m[1] + with_present_code(m[2]) + m[3], page, flags=re.S)


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
    icons = [*out.glob("_static/scripts/fontawesome.js"), *out.glob("_static/vendor/fontawesome/*/js/all.min.js")]          # newer theme, older theme
    for path in (out / "_static").rglob("*.js"):
        if path not in icons and "mathjax" not in path.parts:
            used.update(re.findall(r"\bfa-([a-z0-9-]+)", path.read_text(encoding="utf-8")))
    for path in icons:
        path.write_text(without_unused_icons(path.read_text(encoding="utf-8"), used), encoding="utf-8")


def setup(app):
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
