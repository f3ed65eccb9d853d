"""What the live figures have in common.

Each is one anywidget: a Python class, and an ES module that draws and computes everything in the
browser. A figure needs no kernel. The built book holds its state, and `book/_static/live.js` mounts
it there; in Jupyter and Colab, anywidget does.
"""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anywidget
import traitlets

from katlib.widgets import still

FOLDER = Path(__file__).parent


def source(*files: str) -> str:
    """One ES module: what all figures share, then `files`, of which the last has the export."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("figure.js", *files))


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and shortened."""
    return " ".join(reprlib.repr(value).split())


def finite_numbers(name: str, values: Any, least: int = 0, count: int | None = None) -> list[float]:
    """A list, tuple, array or tensor of one dimension as finite floats.

    Args:
        name: what the values are, for the message.
        values: anything; what is not such a list is refused.
        least: how many numbers there have to be at least.
        count: how many there have to be, if that is known.

    Raises:
        ValueError: something else, numbers that are not finite, or another number of them.
    """
    try:
        numbers = _floats(values)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        numbers = [math.nan]
    right_count = len(numbers) >= least if count is None else len(numbers) == count
    if not right_count or not all(map(math.isfinite, numbers)):
        wanted = f"{least} or more" if count is None else count
        raise ValueError(
            f"{name}={shown(values)}; allowed are {wanted} finite numbers, "
            "in a list or a tensor of one dimension"
        )
    return numbers


def _floats(values: Any) -> list[float]:
    entries = values.tolist() if hasattr(values, "tolist") else values
    # a string could be read as numbers too, and a set has no order
    if not isinstance(entries, (list, tuple)) or any(isinstance(entry, str) for entry in entries):
        raise TypeError
    return [float(entry) for entry in entries]


class Coefficients(traitlets.List):
    """A list of finite floats whose length does not change once it is set.

    Tensors and arrays can be assigned too.
    """

    def validate(self, owner: traitlets.HasTraits, value: Any) -> Any:
        assert self.name is not None and isinstance(owner, LiveFigure)
        try:
            numbers = finite_numbers(self.name, value, count=owner.lengths.get(self.name))
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None
        return super().validate(owner, numbers)


class Finite(traitlets.Float):
    """A float within the bounds `min` and `max`, and no NaN, which JSON does not know."""

    def validate(self, owner: Any, value: Any) -> Any:
        number = super().validate(owner, value)
        if not math.isfinite(number):
            raise traitlets.TraitError(f"{self.name}={shown(value)}; allowed are finite numbers")
        return number


class LiveFigure(anywidget.AnyWidget):
    """The base of the live figures: their common style, and what cannot be assigned.

    Attributes:
        lengths: how many numbers each of a figure's `Coefficients` has, if that never changes; set
            before the figure is made.
    """

    _css = (FOLDER / "figure.css").read_text(encoding="utf-8")
    # Which versions of anywidget's part in the browser may draw the figure. anywidget itself asks
    # for the kernel's minor version, so a Jupyter with another one would show an error in place of
    # the figure.
    _model_module_version = traitlets.Unicode("*").tag(sync=True)
    _view_module_version = traitlets.Unicode("*").tag(sync=True)
    lengths: Mapping[str, int] = MappingProxyType({})
    _is_made = False

    def __init__(self, **state: Any):
        super().__init__(**state)
        self._is_made = True

    @traitlets.validate(
        "interval", "handles", "presets", "best", "quadrature", "record", "channels"
    )
    def _keep_what_was_drawn(self, proposal: Any) -> Any:
        """The page reads these once, when it draws the figure."""
        if self._is_made and proposal["value"] != getattr(self, proposal["trait"].name):
            raise traitlets.TraitError(
                f"{proposal['trait'].name} cannot be assigned; make another {type(self).__name__}"
            )
        return proposal["value"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        """The live figure, and what stands in its place where it does not start."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/html": still.fallback(repr(self), self._still())}, metadata

    def _still(self) -> list[still.Curve]:
        """The curves of the figure's still picture; without any there is a sentence alone."""
        return []
