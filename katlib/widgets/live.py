"""What the live figures have in common.

Each is one anywidget: a Python class, and an ES module that draws and computes everything in the
browser. A figure needs no kernel. The built book holds its state, and `book/_static/live.js` mounts
it there; in Jupyter and Colab, anywidget does.
"""

import math
from pathlib import Path
from typing import Any

import anywidget
import traitlets

FOLDER = Path(__file__).parent


def source(*files: str) -> str:
    """One ES module: what all figures share, then `files`, of which the last has the export."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("figure.js", *files))


class Coefficients(traitlets.List):
    """A list of finite floats whose length does not change once it is set.

    Tensors and arrays can be assigned too.
    """

    def validate(self, owner: traitlets.HasTraits, value: Any) -> Any:
        entries = value.tolist() if hasattr(value, "tolist") else value
        numbers = [float(entry) for entry in entries]
        assert self.name is not None
        # at the first assignment there is nothing before, and every length is allowed
        before = owner._trait_values.get(self.name) or numbers
        if len(numbers) != len(before) or not all(map(math.isfinite, numbers)):
            raise traitlets.TraitError(
                f"{self.name} has {len(numbers)} entries, {numbers}; "
                f"allowed are {len(before)} finite numbers"
            )
        return super().validate(owner, numbers)


class LiveFigure(anywidget.AnyWidget):
    """The base of the live figures: their common style."""

    _css = (FOLDER / "figure.css").read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
