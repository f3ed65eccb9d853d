"""The directive `results`: a table of the results page, made from `results/*.json`.

```{results} study
```

It is made when the book is built. Its names are the keys of `katlib.book.tables.TABLES`.

And the role `finding`: a number in a sentence, {finding}`training step`, made in the same way. Its
names are the keys of `katlib.book.findings.FINDINGS`.
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective, SphinxRole


class Results(SphinxDirective):
    """Puts one table into the page, in a box that scrolls by itself where the page is narrow."""

    required_arguments = 1

    def run(self):
        from katlib.book.tables import TABLES

        follow_the_results(self.env)
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        table = TABLES[name]()._repr_html_().replace("<table ", f'<table data-results="{name}" ', 1)
        box = (
            '<div class="katlib-scroll" tabindex="0" role="region" '
            f'aria-label="table: {name}">{table}</div>'
        )
        return [nodes.raw("", box, format="html")]


class Finding(SphinxRole):
    """Puts a number into a sentence."""

    def run(self):
        from katlib.book.findings import FINDINGS

        follow_the_results(self.env)
        if self.text not in FINDINGS:
            there_are = f"there is no finding {self.text!r}; there are {', '.join(FINDINGS)}"
            message = self.inliner.reporter.error(there_are, line=self.lineno)
            return [nodes.problematic(self.rawtext, self.rawtext)], [message]
        return [nodes.Text(FINDINGS[self.text]())], []


def follow_the_results(env):
    """The page that is being read is built anew when a measurement changes."""
    from katlib.book.results import FOLDER

    for path in FOLDER.rglob("*.json"):
        env.note_dependency(str(path))


def setup(app):
    app.add_directive("results", Results)
    app.add_role("finding", Finding())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
