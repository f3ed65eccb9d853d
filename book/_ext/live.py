"""The directive `live`: a live figure on a page that is not a notebook.

```{live} katlib.RationalExplorer("identity", target="gelu")
:caption: what to see and to try
```

Its argument is the Python call that makes the figure.

In a notebook, a live figure is an output, and the notebook's metadata holds its state. Where the
state is missing, the build warns.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from notebooks import WIDGET_STATE, WIDGET_VIEW, widget_models

logger = logging.getLogger(__name__)


def html(widget, name: str, assets: Path | None = None, address: str = "") -> str:
    """What a notebook's output would put into the page: the widget's state and a view of it.

    Bytes of the state, such as a model's weights, become scripts, which a page may load from a
    file too: in the folder `assets`, which the page reaches by `address`, or else in the page.
    """
    state = widget.get_state()
    state.pop("layout", None)
    scripts = ""
    for key, value in state.items():
        if isinstance(value, bytes):
            asset = f"{hashlib.sha256(value).hexdigest()[:16]}.js"
            script = asset_script(asset, value)
            state[key] = {"name": asset, "address": f"{address}/{asset}"}
            if assets is None:
                scripts += f"<script>{script}</script>\n"
            else:
                assets.mkdir(parents=True, exist_ok=True)
                (assets / asset).write_text(script, encoding="utf-8")
    model = {"model_module": "anywidget", "model_name": "AnyModel", "state": state}
    states = {"version_major": 2, "version_minor": 0, "state": {name: model}}
    view = {"version_major": 2, "version_minor": 0, "model_id": name}
    # a "</script>" within the figure's code would end the element
    states_text = json.dumps(states).replace("</", "<\\/")
    return (
        f"{scripts}"
        f'<script type="application/vnd.jupyter.widget-state+json">{states_text}</script>\n'
        f'<script type="application/vnd.jupyter.widget-view+json">{json.dumps(view)}</script>'
    )


def asset_script(name: str, content: bytes) -> str:
    """A script that leaves the bytes, in base64, where the figures look for them."""
    text = base64.b64encode(content).decode()
    return f'(globalThis.katlibAssets ??= {{}})["{name}"] = "{text}";'


class Live(SphinxDirective):
    """Puts a live figure and its caption into the page."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {"caption": str}

    def run(self):
        import katlib

        widget = eval(self.arguments[0], {"katlib": katlib})
        name = f"live-{self.env.new_serialno('live')}"
        assets = Path(self.env.app.outdir) / "_static" / "live"
        up = "../" * self.env.docname.count("/")
        scripts = html(widget, name, assets, f"{up}_static/live")
        # the style sheet keeps as much room free as the figure will need once it is drawn
        room = (
            f'<div class="live-place"><div class="live-room {type(widget).__name__}">'
            f"{scripts}</div></div>"
        )
        figure = nodes.raw("", room, format="html")
        inline, messages = self.parse_inline(self.options.get("caption", ""))
        caption = nodes.paragraph("", "", *inline, classes=["live-caption"])
        return [figure, caption, *messages]


def read_states(app, name: str, source: list[str]) -> None:
    """Called by Sphinx with the text of every page before it is read.

    A notebook that Colab has saved gets the form of Jupyter's, which is the one that MyST-NB knows.
    A figure without its state would leave an empty place in the page, so that is a warning.
    """
    path = Path(app.env.doc2path(name))
    if path.suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    models = widget_models(notebook)
    for cell in cells_without_state(notebook, models):
        logger.warning(
            f"cell {cell} shows a live figure, but the notebook does not hold its state: run "
            f"`make notebooks ONLY={path.stem}`, which stores it",
            location=name,
        )
    if models:
        states = {"version_major": 2, "version_minor": 0, "state": models}
        notebook["metadata"]["widgets"] = {WIDGET_STATE: states}
        source[0] = json.dumps(notebook)


def cells_without_state(notebook: dict, models: dict[str, dict]) -> list[int]:
    """The numbers of the cells with a figure that the page could not draw."""
    drawable = {name for name, model in models.items() if is_drawable(model)}
    return [
        number
        for number, cell in enumerate(notebook["cells"], start=1)
        for output in cell.get("outputs", [])
        if WIDGET_VIEW in output.get("data", {})
        and output["data"][WIDGET_VIEW].get("model_id") not in drawable
    ]


def is_drawable(model: dict) -> bool:
    """Whether a model holds the module that draws it, and nothing that JSON does not know."""
    state = model.get("state")
    if not isinstance(state, dict) or not isinstance(state.get("_esm"), str):
        return False
    try:
        json.dumps(state, allow_nan=False)
    except ValueError:
        return False
    return True


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
    app.connect("source-read", read_states)
    app.connect("builder-inited", without_thebe, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
