"""The directive `live`: a live figure on a page that is not a notebook.

```{live} katlib.RationalExplorer("identity", target="gelu")
:caption: what to see and to try
```

Its argument is the Python call that makes the figure.
"""

import json
from typing import ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def html(widget, name: str) -> str:
    """What a notebook's output would put into the page: the widget's state and a view of it."""
    state = widget.get_state()
    state.pop("layout", None)
    model = {"model_module": "anywidget", "model_name": "AnyModel", "state": state}
    states = {"version_major": 2, "version_minor": 0, "state": {name: model}}
    view = {"version_major": 2, "version_minor": 0, "model_id": name}
    # a "</script>" within the figure's code would end the element
    states_text = json.dumps(states).replace("</", "<\\/")
    return (
        f'<script type="application/vnd.jupyter.widget-state+json">{states_text}</script>\n'
        f'<script type="application/vnd.jupyter.widget-view+json">{json.dumps(view)}</script>'
    )


class Live(SphinxDirective):
    """Puts a live figure and its caption into the page."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {"caption": str}

    def run(self):
        import katlib

        widget = eval(self.arguments[0], {"katlib": katlib})
        scripts = html(widget, f"live-{self.env.new_serialno('live')}")
        # the style sheet keeps as much room free as the figure will need once it is drawn
        room = (
            f'<div class="live-place"><div class="live-room {type(widget).__name__}">'
            f"{scripts}</div></div>"
        )
        figure = nodes.raw("", room, format="html")
        inline, messages = self.parse_inline(self.options.get("caption", ""))
        caption = nodes.paragraph("", "", *inline, classes=["live-caption"])
        return [figure, caption, *messages]


def without_thebe(app):
    """Takes sphinx-thebe, which Jupyter Book brings, out of the pages.

    The book does not use it. It would still put its settings into every page, twice, and the second
    time is an error in the browser's console.
    """
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if not _is_thebes(listener)]


def _is_thebes(listener) -> bool:
    return getattr(listener.handler, "__module__", "") == "sphinx_thebe"


def setup(app):
    app.add_directive("live", Live)
    app.connect("builder-inited", without_thebe, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
