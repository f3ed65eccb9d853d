"""The directive `live`: a live figure on a page that is not a notebook. Its one line is the figure's Python call:

```{live} katlib.RationalExplorer("identity", target="gelu")
:caption: what to see and to try
```
"""

import json

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def html(widget, name: str) -> str:
    """What a notebook's output would put into the page: the widget's state and a view of it."""
    state = {
        name: {"model_module": "anywidget", "model_name": "AnyModel", "state": widget.get_state()}
    }
    state[name]["state"].pop("layout", None)
    safe = json.dumps({"version_major": 2, "version_minor": 0, "state": state}).replace(
        "</", "<\\/"
    )
    view = json.dumps({"version_major": 2, "version_minor": 0, "model_id": name})
    return (
        f'<script type="application/vnd.jupyter.widget-state+json">{safe}</script>\n'
        f'<script type="application/vnd.jupyter.widget-view+json">{view}</script>'
    )


class Live(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"caption": str}

    def run(self):
        import katlib

        widget = eval(self.arguments[0], {"katlib": katlib})
        shown = html(widget, f"live-{self.env.new_serialno('live')}")
        room = f'<div class="live-place"><div class="live-room {type(widget).__name__}">{shown}</div></div>'  # held free until it is drawn
        figure = nodes.raw("", room, format="html")
        inline, messages = self.parse_inline(self.options.get("caption", ""))
        return [figure, nodes.paragraph("", "", *inline, classes=["live-caption"]), *messages]


def without_thebe(app):
    """Takes sphinx-thebe out of the pages. Jupyter Book brings it; unused, it still puts its settings into every page, twice, and the second
    is an error in the browser's console."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            entry
            for entry in listeners
            if getattr(entry.handler, "__module__", "") != "sphinx_thebe"
        ]


def setup(app):
    app.add_directive("live", Live)
    app.connect("builder-inited", without_thebe, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
