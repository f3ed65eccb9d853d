"""What the live figures have in common: one anywidget each, a Python class and an ES module, that draws and computes everything in the browser.

A figure needs no kernel: the built book holds its state, and `book/_static/live.js` mounts it there. In Jupyter and Colab, anywidget does.
"""

from pathlib import Path

import anywidget
import traitlets

HERE = Path(__file__).parent


def source(*files: str) -> str:
    """One ES module: what all figures share, then `files`, of which the last has the export."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("figure.js", *files))


class Coefficients(traitlets.List):
    """A list of finite floats whose length does not change once it is set. Tensors and arrays are taken too."""

    def validate(self, owner, value):
        value = [float(entry) for entry in (value.tolist() if hasattr(value, "tolist") else value)]
        before = owner._trait_values.get(self.name) or value
        if len(value) != len(before) or not all(abs(entry) < float("inf") for entry in value):
            raise traitlets.TraitError(
                f"{self.name} has {len(value)} entries, {value}; allowed are {len(before)} finite numbers"
            )
        return super().validate(owner, value)


class LiveFigure(anywidget.AnyWidget):
    """The base of the live figures: their common style."""

    _css = (HERE / "figure.css").read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
