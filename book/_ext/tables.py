"""The directive `results`: a table of the results page, made from `results/*.json`.

```{results} study
```

It is made when the book is built. Its names are the keys of `katlib.book.tables.TABLES`.
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Results(SphinxDirective):
    """Puts one table into the page, in a box that scrolls by itself where the page is narrow."""

    required_arguments = 1

    def run(self):
        from katlib.book.results import FOLDER
        from katlib.book.tables import TABLES

        # the page is built anew when a measurement changes
        for path in FOLDER.rglob("*.json"):
            self.env.note_dependency(str(path))
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        table = TABLES[name]()._repr_html_().replace("<table ", f'<table data-results="{name}" ', 1)
        box = (
            '<div class="katlib-scroll" tabindex="0" role="region" '
            f'aria-label="table: {name}">{table}</div>'
        )
        return [nodes.raw("", box, format="html")]


def setup(app):
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
