"""The directive `results`: a table of the results page, made from `results/*.json` when the book is built.

```{results} study
```
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Results(SphinxDirective):
    required_arguments = 1

    def run(self):
        from katlib.book.results import FOLDER
        from katlib.book.tables import TABLES

        for path in FOLDER.rglob("*.json"):
            self.env.note_dependency(str(path))  # the page is built anew when a measurement changes
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        text = TABLES[name]()._repr_html_().replace("<table ", f'<table data-results="{name}" ', 1)
        return [
            nodes.raw(
                "",
                f'<div class="katlib-scroll" tabindex="0" role="region" aria-label="table: {name}">{text}</div>',
                format="html",
            )
        ]


def setup(app):
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
